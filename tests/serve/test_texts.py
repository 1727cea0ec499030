"""Texts with headings become questions and answers."""

import pytest

from mlx_ft.serve.texts import parse

INTRO = "Below is an instruction that describes a task. Write a response that completes it.\n\n"


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("### Instruction:\nSky?\n\n### Response:\nBlue.", ("Sky?", "Blue.")),
        ("### Instruction: Sky?\n### Response: Blue.\n", ("Sky?", "Blue.")),
        ("\n###instruction:\nSky?\n###response:\nBlue.", ("Sky?", "Blue.")),
        ("### Instruction:\nA\n\n### Input:\nB\n\n### Response:\nC", ("A\n\nB", "C")),
        (INTRO + "### Instruction:\nA\n\n### Response:\nB\n\n# C", ("A", "B\n\n# C")),
        ("### Instruction:\nWrite '### Response:' twice\n### Response:\nOK",
         ("Write '### Response:' twice", "OK")),
    ],
)  # fmt: skip
def test_pairs(text, pair):
    found = parse([text])
    assert found.rows == [{"prompt": pair[0], "completion": pair[1]}]
    assert found.said == "1 texts are trained as a question and its answer"


@pytest.mark.parametrize(
    "text",
    [
        "The sky is blue.",
        "### Instruction:\nSky?",
        "### Response:\nBlue.",
        "### Response:\nBlue.\n### Instruction:\nSky?",
        "### Instruction:\n\n### Response:\nBlue.",
        "### Instruction:\nSky?\n### Response:\n",
        "### Instruction:\nA\n### Response:\nB\n### Instruction:\nC\n### Response:\nD",
        "Other words.\n### Instruction:\nA\n### Response:\nB",
    ],
)
def test_what_is_no_pair_stays_a_text(text):
    found = parse([text])
    assert found.rows == [{"text": text}]
    assert "as they are" in found.said


def test_all_are_counted():
    found = parse(["### Instruction:\nA\n### Response:\nB", "C", " \n", ""])
    assert [*map(len, (found.rows,))] == [2]
    assert (found.plain, found.empty) == (1, 2)
    assert found.said.count(";") == 2
