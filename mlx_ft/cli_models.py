"""`mlx-ft models list|show|download|remove`: the catalog as text."""

from __future__ import annotations

from pathlib import Path

from mlx_ft import runtime, store
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


HEADER = ("model=", "model.path", "on disk", "parameters", "weights", "licence", "trainable")
TEXTS = (0, 1, 5, 6)  # columns aligned to the left


def _print_list(entries: list[ModelEntry]) -> None:
    copies = [entry for entry in entries if entry.source == "converted"]
    rows = [_row(entry) for entry in entries if entry.source != "converted"]
    widths = [max(map(len, column)) for column in zip(HEADER, *rows, strict=True)]
    for row in (HEADER, *rows):
        cells = [
            cell.ljust(width) if index in TEXTS else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
    if copies:
        print(
            "\nConverted copies of .gguf files, made when a run first used them and made again "
            "when\nneeded. `mlx-ft models remove NAME` deletes one."
        )
    for entry in copies:
        print(f"  {entry.name}  {_size(entry.size_bytes)}  of {_origin(entry)}")


def _row(entry: ModelEntry) -> tuple[str, ...]:
    return (
        entry.recipe or "",
        entry.name,
        _size(entry.size_bytes) if entry.path else "-",
        _count(entry.parameters),
        entry.quantization or ("16 or 32 bit" if entry.path else "-"),
        entry.licence or "-",
        _trainable(entry),
    )


def _origin(entry: ModelEntry) -> str:
    """The file that a converted copy was made from."""
    source = entry.path and (store.manifest(entry.path) or {}).get("source")
    if not source:
        return "an unknown file"
    return str(source) if Path(source).exists() else f"{source}, which is gone"


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
