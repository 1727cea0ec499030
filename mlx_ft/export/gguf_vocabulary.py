"""A tokenizer as GGUF's metadata, from the tokenizer.json of a model's folder.

Two kinds: byte-level BPE ("gpt2"), the counterpart of models/gguf_tokenizer.py, with which it
shares the ways to cut a text that llama.cpp knows by name; and SentencePiece's BPE ("llama").
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlx_ft.errors import ModelError
from mlx_ft.models.gguf_tokenizer import CONTROL, DIGITS, GPT2, PRE_TOKENIZERS, USER_DEFINED

NORMAL, UNKNOWN, UNUSED, BYTE = 1, 2, 5, 6  # tokenizer.ggml.token_type, with the two above
SPACE = "▁"
NEVER = -1e6  # the score of a piece that no merge makes
Step = tuple[Any, ...]  # of what cuts a text


def read(folder: Path, rows: int) -> dict[str, Any]:
    """What stands below `tokenizer.ggml`: model, pre, tokens, token_type, merges or scores, and
    add_space_prefix.

    rows: of the model's embedding; tokens that only it has are filled in as unused. Raises
    ModelError with everything that llama.cpp would tokenize differently.
    """
    path = folder / "tokenizer.json"
    try:
        content = json.loads(path.read_text("utf-8"))
        model, added = content["model"], content.get("added_tokens") or []
        tokens = {index: token for token, index in model["vocab"].items()}
        tokens |= {entry["id"]: entry["content"] for entry in added}
        special = {entry["id"]: bool(entry.get("special")) for entry in added}
        given = model.get("merges") or []
        merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in given]
        faults = _faults(content, merges)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{path} cannot be read as a tokenizer for GGUF: {type(error).__name__}: {error}"
        ) from None
    if beyond := [token for index, token in tokens.items() if index >= rows]:
        faults.append(f"{len(beyond)} tokens, {beyond[0]!r} first, have no row in the embedding")
    if faults:
        raise ModelError("this tokenizer cannot be written as GGUF:", faults)
    filled = [tokens.get(index, f"[PAD{index}]") for index in range(rows)]
    types = {
        index: CONTROL if is_special else USER_DEFINED for index, is_special in special.items()
    }
    types |= {index: UNUSED for index in range(rows) if index not in tokens}
    if not model.get("byte_fallback"):
        return {
            "model": "gpt2",
            "pre": pre_tokenizer(content.get("pre_tokenizer")),
            "tokens": filled,
            "token_type": [types.get(index, NORMAL) for index in range(rows)],
            "merges": [" ".join(merge) for merge in merges],
            "add_space_prefix": False,
        }
    types |= {i: BYTE for i, token in tokens.items() if re.fullmatch(r"<0x[0-9A-F]{2}>", token)}
    types |= {i: UNKNOWN for i, token in tokens.items() if token == model.get("unk_token")}
    return {
        "model": "llama",
        "pre": "default",
        "tokens": filled,
        "token_type": [types.get(index, NORMAL) for index in range(rows)],
        "scores": _scores(filled, merges),
        "add_space_prefix": space_prefix(content),
    }


def _faults(content: Mapping[str, Any], merges: Sequence[tuple[str, ...]]) -> list[str]:
    model, normalizer = content["model"], content.get("normalizer")
    kind = model.get("type", "BPE")
    if kind != "BPE":
        return [f"model: found {kind}; only BPE is written"]
    faults = []
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(key):
            faults.append(f"model.{key}: found {model[key]!r}; expected none")
    if model.get("byte_fallback"):
        return faults + _piece_faults(content, merges)
    # llama.cpp leaves Qwen's NFC out; texts that people type have that form already.
    if normalizer is not None and normalizer.get("type") != "NFC":
        faults.append(f"normalizer: found {normalizer.get('type')}; expected none, or NFC")
    if pre_tokenizer(content.get("pre_tokenizer")) is None:
        names = ", ".join(name for name in PRE_TOKENIZERS if name != "default")
        faults.append(f"pre_tokenizer: cuts texts in none of the ways that are known: {names}")
    return faults


def _piece_faults(content: Mapping[str, Any], merges: Sequence[tuple[str, ...]]) -> list[str]:
    """SentencePiece joins any two pieces whose sum is one, so every such pair has to be a merge."""
    faults = []
    if space_prefix(content) is None:
        faults.append("normalizer, pre_tokenizer: spaces are not handled as SentencePiece does")
    pieces, known = content["model"]["vocab"], set(merges)
    own = {entry["content"] for entry in content.get("added_tokens") or []}
    missing = [
        piece
        for piece in pieces
        if piece not in own
        for cut in range(1, len(piece))
        if piece[:cut] in pieces
        and piece[cut:] in pieces
        and not {piece[:cut], piece[cut:]} & own
        and (piece[:cut], piece[cut:]) not in known
    ]
    if missing:
        faults.append(f"merges: {len(missing)} ways to make a piece are none, {missing[0]!r} first")
    return faults


def _scores(tokens: Sequence[str], merges: Sequence[tuple[str, ...]]) -> list[float]:
    """The earlier a merge, the higher the score of what it makes."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault("".join(merge), rank)
    return [
        -float(ranks[token]) - 1 if token in ranks else 0.0 if len(token) == 1 else NEVER
        for token in tokens
    ]


def space_prefix(content: Mapping[str, Any]) -> bool | None:
    """Whether a text gets a space before it; None: spaces are not SentencePiece's.

    "first", as Mistral's newer tokenizers have it, is written as no space: llama.cpp knows only
    one after every control token, and a conversation begins with one.
    """
    normal = _parts(content.get("normalizer"), "normalizers")
    cuts = _parts(content.get("pre_tokenizer"), "pretokenizers")
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    if not cuts and normal in ([replaced], [{"type": "Prepend", "prepend": SPACE}, replaced]):
        return len(normal) == 2
    if normal or len(cuts) != 1 or cuts[0].get("type") != "Metaspace":
        return None
    if cuts[0].get("replacement") != SPACE or cuts[0].get("split") is not False:
        return None
    return {"always": True, "first": False, "never": False}.get(str(cuts[0].get("prepend_scheme")))


def _parts(found: Any, key: str) -> list[dict[str, Any]]:
    if not isinstance(found, dict):
        return []
    return list(found[key]) if found.get("type") == "Sequence" else [found]


def pre_tokenizer(found: Any) -> str | None:
    """llama.cpp's name for the way in which a tokenizer.json cuts texts; None: it has none."""
    steps = [_step(part) for part in _parts(found, "pretokenizers")]
    for name, rule in PRE_TOKENIZERS.items():
        if name != "default" and steps == _expected(rule):
            return name
    return None


def _expected(rule: str) -> Sequence[Step]:
    if rule == GPT2:
        return [("ByteLevel", False, True)]
    if rule == DIGITS:
        return [("Digits", True), ("ByteLevel", False, True)]
    return [("Split", rule, "isolated", False), ("ByteLevel", False, False)]


def _step(part: Mapping[str, Any]) -> Step:
    """The settings of a pre-tokenizer that decide where it cuts."""
    kind = part.get("type")
    if kind == "ByteLevel":
        return kind, bool(part.get("add_prefix_space", True)), bool(part.get("use_regex", True))
    if kind == "Digits":
        return kind, bool(part.get("individual_digits"))
    if kind == "Split":
        pattern = part.get("pattern")
        regex = pattern.get("Regex") if isinstance(pattern, dict) else None
        return kind, regex, str(part.get("behavior")).lower(), bool(part.get("invert"))
    return (kind,)
