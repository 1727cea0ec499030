"""Names that come from outside: what they may look like, and where they may point."""

from __future__ import annotations

import re
import secrets
from pathlib import Path

from mlx_ft.errors import UserError

LONGEST = 100
# Neither a path nor hidden, and safe in a header, a URL and any file system.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# Windows takes these for devices, with any suffix.
_DEVICES = re.compile(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")
_ID = re.compile(r"[a-z]+-[0-9a-f]{24}")


class BadName(UserError):
    """A name that could be more than a name."""


def checked(name: object, what: str = "name") -> str:
    """`name`, if it is one. Raises BadName."""
    good = (
        isinstance(name, str)
        and len(name) <= LONGEST
        and _NAME.fullmatch(name) is not None
        and not name.endswith(".")
        and _DEVICES.fullmatch(name) is None
    )
    if not good:
        shown = repr(name)[:80]
        raise BadName(
            f"{what}: found {shown}; expected letters, digits, '.', '_' and '-', at most "
            f"{LONGEST}, the first one a letter or a digit"
        )
    assert isinstance(name, str)
    return name


def made(kind: str) -> str:
    """A new id such as `file-0a1b...`, that nobody can guess."""
    return f"{kind}-{secrets.token_hex(12)}"


def is_id(text: str, kind: str) -> bool:
    """Whether `made(kind)` could have given it."""
    return text.startswith(f"{kind}-") and _ID.fullmatch(text) is not None


def inside(folder: Path, *parts: str) -> Path:
    """The place of checked names in a folder, links resolved. Raises BadName when it is outside."""
    place = folder.joinpath(*parts)
    if not place.resolve().is_relative_to(folder.resolve()) or place.resolve() == folder.resolve():
        raise BadName(f"{'/'.join(parts)} is not in {folder.name}")
    return place
