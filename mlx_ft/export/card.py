"""The model card: what a run's own records say of it, and nothing of the machine it ran on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

import yaml

from mlx_ft import lora_files
from mlx_ft.config.schema import Config
from mlx_ft.data_report import name_of
from mlx_ft.export.source import Source
from mlx_ft.runfolder import ORIGIN, read_json

# Keys that say how the training went, and hold no path, address or name of a person.
SHOWN = ("lora", "optimizer", "memory_profile", "train")
HIDDEN = {"lora": ("init_from",), "train": ("resume", "resume_allow", "log_every")}
RESULTS = (
    ("validation loss (nats per token)", "val_loss", "{:.4f}"),
    ("perplexity", "perplexity", "{:.3f}"),
    ("answers right", "accuracy", "{:.1%}"),
)


@dataclass(frozen=True)
class Card:
    """What the card says of the export itself.

    kind: "peft", "mlx adapter", "mlx", "transformers" or "gguf". base: the base model's name.
    on_hub: whether the hub has it under that name. use: lines of shell or Python, by their
    language. facts: (what, value) of the export, such as what was measured.
    """

    kind: str
    base: str
    on_hub: bool
    adapter: lora_files.Adapter
    use: tuple[str, str]
    facts: Sequence[tuple[str, str]] = field(default=())


def text(card: Card, source: Source, title: str) -> str:
    """README.md."""
    parts = [
        _front(card),
        f"# {title}",
        f"A LoRA adapter of {card.base}"
        + ("" if card.kind in ("peft", "mlx adapter") else ", fused into it")
        + f", made with mlx-ft {metadata.version('mlx-ft')}.",
        "## Use",
        "```{}\n{}\n```".format(*card.use),
        "## Adapter and export",
        _table(_about(card, source)),
    ]
    if source.run is not None:
        parts += _of_run(source, source.run.summary, source.run.config)
    else:
        parts.append("The adapter came without its run: its data and results are not known.")
    return "\n\n".join(parts) + "\n"


def _front(card: Card) -> str:
    """What the hub reads. A base that is not there has no name to give."""
    library = {"mlx": "mlx", "mlx adapter": "mlx", "transformers": "transformers", "peft": "peft"}
    front: dict[str, Any] = {"base_model": card.base} if card.on_hub else {}
    if card.kind in library:
        front["library_name"] = library[card.kind]
    front["tags"] = ["mlx-ft", "lora"]
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---"


def _about(card: Card, source: Source) -> list[tuple[str, str]]:
    adapter = card.adapter
    revision = source.revision
    step = source.about.get("step")
    rows = [
        ("base model", card.base),
        ("its revision", "" if revision is None else str(revision)),
        ("rank", str(adapter.rank)),
        ("scale (alpha / rank, or alpha / sqrt(rank))", f"{adapter.scale:g}"),
        ("dropout", f"{adapter.dropout:g}"),
        ("layers, from the last", str(adapter.num_layers)),
        ("projections", ", ".join(adapter.keys)),
        ("training step", "" if step is None else str(step)),
        *card.facts,
    ]
    return [row for row in rows if row[1]]


def _of_run(source: Source, summary: Mapping[str, Any], config: Config) -> list[str]:
    parts = ["## Data", _table(_data(source, config))]
    if system := source.system_prompt:
        parts += ["Every training row began with this system message:", _quoted(system)]
    results = [
        (name, *(_shown(summary.get(f"{key}_{when}"), form) for when in ("before", "after")))
        for name, key, form in RESULTS
        if summary.get(f"{key}_after") is not None
    ]
    if results:
        head = ("", "before", "after")
        parts += ["## Results", _grid([head, *results])]
    parts += ["## Training", _table(_training(summary)), _settings(config)]
    return parts


def _data(source: Source, config: Config) -> list[tuple[str, str]]:
    assert source.run is not None
    known = read_json(source.run.folder / ORIGIN).get("fingerprint", {}).get("data", {})
    splits = read_json(source.run.folder / "data" / "report.json").get("splits", {})
    rows = [("name", name_of(config.data)), ("SHA-256 of the files", str(known.get("digest", "")))]
    for name, title in (("train", "training"), ("valid", "validation"), ("test", "test")):
        count = splits.get(name, {}).get("rows")
        rows.append((f"{title} rows", "" if count is None else f"{count:,}"))
    return [row for row in rows if row[1]]


def _training(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    names = {
        "status": "status", "seed": "seed", "device": "device", "steps": "steps",
        "best_step": "step of the adapter kept", "epochs": "epochs", "tokens": "tokens",
        "target_tokens": "target tokens",
    }  # fmt: skip
    found = {title: summary.get(key) for key, title in names.items()}
    return [(title, f"{v:,}" if isinstance(v, int) else str(v)) for title, v in found.items()
            if v is not None]  # fmt: skip


def _settings(config: Config) -> str:
    shown = {
        name: {
            key: value
            for key, value in asdict(getattr(config, name)).items()
            if key not in HIDDEN.get(name, ())
        }
        for name in SHOWN
    }
    return f"```yaml\n{yaml.safe_dump(shown, sort_keys=False)}```"


def _shown(value: Any, form: str) -> str:
    return "-" if value is None else form.format(value)


def _quoted(message: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in message.splitlines())


def _table(rows: Sequence[tuple[str, str]]) -> str:
    return _grid([("", ""), *rows])


def _grid(rows: Sequence[tuple[str, ...]]) -> str:
    """A table; a bar within a cell would end it."""
    lines = [f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in rows]
    rule = "|" + "---|" * len(rows[0])
    return "\n".join([lines[0], rule, *lines[1:]])
