import ast

import pytest

from mlx_ft.documents.html import read_html
from mlx_ft.documents.markdown import read_markdown
from mlx_ft.documents.plain import read_plain
from mlx_ft.documents.python_source import functions, read_python
from mlx_ft.documents.rst import read_rst


def shapes(document):
    return [
        (s.titles, s.place, [(b.kind, b.place, b.text) for b in s.blocks])
        for s in document.sections
    ]


def test_markdown_blocks_have_their_titles_and_lines():
    text = (
        "---\ntitle: The Book\n---\n# One {#anchor}\n\nSome **bold** and [a link](x.md).\n\n"
        "## 1.2 Two\n- a\n- b\n\n```python title=x\nx = 1\n```\n\n| A | B |\n|---|---|\n| c | d |\n"
    )
    document = read_markdown(text, "a.md")
    assert document.title == "The Book"
    assert shapes(document) == [
        (("One",), "4", [("paragraph", "6", "Some bold and a link.")]),
        (
            ("One", "Two"),
            "8",
            [
                ("list", "9", "- a\n- b"),
                ("code", "12", "x = 1"),
                ("table", "16", "| A | B |\n|---|---|\n| c | d |"),
            ],
        ),
    ]
    assert document.sections[1].blocks[1].language == "python"
    assert document.sections[0].has_children
    assert not document.sections[1].has_children


def test_markdown_leaves_out_what_is_no_text_and_says_so():
    text = (
        "[![badge](https://x/y.svg)](https://x)\n\n"
        "<table><tr><td>six words of raw markup here</td></tr></table>\n\n"
        "```{eval-rst}\nxyz\n```\n\nClick ![icon](i.png) now.\n"
    )
    document = read_markdown(text, "a.md")
    assert [w.split(": ")[1] for w in document.warnings] == [
        "raw HTML left out",
        "directive {eval-rst} left out",
    ]
    (block,) = document.sections[0].blocks
    assert block.text == "Click now."
    assert block.lost


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("!!! note\n    Water the plants.\n", "paragraph", "Water the plants."),
        ("```{tip}\nWater the plants.\n```\n", "paragraph", "Water the plants."),
        ("```{code-block} python\n:linenos:\nx = 1\n```\n", "code", "x = 1"),
        ("Use {class}`~a.b.C` or {term}`heap`.\n", "paragraph", "Use `C` or heap."),
        ("Set `${env:A}` or `x`.\n", "paragraph", "Set `${env:A}` or `x`."),
        ("See {pep}`526`.\n", "paragraph", "See PEP 526."),
    ],
)
def test_markdown_of_mkdocs_and_myst(text, kind, expected):
    (block,) = read_markdown(text, "a.md").sections[0].blocks
    assert (block.kind, block.text) == (kind, expected)


def test_a_bold_lead_is_one_only_with_a_mark_after_it():
    text = "**Slow.** Use more.\n\n- **Key**: what\n- **Bold words** go on\n- `x`: a term\n"
    blocks = read_markdown(text, "a.md").sections[0].blocks
    entries = [e for b in blocks for e in b.entries]
    assert [(e.lead, e.text) for e in entries] == [
        ("Slow.", "Use more."),
        ("Key", "what"),
        ("", "Bold words go on"),
        ("`x`", "a term"),
    ]


def test_rst_blocks():
    text = (
        "=====\nTitle\n=====\n\n.. _label:\n\nA ``code`` and :func:`~a.b.c` and `text <http://x>`_.\n\n"
        "Part\n----\n\nRun it::\n\n    make all\n    make test\n\n.. code-block:: python\n"
        "   :linenos:\n\n   x = 1\n\n.. note::\n\n   Mind the gap.\n\n* one\n  more\n* two\n\n"
        "term\n    What it is.\n\n.. autoclass:: X\n   :members:\n\n:field: dropped\n"
    )
    document = read_rst(text, "a.rst")
    assert shapes(document) == [
        (("Title",), "1", [("paragraph", "7", "A `code` and `c` and text.")]),
        (
            ("Title", "Part"),
            "9",
            [
                ("paragraph", "12", "Run it:"),
                ("code", "14", "make all\nmake test"),
                ("code", "20", "x = 1"),
                ("paragraph", "24", "Mind the gap."),
                ("list", "26", "- one more\n- two"),
                ("list", "30", "- term: What it is."),
            ],
        ),
    ]
    assert document.warnings == ["line 33: directive autoclass left out"]
    assert document.sections[1].blocks[2].language == "python"


def test_rst_references_without_a_title_are_marked_as_lost():
    (block,) = read_rst("See :ref:`there` for |more|.\n", "a.rst").sections[0].blocks
    assert block.lost


def test_html_is_the_main_text_without_what_surrounds_it():
    text = (
        "<html><head><title>Site</title></head><body><nav>Menu</nav><script>x()</script>"
        "<main><h1>Page<a class=headerlink href=#p>¶</a></h1>\n<p>One <b>bold</b> "
        "<code>x = 1</code>.</p><!-- c --><ul><li>a</li><li>b</li></ul>"
        '<pre class="language-sh">ls -l\n</pre>'
        "<dl><dt>Heap</dt><dd>A pile.</dd></dl>"
        "<table><tr><th>A</th><th>B</th></tr><tr><td>c</td><td>d</td></tr></table>"
        "<div>Loose text</div></main><footer>Foot</footer></body></html>"
    )
    document = read_html(text, "a.html")
    (section,) = document.sections
    assert section.titles == ("Page",)
    assert [(b.kind, b.text) for b in section.blocks] == [
        ("paragraph", "One bold `x = 1`."),
        ("list", "- a\n- b"),
        ("code", "ls -l"),
        ("list", "- Heap: A pile."),
        ("table", "| A | B |\n|---|---|\n| c | d |"),
        ("paragraph", "Loose text"),
    ]
    assert section.blocks[2].language == "sh"
    assert section.place == "1"


def test_plain_text():
    text = "Title\n=====\n\nA paragraph\nof two lines.\n\nSECOND PART\n\n1. one\n2. two\n   more\n"
    assert shapes(read_plain(text, "a.txt")) == [
        (("Title",), "1", [("paragraph", "4", "A paragraph of two lines.")]),
        (("Second part",), "7", [("list", "9", "1. one\n2. two more")]),
    ]


def test_python_functions_are_cut_at_their_docstrings():
    source = '''"""Module."""

import os


@cache
def area(width: int, height: int) -> int:
    """The area of a rectangle.

    In square metres.
    """
    # No check: both are lengths.
    size = width * height
    return os.fspath(size)


class Bed:
    async def dig(self) -> None:
        """Dig the bed."""
        self.depth += 1
'''
    document = read_python(source, "g.py")
    assert [s.titles for s in document.sections] == [
        ("g.py",),
        ("g.py", "`area`"),
        ("g.py", "`Bed`"),
    ]
    code = document.sections[1].blocks[0]
    (area,) = functions(code.text, int(code.place))
    assert area.line == 6
    assert area.head.startswith("@cache\ndef area(")
    assert area.body.startswith("    # No check")
    assert area.outside == {"os"}
    assert ast.unparse(ast.parse(area.head + "\n" + area.body)).endswith("os.fspath(size)")
    bed = document.sections[2].blocks[0]
    (dig,) = functions(bed.text, int(bed.place))
    assert (dig.name, dig.owner) == ("Bed.dig", "Bed")
    assert dig.head.startswith("async def dig(self)")
    assert dig.body == "    self.depth += 1"


def test_xhtml_is_read_without_a_remark():
    text = '<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><p>Text.</p></html>'
    assert read_html(text, "a.xhtml").sections[0].blocks[0].text == "Text."


def test_an_empty_html_page_has_no_sections():
    assert read_html("<html><nav>Menu</nav></html>", "a.html").sections == []


ITEMS = (
    "- **Fast.** One thing.\n\n  A second paragraph of it.\n\n  ```sh\n  make\n  ```\n"
    "- Two:\n  - inner a\n  - inner b\n    1. deep\n- Three\n"
)
ITEMS_HTML = (
    "<main><h1>T</h1><ul><li><p><b>Fast.</b> One thing.</p><p>A second paragraph of it.</p>"
    "<pre><code class='language-sh'>make</code></pre></li>"
    "<li>Two:<ul><li>inner a</li><li>inner b<ol><li>deep</li></ol></li></ul></li><li>Three</li>"
    "</ul></main>"
)


@pytest.mark.parametrize(("reader", "text"), [(read_markdown, ITEMS), (read_html, ITEMS_HTML)])
def test_a_lists_items_keep_all_of_their_text(reader, text):
    (block,) = reader(text, "a").sections[0].blocks
    assert block.text == (
        "- Fast. One thing.\n\n  A second paragraph of it.\n\n  ```sh\n  make\n  ```\n"
        "- Two:\n  - inner a\n  - inner b\n    1. deep\n- Three"
    )
    assert [(entry.lead, entry.text) for entry in block.entries] == [
        ("Fast.", "One thing."),
        ("", "Two:"),
        ("", "Three"),
    ]
    assert block.entries[1].more == "- inner a\n- inner b\n  1. deep"
    assert not block.lost
    (again,) = read_markdown(block.text, "b").sections[0].blocks
    assert again.text == block.text


def test_what_an_item_lost_or_links_to_is_told_of_the_item():
    text = "- one\n  - see ![x](y.png) here\n- two\n  - [all](a.md)\n  - [of it](b.md)\n- # Title\n"
    (block,) = read_markdown(text, "a.md").sections[0].blocks
    assert [(entry.lost, entry.linked) for entry in block.entries] == [
        (True, 0.0),
        (False, 1.0),
        (False, 0.0),
    ]
    assert block.text.endswith("- Title")
