"""The schema of a run, continued: what the `data` group takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mlx_ft.config.option import option

METRICS = ("none", "exact_match", "normalised_match", "contains", "contains_answer", "json_valid",
           "sql_execution", "python_tests")  # fmt: skip


@dataclass
class DataConfig:
    """The data: where it is, how it becomes tokens and targets, and how answers are judged."""

    path: Any = option(
        "builtin:geography_sql",
        "A file (JSON, JSON Lines, CSV, Parquet; also gzip or zstd), a folder, a pattern such as "
        "`rows/*.jsonl`, `builtin:NAME`, `hub:ORG/NAME`, or a list of these; an entry "
        "`{path: X, weight: 2}` shows its rows twice in an epoch.",
        kind="str|sources",
    )
    valid_path: str | None = option(
        None, "Validation rows; `null`: the folder's, or else a split of the training rows."
    )
    test_path: str | None = option(
        None, "Rows for the task metric; `null`: the folder's, or else the validation rows."
    )
    revision: str | None = option(None, "Branch, tag or commit of a hub dataset.")
    subset: str | None = option(None, "Configuration of a hub dataset that has several.")
    format: str = option(
        "auto",
        "Shape of a row; `auto` decides row by row.",
        choices=(
            "auto",
            "messages",
            "conversations",
            "alpaca",
            "prompt_completion",
            "text",
            "preference",
            "wikisql",
            "sharegpt",
        ),
    )
    roles: dict[str, str] = option(
        {}, "Names of your own for the roles of a turn, e.g. `{Doctor: assistant}`."
    )
    conversations_key: str = option(
        "conversations", "ShareGPT rows: the key that holds the turns, if it is named otherwise."
    )
    from_key: str = option("from", "ShareGPT turns: the key of the role.")
    value_key: str = option("value", "ShareGPT turns: the key of the text.")
    template: str | None = option(
        None,
        "Chat template: `null` (the model's own), `alpaca`, `chatml`, `llama2`, `llama3`, "
        "`mistral`, a `.jinja` file, or the template itself.",
    )
    train_on: str = option(
        "assistant",
        "Tokens that carry loss: those of every `assistant` turn, of the `last` one, or `all`.",
        choices=("assistant", "last", "all"),
    )
    overlong: str = option(
        "truncate_right",
        "Rows longer than `memory_profile.max_seq_length`: `error`, `drop`, `truncate_left`, "
        "`truncate_right`, or `split` into several.",
        choices=("error", "drop", "truncate_left", "truncate_right", "split"),
    )
    max_errors: Any = option(
        0,
        "Faulty rows to leave out before giving up: a number, or a share such as `5%`.",
        kind="int|share",
        minimum=0,
    )
    valid_fraction: float = option(
        0.1,
        "Share of the training rows set aside when there is no validation file.",
        minimum=0,
        below=1,
    )
    packing: str = option(
        "auto",
        "`segments`: the rows of a batch lie one behind the other and do not see one another; "
        "`none`: side by side, the shorter ones padded. The same batches and the same result; "
        "`auto`: `segments` on the CPU, where the model allows it.",
        choices=("auto", "none", "segments"),
    )
    share_prefixes: Any = option(
        "auto",
        "With segments: what rows of a batch begin with is computed once. The same result; "
        "`auto`: unless `lora.dropout` is to differ between them.",
        kind="bool|'auto'",
    )
    cache: bool = option(
        True, "Keep the checked and encoded rows in `paths.cache_dir` for the next run."
    )
    metric: str = option(
        "none",
        "Judge of generated answers: `exact_match`, `normalised_match` (case, punctuation and "
        "articles aside), `contains`, `contains_answer`, `json_valid`, `sql_execution`, "
        "`python_tests`, or `none`.",
        choices=METRICS,
    )
    database: str | None = option(
        None, "`sql_execution` only: `builtin:NAME` or an SQLite file to run the answers on."
    )
