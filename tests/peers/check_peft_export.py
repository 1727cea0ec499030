"""What make_exports.py wrote, loaded by transformers and PEFT on torch: the same logits?

    python tests/peers/check_peft_export.py FOLDER

Runs in the environment of requirements.txt.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

TOLERANCE = 1e-4


def difference(model: torch.nn.Module, expected: dict[str, np.ndarray]) -> float:
    """The largest one of all logits, relative to the largest logit of the row."""
    worst = 0.0
    for name, tokens in expected.items():
        if not name.startswith("tokens/"):
            continue
        known = expected[name.replace("tokens/", "logits/")]
        with torch.no_grad():
            found = model(torch.tensor(tokens[None].astype(np.int64))).logits[0].numpy()
        worst = max(worst, float(np.abs(found - known).max() / np.abs(known).max()))
    return worst


def merged(adapted: PeftModel, fused: torch.nn.Module) -> float:
    """PEFT's own fusion against ours: the largest difference of a weight."""
    theirs = dict(adapted.merge_and_unload().named_parameters())
    ours = dict(fused.named_parameters())
    assert theirs.keys() == ours.keys()
    return max(float((theirs[name] - ours[name]).abs().max()) for name in ours)


def check(folder: Path) -> None:
    with np.load(folder / "expected.npz") as file:
        expected = dict(file)
    about = json.loads((folder / "expected.json").read_text())
    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32).eval()
    fused = AutoModelForCausalLM.from_pretrained(folder / "fused", dtype=torch.float32).eval()
    alone = difference(base, expected)
    adapted = PeftModel.from_pretrained(base, folder / "adapter").eval()
    found = {
        "PEFT": difference(adapted, expected),
        "fused": difference(fused, expected),
        "fused against merge_and_unload": merged(adapted, fused),
    }
    figures = ", ".join(f"{name} {value:.1e}" for name, value in found.items())
    print(f"{folder.name}: {figures}; the base alone {alone:.1e}")
    assert max(found.values()) < TOLERANCE, found
    assert alone > 100 * TOLERANCE, "the adapter changes nothing, so that nothing was compared"
    tokenizer = AutoTokenizer.from_pretrained(folder / "fused")
    for index, text in enumerate(about["texts"]):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == expected[f"tokens/text{index}"].tolist(), text
    for index, question in enumerate(about["questions"]):
        turns = [{"role": "user", "content": question}]
        encoded = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)
        ids = encoded["input_ids"]
        assert ids == expected[f"tokens/question{index}"].tolist(), question
        if not about["answers"]:
            continue
        made = fused.generate(
            torch.tensor([ids]), max_new_tokens=about["max_tokens"], do_sample=False
        )
        answer = tokenizer.decode(made[0, len(ids) :], skip_special_tokens=True)
        assert answer == about["answers"][index], (answer, about["answers"][index])
    print(f"{folder.name}: {len(about['texts'])} texts cut, {len(about['answers'])} questions "
          "answered alike")  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    folders = sorted(path.parent for path in Path(sys.argv[1]).glob("*/expected.npz"))
    assert len(folders) >= 5
    for folder in folders:
        check(folder)


if __name__ == "__main__":
    main()
