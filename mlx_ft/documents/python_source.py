"""Python files to functions with their docstrings, through `ast`; nothing is executed."""

from __future__ import annotations

import ast
import builtins
import inspect
import warnings
from dataclasses import dataclass

from mlx_ft.documents.sections import Document, Outline, code, paragraph

_DEFINITION = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(frozen=True)
class Function:
    """A documented function. head: decorators, signature and docstring. body: what follows.

    owner: the top-level function or class it is part of. outside: names that the body takes from
    its module, builtins aside.
    """

    name: str
    owner: str
    head: str
    body: str
    docstring: str
    line: int
    outside: frozenset[str]


def read_python(text: str, file: str) -> Document:
    """A section for each top-level definition; other statements belong to the file's own section.

    Raises SyntaxError.
    """
    tree = _parse(text)
    outline = Outline(file, "python")
    outline.heading(1, file, "1")
    lines = text.split("\n")
    module = ast.get_docstring(tree)
    for part in (module or "").split("\n\n"):
        outline.add(paragraph(part, "1"))
    body = tree.body[1:] if module is not None else tree.body
    definitions = [n for n in body if isinstance(n, _DEFINITION)]
    loose = [n for n in body if not isinstance(n, _DEFINITION)]
    if loose:
        text = "\n".join(_lines(lines, n.lineno, n.end_lineno) for n in loose)
        outline.add(code(text, str(loose[0].lineno), "python"))
    for node in definitions:
        first = _first_line(node)
        outline.heading(2, f"`{node.name}`", str(first))
        outline.add(code(_lines(lines, first, node.end_lineno), str(first), "python"))
    return outline.document(f"`{file}`")


def functions(source: str, line: int) -> list[Function]:
    """The documented functions and methods in the code of one section. line: of its first line."""
    found = []
    tree = _parse(source)
    lines = source.split("\n")
    for top in tree.body:
        if isinstance(top, ast.ClassDef):
            inner = [
                node
                for node in top.body
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            ]
            found += [_function(node, top.name, lines, line) for node in inner]
        elif isinstance(top, ast.FunctionDef | ast.AsyncFunctionDef):
            found.append(_function(top, top.name, lines, line))
    return [function for function in found if function]


def _parse(text: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's strings
        return ast.parse(text)


def _function(
    node: ast.FunctionDef | ast.AsyncFunctionDef, owner: str, lines: list[str], offset: int
) -> Function | None:
    docstring = ast.get_docstring(node)
    if not docstring or len(node.body) < 2:
        return None
    first, begin = _first_line(node), node.body[1].lineno
    if node.body[0].end_lineno == begin:  # docstring and statement on one line
        return None
    # Comments between the docstring and the first statement belong to the body.
    after = (node.body[0].end_lineno or 0) + 1
    head = inspect.cleandoc("\n" + _lines(lines, first, after - 1))
    body = _lines(lines, after, node.end_lineno).strip("\n").rstrip()
    indent = len(lines[first - 1]) - len(lines[first - 1].lstrip())
    body = "\n".join(row[indent:] if not row[:indent].strip() else row for row in body.split("\n"))
    name = node.name if owner == node.name else f"{owner}.{node.name}"
    return Function(name, owner, head, body, docstring, first + offset - 1, _outside(node))


def _outside(node: ast.FunctionDef | ast.AsyncFunctionDef) -> frozenset[str]:
    names = [inner for inner in ast.walk(node) if isinstance(inner, ast.Name)]
    own = {inner.id for inner in names if isinstance(inner.ctx, ast.Store)}
    own |= {inner.arg for inner in ast.walk(node) if isinstance(inner, ast.arg)}
    own |= {
        alias.asname or alias.name.split(".")[0]
        for inner in ast.walk(node)
        if isinstance(inner, ast.Import | ast.ImportFrom)
        for alias in inner.names
    }
    used: set[str] = set()
    for statement in node.body:
        for inner in ast.walk(statement):
            if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Load):
                used.add(inner.id)
    known = set(dir(builtins))
    return frozenset(used - own - known)


def _first_line(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def _lines(lines: list[str], first: int, last: int | None) -> str:
    return "\n".join(lines[first - 1 : last])
