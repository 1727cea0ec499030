"""Exports of a short run on the embedded model, and of small random ones, for others to read.

    python tests/peers/make_exports.py FOLDER

FOLDER/<model>/: `base` and `fused` (transformers), `adapter` (PEFT), `*.gguf`, `expected.npz` with
token ids and logits of base and adapter by MLX, `expected.json` with texts and greedy answers.
check_peft_export.py and llama_cpp/run.js read them, each in an environment of its own.
"""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from mlx_ft import runtime

runtime.prepare()
import mlx.core as mx  # noqa: E402
import mlx.nn as nn  # noqa: E402
import numpy as np  # noqa: E402

import mlx_ft  # noqa: E402
from mlx_ft import generation, lora_files  # noqa: E402
from mlx_ft.data import template  # noqa: E402
from mlx_ft.data.chat import generation_prompt  # noqa: E402
from mlx_ft.data.render import Renderer  # noqa: E402
from mlx_ft.data.rows import Message  # noqa: E402
from mlx_ft.export import llama_cpp, source, targets  # noqa: E402
from mlx_ft.export.options import Options  # noqa: E402
from mlx_ft.export.source import Source  # noqa: E402
from mlx_ft.models.read import read_tokenizer  # noqa: E402
from tests.data.conftest import mistral_v3  # noqa: E402
from tests.export import small  # noqa: E402

QUESTIONS = (
    "Which countries border Chad?",
    "How many people live in Oslo?",
    "What is the capital of France?",
    "Which country has the largest area?",
)
TEXTS = (
    "The capital of Chad is N'Djamena. SELECT capital FROM country WHERE name = 'Chad';",
    "  two  spaces,\ttabs\n\nand lines; don't, 1234567890, 3.14",
    "Zürich, São Tomé, 北京, 🙂 naïve café ½",
    "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n",
)
SMALL = {
    "llama": {**small.LLAMA, "architectures": ["LlamaForCausalLM"]},
    "llama3_rope": {
        **small.LLAMA,
        "architectures": ["LlamaForCausalLM"],
        "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "qwen2": small.QWEN2,
}  # fmt: skip
# Texts whose pieces are in the part of Mistral's vocabulary that tests have.
CHATS = ("What is 2+2?", "  two  spaces ", "Zürich, São Tomé, 北京?")
MAX_TOKENS = 48


@dataclass(frozen=True)
class Given:
    """What a model is asked. answers: greedy ones, which a random model does not give surely."""

    texts: tuple[str, ...]
    questions: tuple[str, ...] = ()
    answers: bool = False


def logits(model: nn.Module, tokens: list[int]) -> np.ndarray:
    model.eval()
    return np.array(model(mx.array([tokens]))[0].astype(mx.float32))


def without_effect(found: Source, folder: Path) -> Source:
    """The same base under an adapter of zeros, to have the base alone written."""
    adapter, _ = lora_files.read_settings(found.adapter)
    arrays = mx.load(str(found.adapter / lora_files.WEIGHTS))
    lora_files.save({name: mx.zeros_like(a) for name, a in arrays.items()}, adapter, folder, {})
    return replace(found, adapter=folder)


def expected(found: Source, folder: Path, given: Given) -> None:
    """What base and adapter say here."""
    loaded = found.load(found.locate())
    choice = found.install(loaded.tokenizer)
    tokenizer = loaded.tokenizer
    texts = given.texts
    rows = {f"text{i}": tokenizer.encode(t, add_special_tokens=False) for i, t in enumerate(texts)}
    chats, answers = [], []
    for i, question in enumerate(given.questions):
        prompt = [*generation_prompt([Message("user", question)], tokenizer)]
        rows[f"question{i}"] = prompt
        shown = Renderer(tokenizer).text([{"role": "user", "content": question}], prompt=True)
        chats.append([shown, prompt])
        if given.answers:
            pieces = generation.stream(loaded.model, tokenizer, prompt, max_tokens=MAX_TOKENS)
            answers.append("".join(pieces))
            print(f"{question} {answers[-1]!r}")
    arrays = {f"tokens/{name}": np.array(row, np.int32) for name, row in rows.items()}
    arrays |= {f"logits/{name}": logits(loaded.model, row) for name, row in rows.items()}
    np.savez(folder / "expected.npz", **arrays)
    about = {
        "rows": rows,
        "texts": texts,
        "questions": given.questions,
        "chats": chats,
        "answers": answers,
        "stop": choice.stop,
        "max_tokens": MAX_TOKENS,
    }
    (folder / "expected.json").write_text(json.dumps(about))


def with_pieces(work: Path) -> Source:
    """A small model with SentencePiece's tokenizer and template of Mistral 7B."""
    config = {**SMALL["llama"], "vocab_size": 32768, "bos_token_id": 1, "eos_token_id": 2}
    model = small.save_model(work / "base", config)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (work / "base" / name).unlink()
    mistral_v3().save_pretrained(work / "base")
    _fill(work / "base" / "tokenizer.json", 32768)
    small.save_adapter(work / "adapter", model, work / "base")
    tokenizer = read_tokenizer(work / "base", 2)
    chosen = template.install(tokenizer, "mistral")
    (work / "adapter" / "chat_template.jinja").write_text(chosen.text)
    return source.find(str(work / "adapter"))


def _fill(path: Path, size: int) -> None:
    """Pieces for the numbers that this part of the vocabulary lacks: mlx-lm wants all of them."""
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    lacking = sorted({*range(size)} - {*vocabulary.values()})
    vocabulary |= {f"<{index}>": index for index in lacking}
    path.write_text(json.dumps(content))


def export(found: Source, folder: Path, given: Given) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    expected(found, folder, given)
    targets.to_peft(found, Options(folder / "adapter"))
    targets.to_hf(found, Options(folder / "fused", dtype="float32"))
    targets.to_hf(without_effect(found, folder / "zeros"),
                  Options(folder / "base", dtype="float32", measure=False))  # fmt: skip
    for kind in ("float32", "float16", "q8_0"):
        llama_cpp.to_gguf(found, Options(folder / f"{kind}.gguf", dtype=kind))


def main(folder: Path) -> None:
    for name, config in SMALL.items():
        work = folder / "work" / name
        model = small.save_model(work / "base", config)
        small.save_adapter(work / "adapter", model, work / "base")
        export(source.find(str(work / "adapter")), folder / name, Given(TEXTS))
    export(with_pieces(folder / "work" / "mistral"), folder / "mistral", Given((), CHATS))
    result = mlx_ft.train("experiment=quick", "tracking=none", "train.max_steps=12",
                          "eval.task_rows=1", run_dir=folder / "work" / "run")  # fmt: skip
    export(source.find(str(result.run_dir)), folder / "embedded",
           Given(TEXTS, QUESTIONS, answers=True))  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
