"""Which tokens are to be learned, found by rendering a conversation up to each answer.

Each stage's text begins with the text of the stage before, and its tokens with the tokens before,
so what an answer adds is exactly what the model has to generate. Encoding whole stages, not
pieces, keeps the tokens those of the template's full text. Nothing is ever searched for.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from mlx_ft.data.jinja import Span
from mlx_ft.data.render import Renderer, Turn, as_turn, check_tools
from mlx_ft.data.rows import Conversation, Fault, RowError
from mlx_ft.data.tokens import Encoder


class Stage(NamedTuple):
    """A conversation rendered up to a point.

    adds: what it has beyond the stage before: a "prompt" (turns and the generation prompt), the
    "answer" to it, the "rest" (turns that nobody answers), or it is a "raw" text. turn: index of
    the message that answers.
    """

    text: str
    adds: Literal["prompt", "answer", "rest", "raw"]
    turn: int


class Sample(NamedTuple):
    """What becomes one sequence of tokens.

    learned: the turns that are targets; None for all tokens but those of `skipped` turns. marks:
    characters of the last stage's text that the template marks as generated; the stages before
    are the last prompt's.
    """

    stages: tuple[Stage, ...]
    learned: frozenset[int] | None
    skipped: frozenset[int] = frozenset()
    marks: tuple[Span, ...] | None = None


class Answer(NamedTuple):
    """Tokens [start, end) of an answer. stops: whether a control token ends it."""

    turn: int
    start: int
    end: int
    stops: bool


class Layout(NamedTuple):
    """A sample as tokens. targets: (T,) bool. endless: learned answers without an end."""

    tokens: list[int]
    targets: np.ndarray
    endless: int


def samples(renderer: Renderer, conversation: Conversation, train_on: str) -> list[Sample]:
    """A conversation as one sample; as one for each answer where the template rewrites turns.

    Raises RowError: the template refuses, or leaves the mask in doubt, or nothing is to be learned.
    """
    if conversation.text is not None:
        return [Sample((Stage(conversation.text, "raw", -1),), None)]
    messages = conversation.messages
    turns = [as_turn(message) for message in messages]
    answers = [i for i, message in enumerate(messages) if message.role == "assistant"]
    skipped = frozenset(i for i in answers if messages[i].weight == 0)
    learned = frozenset(answers[-1:] if train_on == "last" else answers) - skipped
    if not learned and train_on != "all":
        raise RowError(_nothing(train_on) if answers else _unanswered())
    stages = prompted(renderer, turns, conversation.tools, answers)
    if messages[-1].role != "assistant":
        text = renderer.text(turns, conversation.tools)
        stages.append(Stage(text, "rest", len(turns)))
    check_tools(renderer, conversation, stages[-1].text)
    broken = rewritten(stages)
    if train_on == "all":
        if broken and skipped:
            raise doubt(*broken, "so a turn of weight 0 cannot be left out")
        return [Sample(tuple(stages[-1:] if broken else stages), None, skipped)]
    if not broken:
        return [Sample(tuple(stages), learned)]
    marked = renderer.marked(turns, conversation.tools)
    if marked is not None:
        text, marks = marked
        # The prompt's own stages, to check that the last mark begins where generation would.
        prompt = tuple(stages[: 2 * len(answers) - 1])
        return [Sample((*prompt, Stage(text, "rest", -1)), learned, marks=tuple(marks))]
    return _apart(stages, answers, learned, skipped)


def prompted(
    renderer: Renderer,
    turns: Sequence[Turn],
    tools: Sequence[dict[str, object]],
    answers: list[int],
) -> list[Stage]:
    """The stages before and after each answer."""
    stages = []
    for i in answers:
        stages.append(Stage(renderer.text(turns[:i], tools, prompt=True), "prompt", i))
        stages.append(Stage(renderer.text(turns[: i + 1], tools), "answer", i))
    return stages


def rewritten(stages: Sequence[Stage]) -> tuple[str, str] | None:
    """The first two stages' texts of which the second does not begin with the first."""
    for before, after in itertools.pairwise(stages):
        if not after.text.startswith(before.text):
            return before.text, after.text
    return None


def layout(sample: Sample, encoder: Encoder) -> Layout:
    """A sample's tokens and targets. Raises RowError when the tokens leave the mask in doubt."""
    if sample.stages[0].adds == "raw":
        tokens = encoder.raw(sample.stages[0].text)
        stops = encoder.tokenizer.eos_token_id is not None
        return _layout(tokens, [Answer(-1, 0, len(tokens), stops)], sample)
    if sample.marks is not None:
        return _layout(*_by_marks(sample, sample.marks, encoder), sample)
    return _layout(*by_construction(sample.stages, encoder), sample)


def by_construction(stages: Sequence[Stage], encoder: Encoder) -> tuple[list[int], list[Answer]]:
    """The tokens of stages that none rewrites, and the answers among them."""
    tokens: list[int] = []
    found = []
    text, settled = "", 0
    for stage in stages:
        if stage.adds == "answer":
            settled = len(tokens)  # the whole prompt stays as generation sees it
        tokens = _extend(tokens, settled, text, stage.text, encoder)
        text = stage.text
        if stage.adds == "answer":
            end, stops = _end_of_turn(tokens, settled, encoder)
            found.append(Answer(stage.turn, settled, end, stops))
            settled = end
    return tokens, found


def last_prompt(stages: Sequence[Stage], encoder: Encoder) -> list[int]:
    """The tokens from which an answer is generated; the last stage is its prompt."""
    if rewritten(stages):
        return encoder.encode(stages[-1].text)
    return by_construction(stages, encoder)[0]


def doubt(before: str, after: str, so: str) -> RowError:
    """A row whose template renders a turn differently later on, with both texts."""
    return RowError(
        Fault(
            "mask_in_doubt",
            "the model's chat template renders a turn differently once others follow, "
            f"{so}: {difference(before, after)}",
        )
    )


def difference(before: str, after: str) -> str:
    """Two texts from shortly before the place where they part."""
    same = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), None)
    begin = max(0, (min(len(before), len(after)) if same is None else same) - 30)
    return f"{before[begin : begin + 80]!r} became {after[begin : begin + 80]!r}"


def _apart(
    stages: Sequence[Stage], answers: list[int], learned: frozenset[int], skipped: frozenset[int]
) -> list[Sample]:
    """One sample for each learned answer, with the turns before it as the template shows them."""
    prompts = {stage.turn: i for i, stage in enumerate(stages) if stage.adds == "prompt"}
    found = []
    for run in _adjacent(answers):
        pairs = [stages[prompts[i] : prompts[i] + 2] for i in run]
        if any(rewritten(pair) for pair in pairs):  # e.g. a template that merges adjacent answers
            pair = (pairs[0][0], pairs[-1][1])
            if (broken := rewritten(pair)) or 0 < len(skipped.intersection(run)) < len(run):
                raise doubt(*(broken or rewritten(pairs[0]) or ("", "")), "so the mask is in doubt")
            if run[-1] in learned:
                found.append(Sample(pair, learned & {run[-1]}))
            continue
        for i in learned.intersection(run):
            chain = stages[: prompts[i] + 1]
            begin = prompts[i] if rewritten(chain) else 0
            found.append(Sample(tuple(stages[begin : prompts[i] + 2]), frozenset([i])))
    return sorted(found, key=lambda sample: sample.stages[-1].turn)


def _adjacent(answers: list[int]) -> list[list[int]]:
    runs: list[list[int]] = []
    for i in answers:
        if runs and runs[-1][-1] == i - 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    return runs


def _layout(tokens: list[int], answers: list[Answer], sample: Sample) -> Layout:
    everything = sample.learned is None
    targets = np.full(len(tokens), everything)
    endless = 0
    for turn, start, end, stops in answers:
        if everything:
            targets[start:end] = turn not in sample.skipped
        elif turn in (sample.learned or ()):
            targets[start:end] = True
        else:
            continue
        endless += not stops
    targets[:1] = False  # nothing predicts the first token
    return Layout(tokens, targets, endless)


def _extend(tokens: list[int], settled: int, text: str, longer: str, encoder: Encoder) -> list[int]:
    """The tokens of `longer`, which begins with `text`, beginning with the settled ones of it."""
    whole = encoder.encode(longer)
    if whole[:settled] == tokens[:settled]:
        return whole
    # A token reaches over the boundary, e.g. the prompt's last newline and the answer's first.
    # Generation starts from the prompt's own tokens, so the answer is encoded as a piece.
    pieces = tokens + encoder.plain(longer[len(text) :])
    if encoder.tokenizer.decode(pieces) == encoder.tokenizer.decode(whole):
        return pieces
    raise RowError(
        Fault(
            "mask_in_doubt",
            "the tokenizer joins text across the border of a turn, so the tokens to learn are in "
            f"doubt: ...{text[-40:]!r} goes on as {longer[len(text) :][:40]!r}...; "
            "remove white space at the start and end of the turns",
        )
    )


def _end_of_turn(tokens: list[int], start: int, encoder: Encoder) -> tuple[int, bool]:
    """Where the turn that began at `start` ends, and whether a control token ends it.

    What a template writes after the control token, such as ChatML's newline, is never generated.
    """
    end = len(tokens)
    while end > start and encoder.is_blank(tokens[end - 1]):
        end -= 1
    if end > start and encoder.is_control(tokens[end - 1]):
        return end, True
    return len(tokens), False


def _by_marks(
    sample: Sample, marks: Sequence[Span], encoder: Encoder
) -> tuple[list[int], list[Answer]]:
    """For templates that rewrite earlier turns: the targets between their generation marks."""
    *stages, whole = sample.stages
    tokens, prompt = encoder.encode(whole.text), last_prompt(stages, encoder)
    spans = encoder.marked(whole.text, marks) or []
    shift = len(tokens) - len(encoder.plain(whole.text))  # a BOS that the template leaves out
    turns = [stage.turn for stage in stages if stage.adds == "prompt"]
    found = []
    for turn, (start, end) in zip(turns, spans, strict=False):
        start, end = start + shift, end + shift
        # Some marks leave the end-of-turn token out: without it the model never learns to stop.
        if end < len(tokens) and not encoder.is_control(tokens[end - 1]):
            end += encoder.is_control(tokens[end])
        end, stops = _end_of_turn(tokens[:end], start, encoder)
        found.append(Answer(turn, start, end, stops))
    if len(spans) != len(turns) or tokens[: found[-1].start] != prompt:
        decode = encoder.tokenizer.decode
        raise RowError(
            Fault(
                "mask_in_doubt",
                f"the chat template's generation marks give {len(spans)} spans for {len(turns)} "
                "assistant turns, or the last one does not begin where generation would: "
                f"{difference(decode(prompt), decode(tokens))}",
            )
        )
    return tokens, found


def _nothing(train_on: str) -> Fault:
    which = "the last assistant turn has" if train_on == "last" else "all assistant turns have"
    return Fault("no_target", f"{which} weight 0, so nothing is to be learned")


def _unanswered() -> Fault:
    return Fault("no_assistant", "the row has no assistant turn, so nothing is to be learned")
