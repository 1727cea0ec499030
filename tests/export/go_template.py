"""Go's text/template as far as our templates use it: to see what Ollama would render.

tests/peers/go_templates.sh has the same rendered by Go itself.
"""

import re
from collections.abc import Iterator
from typing import Any

ACTION = re.compile(r"\{\{(- )?\s*(.*?)\s*( -)?\}\}", re.DOTALL)


def render(template: str, messages: list[dict[str, str]]) -> str:
    """As Ollama calls it: turns of one role are joined, system turns are also `.System`."""
    return _run(_parse(iter(_pieces(template)))[0], values(messages), {})


def values(messages: list[dict[str, str]]) -> dict[str, Any]:
    joined: list[dict[str, str]] = []
    for turn in messages:
        if joined and joined[-1]["Role"] == turn["role"]:
            joined[-1]["Content"] += "\n\n" + turn["content"]
        else:
            joined.append({"Role": turn["role"], "Content": turn["content"]})
    system = [turn["content"] for turn in messages if turn["role"] == "system"]
    return {"System": "\n\n".join(system), "Messages": joined}


def _pieces(template: str) -> Iterator[tuple[str, str]]:
    position, trim = 0, False
    for match in ACTION.finditer(template):
        text = template[position : match.start()]
        text = text.lstrip(" \t\r\n") if trim else text
        yield "text", text.rstrip(" \t\r\n") if match[1] else text
        yield "action", match[2]
        position, trim = match.end(), bool(match[3])
    rest = template[position:]
    yield "text", rest.lstrip(" \t\r\n") if trim else rest


def _parse(pieces: Iterator[tuple[str, str]]) -> tuple[list[Any], str]:
    """Nodes up to the `end` or `else` that closes them, and that one."""
    nodes: list[Any] = []
    for kind, content in pieces:
        word = content.split(" ")[0] if kind == "action" else ""
        if kind == "text":
            nodes.append(content)
        elif word in ("end", "else"):
            return nodes, content
        elif word in ("range", "if"):
            nodes.append(_block(word, content.removeprefix(word).strip(), pieces))
        else:
            nodes.append(("value", content))
    return nodes, ""


def _block(word: str, condition: str, pieces: Iterator[tuple[str, str]]) -> Any:
    body, closing = _parse(pieces)
    otherwise: list[Any] = []
    if closing.startswith("else if"):
        otherwise = [_block("if", closing.removeprefix("else if").strip(), pieces)]
    elif closing == "else":
        otherwise, _ = _parse(pieces)
    return word, condition, body, otherwise


def _run(nodes: list[Any], dot: Any, names: dict[str, Any]) -> str:
    names = {"$": dot, **names}
    text = ""
    for node in nodes:
        if isinstance(node, str):
            text += node
        elif node[0] == "value":
            text += str(_value(node[1], dot, names))
        elif node[0] == "if":
            branch = node[2] if _value(node[1], dot, names) else node[3]
            text += _run(branch, dot, names)
        else:
            named, _, source = node[1].rpartition(":=")
            for index, item in enumerate(_value(source.strip(), dot, names)):
                own = dict(zip((n.strip() for n in named.split(",")), (index, item), strict=False))
                text += _run(node[2], item, {**names, **own})
    return text


def _value(text: str, dot: Any, names: dict[str, Any]) -> Any:
    words = re.findall(r'"[^"]*"|[()]|[^\s()]+', text)
    value, rest = _call(words, dot, names)
    assert not rest, text
    return value


def _call(words: list[str], dot: Any, names: dict[str, Any]) -> tuple[Any, list[str]]:
    head, rest = words[0], words[1:]
    if head not in FUNCTIONS:
        return _word(head, dot, names), rest
    given = []
    while rest and rest[0] != ")":
        if rest[0] == "(":
            value, rest = _call(rest[1:], dot, names)
            assert rest[0] == ")"
            rest = rest[1:]
        else:
            value, rest = _word(rest[0], dot, names), rest[1:]
        given.append(value)
    return FUNCTIONS[head](*given), rest


def _word(word: str, dot: Any, names: dict[str, Any]) -> Any:
    if word.startswith('"'):
        return word.strip('"')
    if word.isdecimal():
        return int(word)
    start, *fields = word.split(".")
    value = names[start] if start else dot
    for name in fields:
        value = value[name]
    return value


FUNCTIONS = {
    "eq": lambda a, b: a == b,
    "le": lambda a, b: a <= b,
    "and": lambda a, b: a and b,
    "len": len,
    "slice": lambda items, start: items[start:],
}
