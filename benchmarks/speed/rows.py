"""Text-to-SQL rows out of the data set that comes along: as they are, or with their tables.

`tables` puts the CREATE TABLE statements of two tables into the system prompt, as text-to-SQL
rows have them in practice: those that the query reads, and the next one where it reads only one.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mlx_ft.datasets.geography_sql.database import SCHEMA

FOLDER = Path(__file__).resolve().parents[2] / "mlx_ft/datasets/geography_sql"
KINDS = ("plain", "tables")
STATEMENTS = [" ".join(text.split()) for text in SCHEMA.split(";") if text.strip()]
TABLES = {text.split()[2]: f"{text};" for text in STATEMENTS}


def read(split: str, count: int, kind: str) -> list[dict[str, Any]]:
    """The first rows of a split as {"messages": [...]}."""
    lines = (FOLDER / f"{split}.jsonl").read_text().splitlines()[:count]
    rows = [{"messages": json.loads(line)["messages"]} for line in lines]
    if kind == "tables":
        for row in rows:
            system, _, answer = row["messages"]
            system["content"] = "\n".join([*_tables(answer["content"]), system["content"]])
    return rows


def _tables(query: str) -> list[str]:
    """Two statements, in the order of the database."""
    read = set(re.findall(r"FROM (\w+)", query))
    others = [name for name in TABLES if name not in read]
    wanted = read | set(others[: 2 - len(read)])
    return [text for name, text in TABLES.items() if name in wanted]


def write(folder: Path, kind: str, train: int, valid: int) -> None:
    """Write `train.jsonl` and `valid.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", train), ("valid", valid)):
        lines = [json.dumps(row) for row in read(split, count, kind)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
