"""Jinja chat templates, rendered as transformers renders them, in a sandbox with limits."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, cast

from jinja2 import TemplateError, TemplateSyntaxError, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import FILTERS
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MAX_STEPS = 1_000_000  # loop items of one rendering
STEPS_OF_CALL = 10  # about what a call costs beside a loop's item
MAX_CHARACTERS = 2**26  # of one rendering
MAX_NUMBER = 100_000  # as a width, a count or an exponent: Jinja's own limit for ranges
WIDE = re.compile(r"\d{6,}|%[^a-zA-Z%]*\*|\{[^}]*\{")
WIDENING = ("batch", "center", "format", "indent", "slice", "wordwrap")  # filters
PADDING = ("center", "expandtabs", "ljust", "rjust", "zfill")  # methods of str
METER = "_metered"
MARKS = "_generation_marks"

Span = tuple[int, int]  # [start, end)


class RenderError(Exception):
    """A template that does not compile, refuses, or does what it must not. line: from 1."""

    def __init__(self, reason: str, line: int | None) -> None:
        super().__init__(reason)
        self.reason, self.line = reason, line


class Template:
    """A compiled chat template. marked: whether it has `{% generation %}` marks."""

    def __init__(self, text: str) -> None:
        """Compile `text`. Raises RenderError."""
        self.text = text
        self._environment = _Sandbox()
        try:
            tree = self._environment.parse(text)
            self.marked = any(
                isinstance(call.node, nodes.ExtensionAttribute)
                for block in tree.find_all(nodes.CallBlock)
                for call in [block.call]
            )
            for loop in tree.find_all(nodes.For):
                loop.iter = nodes.Filter(loop.iter, METER, [], [], None, None).set_lineno(
                    loop.lineno
                )
            self._compiled = self._environment.from_string(tree)
        except TemplateSyntaxError as error:
            raise RenderError(error.message or "syntax error", error.lineno) from error
        except (TemplateError, RecursionError) as error:  # an unknown filter, parentheses in ten
            raise RenderError(_reason(error), None) from error  # thousands

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text for `variables`: `messages`, `tools`, `add_generation_prompt`, tokens' names.

        Raises RenderError for everything that can go wrong in a template.
        """
        return "".join(self._blocks(variables, []))

    def render_marked(self, variables: Mapping[str, Any]) -> tuple[str, list[Span]]:
        """The text, and the characters between each pair of generation marks.

        Raises RenderError; also when a mark stands where its place in the text is unknown, such
        as in a macro.
        """
        blocks: list[str] = []
        marks = _Marks(blocks)
        self._blocks({**variables, MARKS: marks}, blocks)
        text = "".join(blocks)
        for (start, end), said in zip(marks.spans, marks.texts, strict=True):
            if text[start:end] != said:
                raise RenderError("a generation mark stands inside a macro or a set block", None)
        return text, marks.spans

    def _blocks(self, variables: Mapping[str, Any], blocks: list[str]) -> list[str]:
        self._environment.left = MAX_STEPS
        room = MAX_CHARACTERS
        try:
            context = self._compiled.new_context(cast(dict[str, Any], variables))
            for block in self._compiled.root_render_func(context):
                room -= len(block)
                if room < 0:
                    raise SecurityError(f"the text has more than {MAX_CHARACTERS} characters")
                blocks.append(block)
        except Exception as error:  # a template is a program of its author: anything may come
            raise RenderError(_reason(error), self._line(error.__traceback__)) from error
        return blocks

    def _line(self, traceback: TracebackType | None) -> int | None:
        line = None
        while traceback is not None:
            if traceback.tb_frame.f_code is self._compiled.root_render_func.__code__ or (
                traceback.tb_frame.f_code.co_filename == "<template>"
            ):
                line = self._compiled.get_corresponding_lineno(traceback.tb_lineno)
            traceback = traceback.tb_next
        return line


@functools.lru_cache(maxsize=32)
def compile_template(text: str) -> Template:
    """`Template(text)`, once for each text."""
    return Template(text)


class _Marks:
    """Where generation blocks stand. Its attributes are out of a template's reach."""

    def __init__(self, blocks: list[str]) -> None:
        self._blocks = blocks
        self._spans: list[Span] = []
        self._texts: list[str] = []

    def _add(self, text: str) -> None:
        start = sum(map(len, self._blocks))
        self._spans.append((start, start + len(text)))
        self._texts.append(text)

    add = property(lambda self: self._add)
    spans = property(lambda self: self._spans)
    texts = property(lambda self: self._texts)


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}`, as in transformers."""

    tags = {"generation"}  # noqa: RUF012  Jinja's own declaration

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    @pass_context
    def _mark(self, context: Context, caller: Callable[[], str]) -> str:
        said = caller()
        marks = context.get(MARKS)
        if isinstance(marks, _Marks):
            marks._add(said)
        return said


class _Dict:
    """`dict` without what the class itself would give away."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """`namespace` without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # `self` may be a key, too
        self, *rest = args
        given = dict(*rest, **kwargs)
        for name in given:
            _check_name(name)
        Namespace.__init__(self, given)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace keeps no name that begins with an underscore: {name!r}")


class _Sandbox(ImmutableSandboxedEnvironment):
    """transformers' settings and names, with a limit on steps and on repeated text."""

    intercepted_binops = frozenset(["*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        self.left = MAX_STEPS
        self.filters.update({"tojson": _tojson, METER: self._metered})
        self.filters.update({name: _bounded(self.filters[name]) for name in WIDENING})
        del self.globals["lipsum"]
        self.globals.update(
            raise_exception=_raise_exception,
            strftime_now=lambda form: datetime.now().strftime(form),
            dict=_Dict(),
            namespace=_Namespace,
        )

    def spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise SecurityError(f"the template takes more than {MAX_STEPS} steps")

    @pass_context  # which also keeps Jinja from computing loops over constants beforehand
    def _metered(self, _context: Context, items: Any) -> Any:
        try:
            self.spend(len(items))
        except TypeError:
            return self._each(items)
        return items

    def _each(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self.spend(1)
            yield item

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        __self.spend(STEPS_OF_CALL)
        if isinstance(getattr(__obj, "__self__", None), str) and __obj.__name__ in PADDING:
            _check_numbers(*args, *kwargs.values())
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for repeated, times in ((left, right), (right, left)):
                if isinstance(repeated, (str, list, tuple)) and isinstance(times, int):
                    self.spend(len(repeated) * max(times, 0))
        elif operator == "**":
            _check_numbers(left, right)
        elif isinstance(left, str):
            _check_format(left)
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _check_format(value.__self__)
        return wrapped


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        if function is FILTERS["format"]:
            _check_format(args[0])
        else:
            _check_numbers(*args[1:], *kwargs.values())
        return function(*args, **kwargs)

    return bounded


def _check_numbers(*given: Any) -> None:
    """Refuse counts and widths that could only fill the memory."""
    for value in given:
        if isinstance(value, (int, float)) and abs(value) > MAX_NUMBER:
            raise SecurityError(f"the number {value} is above {MAX_NUMBER}")


def _check_format(text: Any) -> None:
    """Refuse formats such as `%999999d`, and those that take a width from elsewhere."""
    if WIDE.search(str(text).replace("{{", "")):
        raise SecurityError(f"the format {text!r} has a number above {MAX_NUMBER}")


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _reason(error: BaseException) -> str:
    # What raise_exception says is the author's sentence; the rest needs the kind of error.
    plain = type(error) is TemplateError
    return str(error) if plain else f"{type(error).__name__}: {error}"
