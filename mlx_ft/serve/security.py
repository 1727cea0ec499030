"""What every request passes before anything looks at it. Plain ASGI: no body is read here."""

from __future__ import annotations

import hmac
import ipaddress
import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlx_ft.errors import ConfigError
from mlx_ft.serve.limits import Body, Pace

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = frozenset({"/health"})  # asked by what watches the process, which has no key
PAGE = ("/", "/page/")  # static files without anything of the user's; they ask for the key
EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - as an address that is given, with a key
UPLOADS = ("/v1/files", "/api/training/data/upload")  # by multipart/form-data
LOCAL = ("localhost", "127.0.0.1", "::1")
NOSNIFF = (b"x-content-type-options", b"nosniff")


@dataclass(frozen=True)
class Rules:
    """hosts: what a browser may call this server. keys: any of them opens it; none: no key.

    body, upload: bytes of a request at most, and of one that brings a file. Raises ConfigError for
    an address that others can reach without a key.
    """

    host: str
    keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    body: int = 1 << 25
    upload: int = 1 << 27
    pace: Pace = field(default_factory=Pace)

    def __post_init__(self) -> None:
        if not is_loopback(self.host) and not self.keys:
            raise ConfigError(
                f"--host {self.host}: others could reach this server, and train and read with it. "
                "Give it a key (--api-key-file FILE, or MLX_FT_API_KEY), or leave --host at "
                "127.0.0.1"
            )
        if short := [key for key in self.keys if len(key) < 16]:
            raise ConfigError(
                f"an API key has {len(short[0])} characters; expected 16 or more. One is made by: "
                "python -c 'import secrets; print(secrets.token_urlsafe(32))'"
            )

    def limit(self, path: str, headers: Mapping[str, Sequence[str]]) -> int:
        """Bytes that the body of this request may have."""
        kind = next(iter(headers.get("content-type", [])), "").lower()
        uploads = path in UPLOADS and kind.startswith("multipart/form-data")
        return self.upload if uploads else self.body

    @property
    def names(self) -> frozenset[str]:
        """Names that a Host header may have."""
        own = () if self.host in EVERYWHERE else (self.host,)
        return frozenset(name.lower() for name in (*LOCAL, *own, *self.hosts))


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """Refuses foreign hosts (DNS rebinding) and origins, wrong keys, bodies that are too large."""

    def __init__(self, app: App, rules: Rules) -> None:
        self._app, self._rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI says."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        fault = self._fault(scope)
        if fault is not None:
            await _refuse(send, *fault)
            return
        body = Body(receive, self._rules.limit(scope["path"], _headers(scope)), self._rules.pace)
        await self._app(scope, body.receive, _plain(send))

    def _fault(self, scope: Scope) -> tuple[int, str, str] | None:
        headers = _headers(scope)
        hosts = headers.get("host", [])
        if len(hosts) != 1 or _host(hosts[0]) not in self._rules.names:
            return (
                421,
                "wrong_host",
                "this is not a name of this server; add it: --allow-host NAME",
            )
        origins = headers.get("origin", [])
        if any(origin not in self._origins(hosts[0]) for origin in origins):
            return 403, "wrong_origin", "requests of other sites' pages are refused"
        path = scope["path"]
        free = path in OPEN or path == PAGE[0] or path.startswith(PAGE[1])
        if self._rules.keys and not free and not self._has_key(headers):
            return 401, "invalid_api_key", "Authorization: Bearer KEY is missing or wrong"
        lengths = headers.get("content-length", [])
        if len(lengths) > 1 or any(not text.isdecimal() for text in lengths):
            return 400, "bad_length", "Content-Length is not a number"
        limit = self._rules.limit(path, headers)
        if lengths and (len(lengths[0]) > 20 or int(lengths[0]) > limit):
            return 413, "too_large", f"the body has more than {limit:,} bytes"
        return None

    def _origins(self, host: str) -> tuple[str, ...]:
        """What a page of this server says it comes from; behind a proxy with TLS, https."""
        allowed = _host(host) in {name.lower() for name in self._rules.hosts}
        return (f"http://{host}", *([f"https://{host}"] if allowed else []))

    def _has_key(self, headers: dict[str, list[str]]) -> bool:
        given = headers.get("authorization", [])
        if len(given) != 1:
            return False
        kind, _, key = given[0].partition(" ")
        # Each is compared, so that the time does not say which one it was near to.
        same = [hmac.compare_digest(key.strip().encode(), own.encode()) for own in self._rules.keys]
        return kind.lower() == "bearer" and any(same)


def _headers(scope: Scope) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    return found


def _host(header: str) -> str:
    """The name in a Host header, without its port."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.rpartition(":")[0].lower() if header.count(":") == 1 else header.lower()


async def _refuse(send: Send, status: int, code: str, message: str) -> None:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    body = json.dumps({"error": error}).encode()
    headers: Sequence[tuple[bytes, bytes]] = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),  # the rest of its body is not read
        *([(b"www-authenticate", b"Bearer")] if status == 401 else []),
    ]
    await send({"type": "http.response.start", "status": status, "headers": [*headers]})
    await send({"type": "http.response.body", "body": body})


def _plain(send: Send) -> Send:
    """Answers that no browser takes for something else than they say they are."""

    async def sent(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), NOSNIFF]
        await send(message)

    return sent
