"""Values of environment variables and passwords: kept out of whatever is shown or saved."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

_LOOKUP = re.compile(r"\$\{oc\.env:\w+,?([^{}]*)\}")  # group: the default
# As SQLAlchemy reads them: a password may hold anything but `@`. Digits before `/` are a port.
_PASSWORD = re.compile(
    r"://[^/\s:@]*:(?!\d+/)[^\s@]+@|[?&]\w*(password|token|secret)\w*=[^&\s]", re.I
)
_TOKEN = re.compile(r"(?=.*\d)(?=.*[A-Za-z])[\w-]{16,}")  # as chat services put into addresses
# Whose addresses are secret as a whole.
_CHATS = ("hooks.slack.com/services/", "discord.com/api/webhooks/", "webhook.office.com/")


def lookup(name: str, *default: Any) -> str:
    """An environment lookup as text; takes the place of OmegaConf's own resolver."""
    return "${oc.env:" + ",".join([name, *map(_quoted, default)]) + "}"


def _quoted(default: Any) -> str:
    if default is None:
        return "null"
    text = str(default)
    if re.fullmatch(r"[\w./:-]+", text) and text.lower() not in ("null", "true", "false"):
        return text
    return "'" + text.replace("'", "\\'") + "'"


def source(text: Any) -> str:
    """The first environment variable in this text, without its default: `${oc.env:NAME}`."""
    found = re.search(r"\$\{oc\.env:([^,}]*)", str(text))
    return f"${{oc.env:{found[1]}}}" if found else "the environment"


def hide(sentence: str, values: Mapping[str, Any], texts: Mapping[str, Any]) -> str:
    """The sentence with every value of a key that is in `texts` replaced by that text.

    values: those that the sentence is about, by key.
    """
    for name in values.keys() & texts.keys():
        value = values[name]
        forms = [repr(value), str(value)]
        if isinstance(value, float):
            forms.append(f"{value:g}")
        for form in forms:
            word = rf"(?<![\w.]){re.escape(form)}(?![\w.])"
            sentence = re.sub(word, lambda _: source(texts[name]), sentence)  # noqa: B023
    return sentence


def _own(value: str | None, saved: str | None) -> str:
    """What of a value is not from the environment."""
    return (value or "") if saved is None else _LOOKUP.sub(r"\1", saved)


def password_fault(uri: str | None, saved: str | None) -> str | None:
    """What is wrong with a `tracking.uri` that holds a password itself.

    saved: with its `${oc.env:...}` as text, as it would be saved; None: it has none.
    """
    if not _PASSWORD.search(_own(uri, saved)):
        return None
    return (
        "holds a password, which would be saved with the run. Put the whole address into an "
        "environment variable and write 'tracking.uri=${oc.env:MLFLOW_TRACKING_URI}', quoted, or "
        "the shell takes it apart"
    )


def webhook_fault(address: str | None, saved: str | None) -> str | None:
    """What is wrong with a `tracking.webhook`; never quotes it, as it may be a secret.

    saved: as for `password_fault`.
    """
    if address is None:
        return None
    try:
        parts = urlsplit(address)
        good = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:
        good = False
    if not good or re.search(r"\s", address):
        return "expected an address that begins with http:// or https://"
    shown = _own(address, saved)
    chat = any(host in shown for host in _CHATS)
    words = re.split(r"[^\w-]", shown)
    if not (chat or _PASSWORD.search(shown) or any(map(_TOKEN.fullmatch, words))):
        return None
    return (
        "holds what looks like a password or token, which would be saved with the run. Put the "
        "whole address into an environment variable and write "
        "'tracking.webhook=${oc.env:MLX_FT_WEBHOOK,null}', quoted, or the shell takes it apart"
    )
