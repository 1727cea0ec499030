"""What llama.cpp made of the files that make_exports.py wrote, against base and adapter by MLX.

python tests/peers/check_llama_cpp.py FOLDER, after llama_cpp/run.js
"""

import json
import sys
from pathlib import Path

import numpy as np

# Largest difference of logits, relative to the largest: llama.cpp keeps keys and values in float16,
# and multiplies Q8_0 with inputs that it rounds to 8 bits.
EVERY = 8  # positions, as in run.js
BOUNDS = {"float32": 1e-2, "float16": 1e-2, "q8_0": 1e-1}


def check(folder: Path, kind: str) -> None:
    with np.load(folder / "expected.npz") as file:
        expected = dict(file)
    about = json.loads((folder / "expected.json").read_text())
    found = json.loads((folder / f"{kind}.llama_cpp.json").read_text())
    for index, text in enumerate(about["texts"]):
        assert found["texts"][index] == about["rows"][f"text{index}"], text
    for (text, ids), tokens in zip(about["chats"], found["chats"], strict=True):
        assert tokens == ids, text
    worst, agree = 0.0, []
    for name in about["rows"]:
        known = expected[f"logits/{name}"]
        known = known[sorted({*range(0, len(known), EVERY), len(known) - 1})]
        logits = np.fromfile(folder / f"{kind}.{name}.f32", np.float32).reshape(len(known), -1)
        worst = max(worst, float(np.abs(logits - known).max() / np.abs(known).max()))
        agree.append((logits.argmax(-1) == known.argmax(-1)).mean())
    pairs = list(zip(found["answers"], about["answers"], strict=True))
    same = sum(theirs == ours for theirs, ours in pairs)
    cut = len(about["texts"]) + len(about["chats"])
    print(
        f"{folder.name}, {kind}: logits {worst:.1e}, the same best token at {np.mean(agree):.1%}, "
        f"{cut} texts cut alike, {same} of {len(pairs)} greedy answers equal"
    )
    for theirs, ours in pairs:
        if theirs != ours:
            print(f"  {theirs!r} for {ours!r}")
    assert worst < BOUNDS[kind], worst
    assert same == len(pairs) or kind == "q8_0"  # rounding to 8 bits may change a word
    assert found["template"] == (folder / "fused" / "chat_template.jinja").read_text()


def main() -> None:
    folders = sorted(path.parent for path in Path(sys.argv[1]).glob("*/expected.npz"))
    assert len(folders) >= 5
    for folder in folders:
        for kind in BOUNDS:
            check(folder, kind)


if __name__ == "__main__":
    main()
