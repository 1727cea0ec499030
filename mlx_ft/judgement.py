"""What was judged, as a run folder keeps it: the base model's judgement, and all the answers."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any

from mlx_ft.evaluation import Answer, Validation
from mlx_ft.runfolder import RunFolder

logger = logging.getLogger(__name__)

BASE = "base.json"


@dataclass(frozen=True)
class Base:
    """How the base model was judged. rows: metric rows that the run had then."""

    validation: Validation | None
    answers: Sequence[Answer]
    rows: int


def save(folder: RunFolder, base: Base, subject: Mapping[str, Any]) -> None:
    """Keep the judgement of the base model for a run that goes on. subject: what on."""
    text = json.dumps({"subject": subject, **asdict(base)})
    checked = {"sha256": _sha256(text), "content": text}
    folder.write_text(BASE, json.dumps(checked) + "\n")


def load(folder: RunFolder, subject: Mapping[str, Any]) -> Base | None:
    """What `save` kept; None: it is not there, damaged, or about other rows than `subject`."""
    path = folder.path / BASE
    try:
        checked = json.loads(path.read_text("utf-8"))
        if checked["sha256"] != _sha256(checked["content"]):
            raise ValueError
        content = json.loads(checked["content"])
        if content["subject"] != dict(subject):
            logger.warning("other evaluation settings: the base model is judged again")
            return None
        validation = content["validation"]
        return Base(
            None if validation is None else Validation(**validation),
            [Answer(**answer) for answer in content["answers"]],
            content["rows"],
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        logger.warning("%s is damaged: the base model is judged again", path)
        return None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def sample_rows(before: Sequence[Answer], after: Sequence[Answer]) -> list[dict[str, Any]]:
    """One row per question: the answers of the base model and of the tuned one."""
    rows = []
    for old, new in zip_longest(before, after):
        known = new or old
        rows.append(
            {
                "question": known.question,
                "expected": known.reference,
                "before": old.prediction if old else None,
                "correct_before": old.correct if old else None,
                "after": new.prediction if new else None,
                "correct_after": new.correct if new else None,
                "kind": known.kind,
            }
        )
    return rows


def final_figures(summary: Mapping[str, Any]) -> dict[str, float]:
    """The figures of the adapter that was kept, which need not be the last step's."""
    names = {
        "final/val_loss": "val_loss_after",
        "final/perplexity": "perplexity_after",
        "final/accuracy": "accuracy_after",
        "final/best_step": "best_step",
        "final/skipped_steps": "skipped_steps",
        "final/spikes": "spikes",
        "final/rewinds": "rewinds",
        "final/out_of_memory": "out_of_memory",
    }
    return {name: summary[key] for name, key in names.items() if summary[key] is not None}
