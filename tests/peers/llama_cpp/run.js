// What llama.cpp makes of the GGUF files that make_exports.py wrote: tokens, logits, greedy answers.
//
//     node run.js FOLDER
//
// Writes FOLDER/<model>/<kind>.llama_cpp.json and <kind>.<row>.f32 (logits of every eighth position
// and the last) for check_llama_cpp.py. The package carries llama.cpp compiled, so nothing is built.
import fs from "node:fs";
import path from "node:path";
import {getLlama, LlamaLogLevel} from "node-llama-cpp";

const EVERY = 8; // positions: all logits of one are a map of the whole vocabulary, which takes long
const KINDS = ["float32", "float16", "q8_0"];
// Everything that would change logits before they are given out, switched off.
const PLAIN = {temperature: 1, topK: 0, topP: 1, minP: 0, repeatPenalty: false};

async function logitsOf(sequence, tokens) {
    await sequence.clearHistory();
    const last = tokens.length - 1;
    const asked = tokens.map((token, position) => {
        const wanted = position % EVERY === 0 || position === last;
        return wanted ? [token, {generateNext: {logits: true, options: PLAIN}}] : token;
    });
    const found = (await sequence.controlledEvaluate(asked)).filter((one) => one?.next?.logits);
    const size = found[0].next.logits.size;
    const all = new Float32Array(found.length * size);
    found.forEach((one, place) => {
        for (const [token, logit] of one.next.logits) all[place * size + token] = logit;
    });
    return all;
}

async function greedy(model, sequence, prompt, stop, limit) {
    await sequence.clearHistory();
    const made = [];
    for await (const token of sequence.evaluate(prompt, {temperature: 0})) {
        if (token === stop || made.length >= limit) break;
        made.push(token);
    }
    return model.detokenize(made);
}

async function look(llama, folder, kind) {
    const about = JSON.parse(fs.readFileSync(path.join(folder, "expected.json"), "utf8"));
    const model = await llama.loadModel({modelPath: path.join(folder, `${kind}.gguf`)});
    // More threads wait for each other by spinning, which is slow beside other work.
    const context = await model.createContext({contextSize: 512, sequences: 1, threads: 1});
    const sequence = context.getSequence();
    const cut = (text) => [...model.tokenize(text, true)];
    for (const [name, tokens] of Object.entries(about.rows)) {
        const logits = await logitsOf(sequence, tokens);
        fs.writeFileSync(path.join(folder, `${kind}.${name}.f32`), logits);
    }
    const [stop] = cut(about.stop);
    const answers = [];
    for (const index of about.answers.keys()) {
        const prompt = about.rows[`question${index}`];
        answers.push(await greedy(model, sequence, prompt, stop, about.max_tokens));
    }
    const found = {
        texts: about.texts.map(cut),
        chats: about.chats.map(([text]) => cut(text)),
        answers,
        template: model.fileInfo.metadata.tokenizer.chat_template,
    };
    fs.writeFileSync(path.join(folder, `${kind}.llama_cpp.json`), JSON.stringify(found));
    await context.dispose();
    await model.dispose();
}

const llama = await getLlama({
    gpu: false, build: "never", skipDownload: true, logLevel: LlamaLogLevel.error
});
for (const name of fs.readdirSync(process.argv[2])) {
    const folder = path.join(process.argv[2], name);
    if (!fs.existsSync(path.join(folder, "expected.json"))) continue;
    for (const kind of KINDS) await look(llama, folder, kind);
}
process.exit(0);
