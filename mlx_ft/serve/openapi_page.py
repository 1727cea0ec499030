"""The OpenAPI document as a page: no script, nothing from another server."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping
from typing import Any

POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #8888; }
summary { cursor: pointer; padding: .25rem 0; }
code, pre { font: 14px/1.4 ui-monospace, monospace; }
pre { overflow: auto; padding: .5rem; background: #8882; max-height: 30rem; }
b { display: inline-block; min-width: 4.5rem; }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd; } }
"""
METHODS = ("get", "post", "put", "patch", "delete")


def page(document: Mapping[str, Any]) -> str:
    """HTML of an OpenAPI document."""
    info = document["info"]
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{_text(info['title'])}</title>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<style>{STYLE}</style><h1>{_text(info['title'])} {_text(info['version'])}</h1>"
        f"<p>{_text(info.get('description', ''))}</p>"
        "<p>For programs: <a href='/openapi.json'>/openapi.json</a></p>"
        + "".join(_sections(document))
        + "</html>"
    )


def _sections(document: Mapping[str, Any]) -> Iterator[str]:
    groups: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method in METHODS:
            if method in methods:
                about = methods[method]
                tag = next(iter(about.get("tags", [])), "others")
                groups.setdefault(tag, []).append(_operation(path, method, about))
    for tag, found in groups.items():
        yield f"<h2>{_text(tag)}</h2>" + "".join(found)
    schemas = document.get("components", {}).get("schemas", {})
    yield "<h2>schemas</h2>"
    for name, schema in schemas.items():
        yield f"<details><summary>{_text(name)}</summary>{_json(schema)}</details>"


def _operation(path: str, method: str, about: Mapping[str, Any]) -> str:
    shown = {key: about[key] for key in ("parameters", "requestBody", "responses") if key in about}
    return (
        f"<details><summary><b>{method.upper()}</b> <code>{_text(path)}</code> "
        f"{_text(about.get('summary', ''))}</summary>"
        f"<p>{_text(about.get('description', ''))}</p>{_json(shown)}</details>"
    )


def _json(value: Any) -> str:
    return f"<pre>{_text(json.dumps(value, indent=1))}</pre>"


def _text(value: str) -> str:
    return html.escape(value)
