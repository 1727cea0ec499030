"""What a chat template may not do, and its generation marks."""

import time

import pytest

from mlx_ft.data.jinja import RenderError, Template
from mlx_ft.data.template import install
from mlx_ft.errors import ConfigError

from .conftest import chatml


@pytest.mark.parametrize(
    ("template", "line", "reason"),
    [
        ("a\n{% for x in y %}", 2, "endfor"),
        ("{{ x|foo }}", 1, "No filter named 'foo'"),
        ("\n\n{{ raise_exception('no') }}", 3, "no"),
        ("{{ ''.__class__.__mro__ }}", 1, "unsafe"),
        ("{% macro f() %}{{ ''.__class__.__mro__ }}{% endmacro %}\n{{ f() }}", 1, "unsafe"),
        ("{{ messages.append(1) }}", 1, "unsafe"),
        ("{% set ns = namespace(_a=1) %}", 1, "underscore"),
        ("{% include 'x' %}", 1, "loader"),
        ("{% for a in range(9**6) %}{% endfor %}", 1, "Range too big"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", 1,
         "more than 1000000 steps"),
        ("{% for a in 'x' * 99999 %}{% for b in 'x' * 99999 %}{% endfor %}{% endfor %}", 1,
         "more than 1000000 steps"),
        ("{% for a in [1,2,3,4,5,6,7,8] %}" * 9 + "{% endfor %}" * 9, 1, "steps"),
        ("{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}", 1, "recursion"),
        ("{% macro f(n) %}{% if n %}{{ f(n-1) ~ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}", 1,
         "steps"),
        ("{{ 'x' * 9**9 }}", 1, "steps"),
        ("{{ 9 ** 9 ** 9 }}", 1, "above"),
        ("{{ 'x'.center(9**9) }}", 1, "above"),
        ("{{ 'x' | center(9**9) }}", 1, "above"),
        ("{{ '%999999999d' | format(1) }}", 1, "above"),
        ("{{ '%*d' % (9**9, 1) }}", 1, "above"),
        ("{{ '{:999999999}'.format(1) }}", 1, "above"),
        ("{% for a in range(99999) %}" + "x" * 9999 + "{% endfor %}", None, "characters"),
        ("{{ lipsum(9) }}", 1, "undefined"),
    ],
)  # fmt: skip
def test_what_a_template_must_not_do_ends_soon_and_says_where(template, line, reason):
    start = time.process_time()
    with pytest.raises(RenderError, match=reason) as error:
        Template(template).render({"messages": []})
    assert error.value.line == line
    assert time.process_time() - start < 5
    with pytest.raises(ConfigError, match=reason):
        install(chatml(), template + "{% if false %}{{ 1 }}{% endif %}")


def test_marks_count_the_characters_of_the_text():
    template = Template("é{% generation %}ab{{ x }}{% endgeneration %}-{% generation %}c"
                        "{% endgeneration %}")  # fmt: skip
    assert template.marked
    assert template.render_marked({"x": "漢"}) == ("éab漢-c", [(1, 4), (5, 6)])
    assert template.render({"x": "漢"}) == "éab漢-c"
    hidden = "{% set y %}ab{% generation %}c{% endgeneration %}{% endset %}x{{ y }}"
    with pytest.raises(RenderError, match="generation mark stands inside"):
        Template(hidden).render_marked({})
    assert not Template("generation {{ x }}{# {% generation %} #}").marked
