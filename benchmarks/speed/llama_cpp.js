// llama.cpp on the same question: greedy tokens and their seconds, several times.
//
//     node llama_cpp.js FILE.gguf PROMPT.txt TOKENS REPEATS THREADS
//
// Lies beside the node-llama-cpp that .ci/peers.sh installs when it runs.
import fs from "node:fs";
import {getLlama, LlamaLogLevel} from "node-llama-cpp";

const [file, prompt, tokens, repeats, threads] = process.argv.slice(2);
const llama = await getLlama({
    gpu: false, build: "never", skipDownload: true, logLevel: LlamaLogLevel.error
});
const model = await llama.loadModel({modelPath: file});
const context = await model.createContext({
    contextSize: 1024, sequences: 1, threads: Number(threads)
});
const sequence = context.getSequence();
const question = [...model.tokenize(fs.readFileSync(prompt, "utf8"), true)];
const answers = [];
for (let turn = 0; turn < Number(repeats); turn++) {
    await sequence.clearHistory();
    const began = performance.now();
    const times = [];
    const made = [];
    for await (const token of sequence.evaluate(question, {temperature: 0})) {
        times.push(performance.now());
        made.push(token);
        if (made.length >= Number(tokens)) break;
    }
    answers.push({
        tokens: made.length, text: model.detokenize(made),
        decoding: (times.at(-1) - times[0]) / 1000, whole: (times.at(-1) - began) / 1000,
    });
}
console.log(JSON.stringify(answers));
process.exit(0);
