"""Did you mean ...? For keys and groups that do not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from mlx_ft.config.keys import keys, sections

# What these are called elsewhere.
ALIASES = {
    "lr": "optimizer.learning_rate",
    "r": "lora.rank",
    "batch_size": "memory_profile.micro_batch_size",
    "gradient_accumulation_steps": "memory_profile.grad_accumulation_steps",
    "max_length": "memory_profile.max_seq_length",
    "steps": "train.max_steps",
    "iters": "train.max_steps",
}


def did_you_mean(name: str, groups: Iterable[str] = ()) -> str:
    """The end of an error message about the unknown key or group `name`."""
    wanted = name.replace("-", "_").replace("/", ".").lower()
    known = [*keys(), *sections(), *groups]
    if wanted in known:
        return f"Did you mean {wanted}?"
    if wanted in ALIASES:
        return f"Did you mean {ALIASES[wanted]}?"
    section, _, leaf = wanted.rpartition(".")
    if section in keys():
        return f"{section} has no parts. Did you mean {section}?"
    tops = difflib.get_close_matches(wanted, [*sections(), *groups], n=1, cutoff=0.8)
    if tops and not section:
        return f"Did you mean {tops[0]}?"
    if found := _by_leaf(leaf, within=section if section in sections() else None):
        return f"Did you mean {' or '.join(found)}?"
    if elsewhere := [key for key in keys() if key.rpartition(".")[2] == leaf]:
        return f"Did you mean {' or '.join(elsewhere)}?"
    if section in sections():
        names = ", ".join(key.rpartition(".")[2] for key in keys() if key.startswith(f"{section}."))
        meant = f"Did you mean {section}? " if section != name.rpartition(".")[0] else ""
        return f"{meant}{section} has: {names}"
    if close := difflib.get_close_matches(wanted, known, n=1, cutoff=0.6):
        return f"Did you mean {close[0]}?"
    return "All keys: docs/configuration.md, or --cfg job"


def _by_leaf(leaf: str, within: str | None) -> list[str]:
    """Keys whose last part is `leaf` or, failing that, closest to it."""
    candidates = [key for key in keys() if within is None or key.startswith(f"{within}.")]
    exact = [key for key in candidates if key.rpartition(".")[2] == leaf]
    if exact:
        return exact
    leaves = [key.rpartition(".")[2] for key in candidates]
    close = difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.7)
    return [key for key in candidates if close and key.rpartition(".")[2] == close[0]]
