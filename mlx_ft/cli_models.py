"""`mlx-ft models list|show|download|remove`: the catalog as text."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from mlx_ft import runtime
from mlx_ft.config import conf_dir
from mlx_ft.models import catalog
from mlx_ft.models.catalog import ModelEntry


def run(action: str, name: str, cache_dir: Path) -> int:
    """Carry out one action; name is empty for `list`. Raises ModelError."""
    runtime.prepare(cache_dir=cache_dir)  # a conversion imports MLX
    if action == "list":
        _print_list(catalog.list_models(cache_dir, conf_dir()))
    elif action == "show":
        _print_entry(catalog.show(name, cache_dir, conf_dir()))
    elif action == "download":
        _print_entry(catalog.download(name, cache_dir, conf_dir()))
    else:
        freed = catalog.remove(name, cache_dir, conf_dir())
        print(f"removed {name}: {_size(freed)} free")
    return 0


def _print_list(entries: list[ModelEntry]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("model=", no_wrap=True)
    table.add_column("model.path", no_wrap=True)
    for name in ("on disk", "parameters", "weights", "licence", "trainable"):
        left = name in ("licence", "trainable")
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    for entry in entries:
        table.add_row(
            entry.recipe or "",
            entry.name,
            _size(entry.size_bytes) if entry.path else "-",
            _count(entry.parameters),
            entry.quantization or ("16 or 32 bit" if entry.path else "-"),
            entry.licence or "-",
            _trainable(entry),
        )
    Console(width=160).print(table)  # whole names, even where a terminal wraps them


def _print_entry(entry: ModelEntry) -> None:
    rows = [
        ("name", entry.name),
        ("recipe", f"model={entry.recipe}" if entry.recipe else "-"),
        ("source", entry.source),
        ("folder", str(entry.path or "not on this machine")),
        ("on disk", _size(entry.size_bytes) if entry.size_bytes else "-"),
        ("parameters", _count(entry.parameters)),
        ("quantization", entry.quantization or "-"),
        ("licence", entry.licence or "unknown"),
        ("trainable here", _trainable(entry)),
    ]
    for precision, size in (entry.weight_bytes() or {}).items():
        rows.append((f"memory, {precision}", f"{_size(size)} for the weights alone"))
    for what, finding in rows:
        print(f"{what:<16} {finding}")
    for fault in entry.faults:
        print(f"{'':<16} {fault}")


def _trainable(entry: ModelEntry) -> str:
    return {True: "yes", False: "no", None: "not downloaded"}[entry.trainable]


def _count(parameters: int | None) -> str:
    return "-" if parameters is None else f"{parameters / 1e6:,.1f} M"


def _size(size: float) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
