"""What a person should know about the data, in sentences: notes of fact, and recommendations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mlx_ft.config.schema import Config, DataConfig

FEW_ROWS = 100
IMBALANCE = 4.0
HIGH_RATE = 2e-3
LITTLE_WAY = 2e-3  # steps x learning rate: Adam moves a weight by at most about that much
FEW_STEPS = 20
MANY_EPOCHS = 10
MUCH_PADDING = 0.25
LIKENESS = 0.02  # of the rows that judge
SHOWN = 5  # labels from either end

Report = Mapping[str, Any]


def notes(report: Report, config: DataConfig) -> list[str]:
    """Everything that happened to rows and that nobody asked for."""
    return [*_file_notes(report), *_row_notes(report, config), *_overlap_notes(report)]


def _file_notes(report: Report) -> Iterator[str]:
    for file in report["files"]:
        if file["blank_lines"]:
            yield f"{file['path']}: {file['blank_lines']} blank line(s) skipped."


def _row_notes(report: Report, config: DataConfig) -> Iterator[str]:
    rows = report["rows"]
    if rows["set_aside"]:
        used = report["splits"]["train"]["rows"] + report["splits"]["valid"]["rows"]
        used -= report["splits"]["train"]["set_aside"] + report["splits"]["valid"]["set_aside"]
        yield (
            f"{rows['set_aside']} of {rows['rows']} rows are labelled undesirable and left aside: "
            f"supervised training learns from the {used} others."
        )
    if rows["dropped"]:
        yield (
            f"{rows['dropped']} of {rows['rows']} rows are longer than "
            f"memory_profile.max_seq_length={report['max_seq_length']} and dropped (data.overlong)."
        )
    pairs = sum(file["formats"].get("preference", 0) for file in report["files"])
    if pairs:
        yield (
            f"{_many(pairs, 'row is a preference pair', 'rows are preference pairs')}: supervised "
            "training learns from the chosen answers; the rejected ones are for preference "
            "training."
        )
    if controls := report["control_tokens"]["rows"]:
        yield (
            f"{_many(controls, 'row holds', 'rows hold')} text that the tokenizer reads as a "
            f"control token, first {report['control_tokens']['first']}."
        )
    for name in ("train", "valid"):
        stats = report["splits"][name]
        title = {"train": "training", "valid": "validation"}[name]
        used = stats["rows"] - stats["set_aside"]
        if stats["examples"] > used:
            yield f"{_many(used, f'{title} row')} became {stats['examples']} examples."
        if stats["truncated_rows"]:
            yield (
                f"{stats['truncated_rows']} of {stats['rows']} {title} rows are longer than "
                f"memory_profile.max_seq_length={report['max_seq_length']}: "
                f"{stats['truncated_tokens']} tokens cut off (data.overlong={config.overlong})."
            )
        if stats["endless_turns"]:
            yield (
                f"{_many(stats['endless_turns'], f'{title} answer ends', f'{title} answers end')} "
                "without a control token, so the "
                "model does not learn where to stop."
            )
        if stats["duplicates"]:
            yield f"{stats['duplicates']} of {stats['rows']} {title} rows repeat another one."


def _overlap_notes(report: Report) -> Iterator[str]:
    for name, found in report["overlap"].items():
        if not found["exact"] and found["near"] <= LIKENESS * found["rows"]:
            continue  # so few move no figure; the report counts them
        title = {"valid": "validation", "test": "test"}[name]
        counts = [
            f"{count} {text}"
            for count, text in (
                (found["exact"], "are also training rows"),
                (found["near"], "say nearly what a training row says"),
            )
            if count
        ]
        flatters = "flatter" if found["exact"] else "may flatter"
        yield (
            f"Of {found['rows']} {title} rows {' and '.join(counts)}: figures on them {flatters} "
            f"the model. First: {' is like '.join(found['first'][0])}."
        )


def recommendations(report: Report, config: DataConfig) -> list[str]:
    """What a person would be told to look at before training."""
    train = report["splits"]["train"]
    if not train["examples"]:
        return []
    return [*_size_advice(report, train), *_content_advice(report, train, config)]


def _size_advice(report: Report, train: Report) -> Iterator[str]:
    used = train["rows"] - train["set_aside"]
    if used < FEW_ROWS:
        yield (
            f"{_many(used, 'training row is', 'training rows are')} few: below "
            f"{FEW_ROWS} a model mostly learns the form of the answers. Add rows, and watch the "
            "validation loss for overfitting."
        )
    if not report["splits"]["valid"]["examples"]:
        yield (
            "There are no validation rows, so nothing shows when the model overfits: set "
            "data.valid_fraction above 0, or give data.valid_path."
        )
    if train["truncated_rows"] > 0.05 * train["rows"]:
        yield (
            f"{_many(train['truncated_rows'], 'row is', 'rows are')} cut: raise "
            "memory_profile.max_seq_length, or take data.overlong=split, which loses no target."
        )
    if train["length"]["p50"] < 0.25 * train["length"]["p99"]:
        yield (
            f"Lengths differ widely (median {train['length']['p50']:.0f}, 99th percentile "
            f"{train['length']['p99']:.0f} tokens): batches are made of rows of like length."
        )


def _content_advice(report: Report, train: Report, config: DataConfig) -> Iterator[str]:
    labels = train["labels"]
    if len(labels) > 1 and max(labels.values()) > IMBALANCE * min(labels.values()):
        ordered = sorted(labels.items(), key=lambda item: (-item[1], item[0]))
        shown = ordered if len(ordered) <= 2 * SHOWN else [*ordered[:SHOWN], *ordered[-SHOWN:]]
        shares = ", ".join(f"{label} {count}" for label, count in shown)
        shares += f", {len(ordered) - len(shown)} more in between" if shown != ordered else ""
        yield f"The labels are out of balance ({shares}): the rare ones will be learned least."
    if train["near_duplicates"] > 0.05 * train["rows"]:
        yield (
            f"{_many(train['near_duplicates'], 'training row is', 'training rows are')} nearly "
            "like another one: such rows count several times in the loss. Remove them, unless that "
            "is meant."
        )
    if train["loss_share"] < 0.05:
        yield (
            f"Only {train['loss_share']:.1%} of the tokens carry loss: most of the time goes into "
            "prompts. Shorten what all rows share."
        )
    if train["stop_coverage"] < 1 and config.template is None:
        yield "Choose a data.template whose answers end with a token that stops generation."
    asked, answered = (report["scripts"].get(role, {}) for role in ("user", "assistant"))
    if asked and answered and next(iter(asked)) != next(iter(answered)):
        yield (
            f"Users write mostly {next(iter(asked))} script, assistants {next(iter(answered))}: "
            "make sure that this is meant."
        )


def _many(count: int, one: str, more: str = "") -> str:
    return f"{count} {one if count == 1 else more or one + 's'}"


def plan_advice(config: Config, steps: int, epochs: float, padding: float) -> list[str]:
    """What a person would say of these settings for so many steps and epochs.

    The bounds are those of "LoRA Without Regret" (Schulman et al. 2025) and of practice: LoRA wants
    about ten times the learning rate of full fine-tuning.
    """
    optimizer, found = config.optimizer, []
    adam = optimizer.name in ("adam", "adamw")
    if adam and optimizer.learning_rate > HIGH_RATE:
        found.append(
            f"optimizer.learning_rate={optimizer.learning_rate:g} is high for LoRA with "
            f"{optimizer.name}: 1e-4 to 1e-3 is usual."
        )
    if adam and optimizer.learning_rate * steps < LITTLE_WAY:
        found.append(
            f"{_many(steps, 'step')} with optimizer.learning_rate={optimizer.learning_rate:g} "
            f"hardly {'moves' if steps == 1 else 'move'} the adapter: take more steps, or a higher "
            "rate."
        )
    if steps < FEW_STEPS:
        found.append(
            f"{_many(steps, 'step is', 'steps are')} few: warm-up and decay take most of them. "
            "Raise train.epochs, or lower memory_profile.grad_accumulation_steps."
        )
    if epochs > MANY_EPOCHS:
        found.append(
            f"Every row is shown {epochs:.0f} times: watch the validation loss, or set "
            "train.early_stopping_patience."
        )
    if padding > MUCH_PADDING and config.data.packing == "none":
        found.append(
            f"{padding:.0%} of a batch is padding: the lengths of the rows differ too much for "
            "batches of this size. data.packing=segments wastes nothing, and a smaller "
            "memory_profile.micro_batch_size with more grad_accumulation_steps less."
        )
    return found
