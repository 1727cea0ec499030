"""What all exports have in common: how they are asked for, and how they end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_ft import durable
from mlx_ft.export import card, checking
from mlx_ft.export.card import Card
from mlx_ft.export.checking import Checker, Found
from mlx_ft.export.source import Source
from mlx_ft.models.load import EMBEDDED_HUB, Located

README = "README.md"


@dataclass(frozen=True)
class Options:
    """How to export. dtype: None for the target's own. base: the base model's name on the hub.

    tolerance: how much the loss may rise, in nats per token; force: however much it does. measure:
    whether that is looked at. say: shows a line.
    """

    out: Path
    dtype: str | None = None
    base: str | None = None
    tolerance: float = 0.01
    force: bool = False
    measure: bool = True
    say: Callable[[str], None] = print

    @property
    def title(self) -> str:
        """What the export is called: its folder, or its file without the ending."""
        return self.out.name.removesuffix(".gguf")


@dataclass(frozen=True)
class Base:
    """The base model's name for others, and whether that is one on the hub."""

    name: str
    on_hub: bool

    @classmethod
    def of(cls, located: Located, given: str | None) -> Base:
        """given: `Options.base`."""
        if given is not None or located.source in ("hub", "embedded"):
            own = EMBEDDED_HUB if located.source == "embedded" else located.name
            return cls(given or own, True)
        return cls(located.name, False)


def say_found(checker: Checker, found: Sequence[Found], options: Options) -> None:
    """The table. Raises ModelError when the first one, which is to be published, lost too much."""
    for line in [*checker.head(), *(one.line() for one in found)]:
        options.say(line)
    if not options.force:
        advice = "Keep more bits (--quantize 8, --dtype float32), or insist with --force"
        checking.refuse(found[0], options.tolerance, advice)


def measured(checker: Checker | None, found: Sequence[Found]) -> list[tuple[str, str]]:
    """The same for the model card."""
    if checker is None or not found:
        return []
    return [
        ("measured on", checker.rows.about.partition(":")[0]),  # the rest may name files
        ("loss as trained, as exported", f"{checker.before.loss:.4f}, {found[0].after:.4f}"),
        ("largest difference of logits, of the largest", f"{found[0].lost.logits:.1e}"),
    ]


def write_card(made: Path, source: Source, about: Card, options: Options) -> None:
    """README.md in the folder that is being made."""
    durable.write(made / README, card.text(about, source, options.title).encode())
