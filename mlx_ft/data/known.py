"""What a run has to know of a tokenizer, remembered from run to run.

Where the rows are encoded already, the tokenizer itself is not read before something is generated:
transformers takes a second to import.
"""

from __future__ import annotations

import functools
import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlx_ft import durable
from mlx_ft.data import template
from mlx_ft.data.template import TemplateChoice
from mlx_ft.data.tokens import Tokenizer
from mlx_ft.deferred import Deferred


@dataclass(frozen=True)
class Known:
    """fingerprint: tells the tokenizer, with this template, from others."""

    fingerprint: str
    template: TemplateChoice
    pad_token_id: int | None
    eos_token_id: int | None


def know(
    tokenizer: Tokenizer | Deferred[Tokenizer], choice: str | None, folder: Path | None
) -> Known:
    """What is to be known of a tokenizer, which gets its template: at once, or once it is read.

    choice: `data.template`. folder: where it is remembered; None: nowhere. Raises ConfigError.
    """
    if not isinstance(tokenizer, Deferred):
        return _look(tokenizer, choice)
    file = None if folder is None else _file(folder, tokenizer.key, choice)
    known = None if file is None or tokenizer.made else _recall(file)
    if known is not None:
        chosen = known.template
        tokenizer.then(lambda read: template.put(read, chosen))
        return known
    known = _look(tokenizer.get(), choice)
    if file is not None:
        with suppress(OSError):  # the next run reads the tokenizer again
            file.parent.mkdir(parents=True, exist_ok=True)
            content = json.dumps(asdict(known))
            sealed = {"sha256": _sha256(content), "content": content}
            durable.write(file, json.dumps(sealed).encode())
    return known


def _look(tokenizer: Tokenizer, choice: str | None) -> Known:
    chosen = template.install(tokenizer, choice)
    own: Any = tokenizer
    pad = getattr(own, "pad_token_id", None)
    return Known(_fingerprint(tokenizer, chosen.text), chosen, pad, own.eos_token_id)


def _file(folder: Path, key: str, choice: str | None) -> Path | None:
    """The file for this tokenizer and template; None: only a look tells what it would hold."""
    text = choice
    if choice is not None and choice not in template.NAMED and "{" not in choice:
        try:
            text = Path(choice).expanduser().read_text("utf-8")
        except (OSError, ValueError, RuntimeError):
            return None
    parts = json.dumps([key, code(), choice, text])
    return folder / f"{_sha256(parts)[:24]}.json"


def _recall(file: Path) -> Known | None:
    try:
        sealed = json.loads(file.read_text("utf-8"))
        if sealed["sha256"] != _sha256(sealed["content"]):
            return None
        content = json.loads(sealed["content"])
        return Known(**{**content, "template": TemplateChoice(**content["template"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


@functools.cache
def code() -> str:
    """Tells versions of this package apart: what reads and encodes rows decides what they become.

    Without it, the rows of an earlier version would be taken from the cache for this one's.
    """
    folder = Path(__file__).parent
    files = sorted([*folder.rglob("*.py"), *folder.rglob("*.jinja")])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _fingerprint(tokenizer: Any, template_text: str) -> str:
    """Tells tokenizers apart: vocabulary, merges, special tokens and template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab())
    ends = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.all_special_tokens
    parts = (text, template_text, *ends)
    return hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", "replace")).hexdigest()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()
