"""The web page: a few files that are part of the program, and hold nothing of the user's.

They are the only answers, beside /health, that ask for no key; the page asks for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

FOLDER = Path(__file__).parent / "page"
INDEX = "index.html"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Only its own files run, and no string becomes HTML, whatever an adapter or a text is called.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'; "
    "require-trusted-types-for 'script'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",  # kept, and asked for again by its mark: a new version shows
}
router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class File:
    """One of them. mark: its ETag."""

    content: bytes
    kind: str
    mark: str


def load(folder: Path) -> Mapping[str, File]:
    """The files of a folder by name: what is not among them cannot be asked for."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in TYPES:
            content = path.read_bytes()
            mark = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            found[path.name] = File(content, TYPES[path.suffix], mark)
    return found


FILES = load(FOLDER)


@router.get("/")
async def index(request: Request) -> Response:
    """The page itself."""
    return _answer(request, FILES[INDEX])


@router.get("/page/{name}")
async def file(name: str, request: Request) -> Response:
    """What it is made of."""
    if name not in FILES:
        raise HTTPException(404)
    return _answer(request, FILES[name])


def _answer(request: Request, found: File) -> Response:
    headers = {**HEADERS, "etag": found.mark}
    known = [mark.strip() for mark in request.headers.get("if-none-match", "").split(",")]
    if found.mark in known:
        return Response(status_code=304, headers=headers)
    return Response(found.content, headers={**headers, "content-type": found.kind})
