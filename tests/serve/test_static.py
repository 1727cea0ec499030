"""The page's files: what kind they are, who may have them, and that nothing else is among them."""

import re
from contextlib import closing
from http.client import HTTPConnection

import pytest

from mlx_ft.serve import static
from mlx_ft.serve.security import Rules
from tests.serve.served import fine, refused

KEY = "0123456789abcdef"


def raw(served, path):
    """The status of a path that is sent as it is, not mended by a client."""
    with closing(HTTPConnection("127.0.0.1", served.port, timeout=20)) as connection:
        connection.putrequest("GET", path)
        connection.endheaders()
        return connection.getresponse().status


PATHS = {f"/page/{name}": static.FILES[name] for name in static.FILES}


@pytest.mark.parametrize("path", ["/", *PATHS])
def test_each_file_is_what_it_says_and_may_do_nothing_more(served, path):
    found = PATHS.get(path, static.FILES["index.html"])
    response = served.client.get(path)
    assert response.status_code == 200
    assert response.content == found.content
    kinds = {
        "html": "text/html",
        "css": "text/css",
        "js": "text/javascript",
        "svg": "image/svg+xml",
    }
    suffix = path.rpartition(".")[2] if path != "/" else "html"
    assert response.headers["content-type"].startswith(kinds[suffix])
    policy = dict(
        part.split(" ", 1) for part in response.headers["content-security-policy"].split("; ")
    )
    assert policy == {
        "default-src": "'none'", "script-src": "'self'", "style-src": "'self'",
        "connect-src": "'self'", "img-src": "'self' data:", "frame-ancestors": "'none'",
        "base-uri": "'none'", "form-action": "'none'", "require-trusted-types-for": "'script'",
    }  # fmt: skip
    assert response.headers.get_list("x-content-type-options") == ["nosniff"]
    assert response.headers["referrer-policy"] == "no-referrer"


def test_what_a_browser_has_is_not_sent_again(served):
    mark = served.client.get("/page/app.js").headers["etag"]
    for known in (mark, f'"other", {mark}'):
        response = served.client.get("/page/app.js", headers={"if-none-match": known})
        assert (response.status_code, response.content) == (304, b"")
        assert response.headers["etag"] == mark
        assert "content-security-policy" in response.headers
    assert served.client.get("/page/app.js", headers={"if-none-match": '"x"'}).status_code == 200
    marks = [served.client.get(path).headers["etag"] for path in PATHS]
    assert len({*marks}) == len(PATHS)


@pytest.mark.parametrize(
    "name",
    ["", "nothing.js", "../static.py", "..%2fstatic.py", "%2e%2e/static.py", "..\\static.py",
     "%2e%2e%2fstatic.py", ".", "..", "/etc/passwd", "%2fetc%2fpasswd", "app.js/", "app.js%00",
     "APP.JS", "page/app.js", "sub/../app.js"],
)  # fmt: skip
def test_nothing_else_is_there(served, name):
    assert raw(served, f"/page/{name}") == 404


def test_only_files_of_known_kinds_are_taken(tmp_path):
    for name in ("a.js", "b.css", "c.py", ".d", "e.pem"):
        (tmp_path / name).write_text("x")
    (tmp_path / "folder").mkdir()
    assert set(static.load(tmp_path)) == {"a.js", "b.css"}


def test_the_page_loads_without_the_key_and_nothing_behind_it_does(serve):
    served = serve(rules=Rules("127.0.0.1", (KEY,)))
    for path in ("/", *PATHS):
        assert served.client.get(path).status_code == 200
    refused(served.client.post("/"), 405)
    refused(served.client.get("/page/nothing"), 404)
    for path in ("//", "/page", "/v1/models", "/page/../v1/models", "/Page/app.js", "/docs"):
        assert raw(served, path) in (401, 404), path
    # Under /page/ there is nothing but the program's own files.
    assert [route.path for route in static.router.routes] == ["/", "/page/{name}"]
    refused(served.client.get("/", headers={"host": "evil.example"}), 421)


def test_the_page_is_of_its_own_files_alone():
    index = static.FILES["index.html"].content.decode()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=", index)
    linked = re.findall(r'(?:src|href)="(/page/[^"]+)"', index)
    assert {"/page/app.js", "/page/page.css"} <= set(linked) <= set(PATHS)
    for name, found in static.FILES.items():
        text = found.content.decode()
        assert len(text.splitlines()) < 300
        assert not re.search(r"(?:https?:)?//(?!www\.w3\.org/2000/svg)[a-z0-9-]+\.[a-z]", text), (
            name
        )
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", text
        )
        for imported in re.findall(r'from "\./([^"]+)"', text):
            assert imported in static.FILES
    ids = re.findall(r'\bid="([^"]+)"', index)
    assert len(ids) == len(set(ids))


def test_paths_of_programs_know_nothing_of_it(served):
    paths = fine(served.client.get("/openapi.json"))["paths"]
    assert not [path for path in paths if path == "/" or path.startswith("/page")]
