"""What every request passes first."""

import asyncio

import pytest

from mlx_ft.errors import ConfigError
from mlx_ft.serve.limits import TooLarge
from mlx_ft.serve.security import Guard, Rules, is_loopback

KEY = "0123456789abcdef"


def ask(rules, path="/v1/models", headers=(), body=()):
    """(status, whether the app was reached)."""
    reached, sent = [], []
    parts = [*body]

    async def app(scope, receive, send):
        reached.append(scope["path"])
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive():
        part = parts.pop(0) if parts else b""
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message):
        sent.append(message)

    given = [(b"host", b"127.0.0.1:8080")] if not any(n == "host" for n, _ in headers) else []
    given += [(name.encode(), value.encode("latin-1")) for name, value in headers]
    scope = {"type": "http", "path": path, "headers": given}
    asyncio.run(Guard(app, rules)(scope, receive, send))
    return sent[0]["status"], bool(reached)


OPEN = Rules("127.0.0.1")
CLOSED = Rules("0.0.0.0", (KEY, KEY[::-1]), ("box.lan",))


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8080", 200), ("localhost", 200), ("LOCALHOST:1", 200), ("[::1]:8080", 200),
        ("evil.example", 421), ("evil.example:8080", 421), ("127.0.0.1.evil.example", 421),
        ("localhost.evil", 421), ("", 421), ("[::1", 200), ("[::2]", 421), ("127.0.0.2", 421),
    ],
)  # fmt: skip
def test_only_our_own_names(host, status):
    assert ask(OPEN, headers=[("host", host)]) == (status, status == 200)


def test_one_host_only():
    both = [("host", "localhost"), ("host", "evil.example")]
    assert ask(OPEN, headers=both)[0] == 421


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1:8080", 200), ("http://127.0.0.1:9", 403),
        ("https://127.0.0.1:8080", 403),
        ("http://evil.example", 403), ("null", 403), ("", 403),
    ],
)  # fmt: skip
def test_other_sites_pages_are_refused(origin, status):
    assert ask(OPEN, headers=[("origin", origin)])[0] == status


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("box.lan", "https://box.lan", 200), ("box.lan:8443", "https://box.lan:8443", 200),
        ("Box.lan", "http://Box.lan", 200),
        ("box.lan", "https://box.lan:8443", 403), ("box.lan", "https://evil.example", 403),
        ("box.lan", "ftp://box.lan", 403), ("localhost", "https://localhost", 403),
    ],
)  # fmt: skip
def test_the_page_behind_a_proxy_with_tls(host, origin, status):
    key = ("authorization", f"Bearer {KEY}")
    assert ask(CLOSED, headers=[("host", host), ("origin", origin), key])[0] == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([], 401),
        ([("authorization", f"Bearer {KEY}")], 200),
        ([("authorization", f"bearer {KEY[::-1]}")], 200),
        ([("authorization", f"Basic {KEY}")], 401),
        ([("authorization", KEY)], 401),
        ([("authorization", f"Bearer {KEY}x")], 401),
        ([("authorization", "Bearer é")], 401),
        ([("authorization", f"Bearer {KEY}"), ("authorization", "Bearer x")], 401),
    ],
)
def test_the_key_opens_everything_but_health_and_the_page(headers, status):
    given = [("host", "box.lan:8080"), *headers]
    for path in (
        "/v1/models",
        "/api/adapters",
        "/metrics",
        "/docs",
        "/openapi.json",
        "//",
        "/Health",
    ):
        assert ask(CLOSED, path, given)[0] == status
    for path in ("/health", "/", "/page/app.js"):
        assert ask(CLOSED, path, given)[0] == 200


@pytest.mark.parametrize(
    ("length", "status"), [("5", 200), ("101", 413), ("-1", 400), ("x", 400), ("1e2", 400)]
)
def test_lengths_are_believed_no_further_than_they_go(length, status):
    rules = Rules("127.0.0.1", body=100)
    assert ask(rules, headers=[("content-length", length)])[0] == status


def test_a_body_without_length_ends_at_the_limit():
    rules = Rules("127.0.0.1", body=100)
    assert ask(rules, body=[b"x" * 50, b"x" * 50])[0] == 200
    with pytest.raises(TooLarge):
        ask(rules, body=[b"x" * 50, b"x" * 51])


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "box.lan"])
def test_others_need_a_key(host):
    with pytest.raises(ConfigError, match="key"):
        Rules(host)
    Rules(host, (KEY,))
    assert not is_loopback(host)


def test_short_keys_are_refused():
    with pytest.raises(ConfigError, match="5 characters"):
        Rules("127.0.0.1", ("abcde",))


def test_files_may_be_larger_than_other_bodies():
    rules = Rules("127.0.0.1", body=100, upload=1000)
    kind = ("content-type", "multipart/form-data; boundary=x")
    for path, headers, status in (
        ("/v1/files", [kind], 200),
        ("/v1/files", [], 413),
        ("/v1/chat/completions", [kind], 413),
        ("/v1/files/x", [kind], 413),
    ):
        assert ask(rules, path, [*headers, ("content-length", "500")])[0] == status
    assert ask(rules, "/v1/files", [kind, ("content-length", "9" * 5000)])[0] == 413
