"""A tiny job for tests of whole runs: a random model, made-up rows, a few steps."""

import json
from pathlib import Path


def write_rows(path: Path, count: int = 24) -> None:
    rows = [{"prompt": f"say {i % 5}", "completion": "abc" * (1 + i % 3)} for i in range(count)]
    path.write_text("".join(json.dumps({**row, "id": i}) + "\n" for i, row in enumerate(rows)))


JOB = (
    "model.path=./model", "data=custom", "data.path=rows.jsonl", "data.metric=exact_match",
    "tracking=none", "train.max_steps=6", "lora.rank=4", "eval.max_tokens=4",
    "memory_profile=cpu", "memory_profile.micro_batch_size=4", "hydra.run.dir=run", "device=cpu",
)  # fmt: skip


def job(*overrides: str) -> list[str]:
    """The tiny job; an override replaces the job's own."""
    given = {text.partition("=")[0] for text in overrides}
    return [*(text for text in JOB if text.partition("=")[0] not in given), *overrides]


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())
