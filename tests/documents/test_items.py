"""Questions and answers made by hand from small texts, and what is not to be asked."""

import pytest

from mlx_ft.documents.build import prose_of
from mlx_ft.documents.items import KINDS
from mlx_ft.documents.make import make, worded
from mlx_ft.documents.markdown import read_markdown
from mlx_ft.documents.prose import names
from mlx_ft.documents.python_source import read_python
from tests.documents.make_files import GUIDE


def items(text, *, kinds=tuple(KINDS), subject="", file="guide.md"):
    document = read_markdown(text, file)
    made = make(document, 0.7, kinds, names(" ".join(prose_of([document]))))
    return worded(made.items, subject)[0], made.rejected


def pairs(text, **options):
    return [(item.kind, item.prompt, item.answer) for item in items(text, **options)[0]]


def test_the_items_of_a_guide():
    within = 'According to "Garden Guide", '
    assert pairs(GUIDE) == [
        (
            "definition",
            within + "what is compost?",
            "Compost is a mixture of decayed plants that feeds the soil of a garden.",
        ),
        (
            "definition",
            within + "what does `turn_heap` do?",
            "`turn_heap(days)` moves the heap and returns the number of days that it rested.",
        ),
        (
            "list",
            within + "which layers does the compost heap have?",
            "- brown leaves from autumn\n- green clippings from the lawn\n"
            "- a little soil to start the process",
        ),
        (
            "question",
            within + "how do I build a bed?",
            "Choose a sunny place and remove the grass. Then add ten centimetres of soil:\n\n"
            "```sh\ngarden bed --size 2 --soil 10\n```",
        ),
        (
            "definition",
            within + "what does the key `bed.size` mean?",
            "`bed.size`: Length of one side of the bed in metres. Default: `2`.",
        ),
        (
            "definition",
            within + "what does the key `bed.soil` mean?",
            "`bed.soil`: Depth of the soil in centimetres. Default: `10`.",
        ),
    ]


HEAD = "# Garden\n\n"


@pytest.mark.parametrize(
    ("heading", "question"),
    [
        ("What is a hotbed?", "what is a hotbed?"),
        ("How to water the plants", "how do I water the plants?"),
        ("Watering the Plants", "what should one know about watering the plants?"),
        ("Installing the Pump", "how do I install the pump?"),
        ("Use your own pump", "how do I use my own pump?"),
        ("Using Pumps", "how do I use pumps?"),
        ("Calling Convention", None),
        ("Use the pump, the old one", None),
        ("Which pump is used", "explain which pump is used."),
        ("Garden Pumps", "what should one know about garden pumps?"),
        ("A new pump", "what should one know about a new pump?"),
        ("Pumps are expensive", 'what is meant by "Pumps are expensive"?'),
        ("Notes", None),
        ("Overview", None),
        ("Test coverage", None),
        ("Your own garden", None),
        ("With a pump", None),
        ("1.2.0 (2024-01-01)", None),
        ("See also", None),
        ("Why it works", None),
    ],
)
def test_questions_from_headings(heading, question):
    body = "Use a pump for the garden, and let it run until the soil of the plants is wet.\n"
    found = pairs(f"{HEAD}## {heading}\n\n{body}", kinds=("question",))
    expected = [("question", f'According to "Garden", {question}', body.strip())]
    assert found == (expected if question else [])


@pytest.mark.parametrize(
    "sentence",
    [
        "It is a mixture of leaves that feeds the soil.",
        "This heap is a mixture of leaves that feeds the soil.",
        "The default is a mixture of leaves that feeds the soil.",
        "Compost is a good idea for everybody who has a garden.",
        "Compost is the same thing as what we saw before in gardens.",
        "Compost is a mixture of the leaves described above in the list.",
        "However, compost is a mixture of leaves that feeds the soil.",
        "Compost is not a mixture of leaves that feeds the soil.",
        "Compost is a mixture of leaves (which feeds the soil.",
        "Compost is a mixture of leaves that feeds the soil",
        "Compost is a mixture of leaves, see [here](x.md).",
        "Compost is a TODO that somebody has to write some day.",
        "Compost is a mixture.",
    ],
)
def test_sentences_that_define_nothing_by_themselves(sentence):
    assert pairs(HEAD + sentence, kinds=("definition",)) == []


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("It depends on the weather and on the plants, and on how much there is of both.",
         "leans on what stood before"),
        ("Garden pumps have a plate with a number, and the table above tells what it stands for.",
         "points elsewhere"),
        ("Garden pumps are sold in many shops, as this page explains to whoever reads it all.",
         "speaks of its own page"),
        ("Garden pumps stand ![drawing](p.png) in the middle of it all, and run all day in May.",
         "a picture or block is missing"),
        ("Garden pumps are sold in several sizes and colours, for this or that or another kind of",
         "sentence incomplete"),
        ("- [Garden pumps of the north](a.md)\n- [Garden pumps of the south](b.md)\n"
         "- [Garden pumps of the east](c.md)\n- [Garden pumps of the west](d.md)",
         "mostly links"),
        ("Garden pumps are loud.", "answer too short"),
        ("Roses want a wall, a little shade, and somebody who looks after them all summer.",
         "score too low"),
    ],
)  # fmt: skip
def test_sections_that_do_not_answer_their_heading(body, reason):
    found, rejected = items(f"{HEAD}## Garden pumps\n\n{body}\n", kinds=("question",))
    assert found == []
    assert rejected == {reason: 1}


def test_a_row_that_shares_out_its_meaning_to_several_terms_is_not_used():
    text = (
        f"{HEAD}| Key | Meaning |\n|---|---|\n| `a.b`, `a.c` | the whole bed; one plant alone |\n"
    )
    assert items(text) == ([], {"score too low": 1})


def test_a_verb_that_says_what_a_thing_is_gives_its_own_question():
    text = f"{HEAD}The `beds` directory contains a file for each bed of the garden.\n"
    assert [ask for _, ask, _ in pairs(text)] == [
        'According to "Garden", what does the `beds` directory contain?'
    ]


def test_how_to_needs_an_instruction():
    body = "Hoses are long things of rubber that gardeners of all countries have liked since ever."
    found, rejected = items(f"{HEAD}## How to install the pump\n\n{body}\n", kinds=("question",))
    assert (found, rejected) == ([], {"does not answer": 1})


@pytest.mark.parametrize(
    ("intro", "question"),
    [
        ("There are two kinds of soil:", "name the two kinds of soil."),
        ("There are three kinds of soil:", None),  # the list has two
        ("The following kinds of soil are sold:", "which kinds of soil are sold?"),
        ("The kinds of soil are:", "what are the kinds of soil?"),
        ("A shop offers the following kinds of soil:", "which kinds of soil does a shop offer?"),
        ("Two kinds of soil:", "name the two kinds of soil."),
        ("It supports the following kinds of soil:", None),
        ("Look at this:", None),
    ],
)
def test_lists_that_a_sentence_announces(intro, question):
    text = f"{HEAD}{intro}\n\n- heavy soil with clay\n- light soil with sand\n"
    answer = "- heavy soil with clay\n- light soil with sand"
    expected = [("list", f'According to "Garden", {question}', answer)] if question else []
    assert pairs(text, kinds=("list",)) == expected


def test_code_is_asked_for_by_the_sentence_before_it_and_explained_by_the_one_after():
    text = (
        HEAD + "To start the pump of your garden, run:\n\n```python\npump = Pump(2)\npump.start()\n"
        "```\n\n`Pump` takes the number of the pump, and `start` opens its valve for an hour.\n"
    )
    code = "```python\npump = Pump(2)\npump.start()\n```"
    assert pairs(text, kinds=("text_to_code", "code_to_text")) == [
        ("text_to_code", 'According to "Garden", how do I start the pump of my garden?', code),
        (
            "code_to_text",
            f"What does this code do?\n\n{code}",
            "`Pump` takes the number of the pump, and `start` opens its valve for an hour.",
        ),
    ]


@pytest.mark.parametrize(
    "code",
    ["```python\npump = Pump(\n```", "```python\npump = 1\n...\n```", '```json\n{"a": \n```',
     "```sh\nrun 'pump\n```"],
)  # fmt: skip
def test_cut_code_is_not_used(code):
    assert pairs(f"{HEAD}To start the pump, run:\n\n{code}\n", kinds=("text_to_code",)) == []


SUMMARY = (
    "A garden pump moves water from the well to the beds of the garden. "
    "Most gardens have a pump that stands near the well, because long pipes lose water.\n\n"
    "The pump needs water to start. Fill the pump with water from the well before the first use "
    "of the year, and empty the pump before winter comes, since ice breaks it.\n\n"
    "A garden of ordinary size needs a pump of about two hundred watts, and a well of ten metres."
)


def test_a_summary_is_the_lead_that_mentions_what_matters():
    ((_, prompt, answer),) = pairs(f"{HEAD}## Garden pumps\n\n{SUMMARY}\n", kinds=("summary",))
    assert prompt == (
        f'Summarize this section, "Garden pumps", with sentences of its own:\n\n{SUMMARY}'
    )
    assert answer == "A garden pump moves water from the well to the beds of the garden."


def test_a_lead_that_misses_the_heading_is_no_summary():
    assert pairs(f"{HEAD}## Electric engines\n\n{SUMMARY}\n", kinds=("summary",)) == []


def test_a_python_function_asks_for_its_body():
    source = (
        'def area(width, height):\n    """The area in square metres of a bed of the garden.\n\n'
        '    width, height: metres.\n    """\n    if width < 0:\n        raise ValueError(width)\n'
        "    return width * height\n"
    )
    made = make(read_python(source, "bed.py"), 0.7, tuple(KINDS), frozenset())
    (item,) = worded(made.items, "")[0]
    assert item.prompt.startswith(
        "Write the body of this Python function in `bed.py`:\n\n```python\ndef area(width, height)"
    )
    assert item.answer == (
        "```python\n    if width < 0:\n        raise ValueError(width)\n"
        "    return width * height\n```"
    )


def test_questions_that_would_be_equal_name_their_section():
    rows = "| Key | Meaning |\n|---|---|\n| `a.b` | {} |\n"
    text = (
        f"{HEAD}## First part\n\n{rows.format('What the first part takes.')}\n"
        f"## Second part\n\n{rows.format('What the second part takes.')}"
    )
    found = [prompt for _, prompt, _ in pairs(text, kinds=("definition",), subject="Plot")]
    assert found == [
        'According to the section "First part" of "Garden", what does the key `a.b` mean?',
        'According to the section "Second part" of "Garden", what does the key `a.b` mean?',
    ]


def test_the_subject_is_named_instead_of_the_page():
    text = HEAD + "Compost is a mixture of decayed plants that feeds the soil."
    ((_, prompt, _),) = pairs(text, subject="Green Thumb")
    assert prompt == "In Green Thumb, what is Compost?"  # never written small


def test_repeated_answers_stay_once():
    sentence = "Compost is a mixture of decayed plants that feeds the soil."
    first = make(read_markdown(HEAD + sentence, "a.md"), 0.7, ("definition",), frozenset())
    second = make(
        read_markdown("# Other\n\n" + sentence, "b.md"), 0.7, ("definition",), frozenset()
    )
    kept, left = worded([*first.items, *second.items], "")
    assert [item.section.file for item in kept] == ["a.md"]
    assert [reason for _, reason in left] == ["answer given twice"]


@pytest.mark.parametrize("file", ["CHANGELOG.md", "docs/LICENSE.md", "docs/release-notes.md"])
def test_changelogs_and_licences_give_no_items(file):
    found, rejected = items(GUIDE, file=file)
    assert found == []
    assert len(rejected) == 1


def test_other_languages_give_only_chunks():
    text = "# Garten\n\n" + "Kompost ist ein Gemisch aus Pflanzen, das den Boden ernährt. " * 8
    made = make(read_markdown(text, "a.md"), 0.7, tuple(KINDS), frozenset())
    assert made.items == []
    assert made.warnings == ["not in English, which the rules are for: only raw chunks"]


def test_every_item_tells_its_score_and_why():
    for item in items(GUIDE)[0]:
        assert 0.7 <= item.quality <= 1
        assert item.reasons


def test_answers_hold_all_of_an_items_text():
    text = (
        "# Guide\n\n## Pumps\n\n- **`pump`**: moves the water of the house from one tank to "
        "another, in:\n  - litres\n  - gallons\n\nThe pump supports the following modes:\n\n"
        "- fast mode\n\n  Uses more power than the other one does.\n"
        "- slow mode\n  - by day\n  - by night\n"
    )
    answers = {kind: answer for kind, _, answer in pairs(text)}
    assert answers["definition"] == (
        "`pump`: Moves the water of the house from one tank to another, in:\n- litres\n- gallons"
    )
    assert answers["list"] == (
        "- fast mode\n\n  Uses more power than the other one does.\n"
        "- slow mode\n  - by day\n  - by night"
    )
