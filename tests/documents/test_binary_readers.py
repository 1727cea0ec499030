import io

import docx
import pypdf
import pytest

from mlx_ft.documents.pdf import PdfRefused, read_pdf
from mlx_ft.documents.word import DocxRefused, read_docx
from tests.documents.make_files import pdf

BODY = [
    (18, 760, "Compost"),
    (10, 730, "Compost is a mixture of decayed plants that feeds the gar-"),
    (10, 718, "den soil."),
    (10, 690, "A second paragraph begins after a gap."),
]


def test_pdf_headings_paragraphs_and_pages():
    pages = [
        [(8, 800, "The Manual"), *BODY, (8, 30, "Page 1")],
        [(8, 800, "The Manual"), (14, 760, "Water"), (10, 730, "Water daily."), (8, 30, "Page 2")],
        [(8, 800, "The Manual"), (10, 730, "Stop in winter."), (8, 30, "Page 3")],
    ]
    document = read_pdf(pdf(pages), "m.pdf")
    assert [(s.titles, s.place, [b.text for b in s.blocks]) for s in document.sections] == [
        (
            ("Compost",),
            "page 1",
            [
                "Compost is a mixture of decayed plants that feeds the garden soil.",
                "A second paragraph begins after a gap.",
            ],
        ),
        (("Compost", "Water"), "page 2", ["Water daily.", "Stop in winter."]),
    ]
    assert document.sections[1].blocks[1].place == "page 3"


def test_pdf_without_text_is_refused_and_single_empty_pages_are_told():
    with pytest.raises(PdfRefused, match="2 page"):
        read_pdf(pdf([[], []]), "scan.pdf")
    document = read_pdf(pdf([BODY, []], title="Gardens"), "m.pdf")
    assert document.warnings == ["1 of 2 pages have no text: 2"]


def test_pdf_title_from_the_metadata_where_there_is_no_heading():
    document = read_pdf(pdf([[(10, 700, "Some text.")]], title="Gardens"), "m.pdf")
    assert document.title == "Gardens"


def test_encrypted_pdf_is_refused():
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(pdf([BODY])))
    writer.encrypt("secret", algorithm="RC4-128")
    out = io.BytesIO()
    writer.write(out)
    with pytest.raises(PdfRefused, match="password"):
        read_pdf(out.getvalue(), "m.pdf")


def test_docx_by_styles():
    made = docx.Document()
    made.add_heading("Garden", 0)
    made.add_heading("Compost", 1)
    text = made.add_paragraph()
    text.add_run("Slow.").bold = True
    text.add_run(" Use more leaves.")
    made.add_paragraph("leaves", style="List Bullet")
    made.add_paragraph("grass", style="List Bullet")
    table = made.add_table(2, 2)
    for cell, said in zip(table._cells, ["Key", "Meaning", "a", "b"], strict=True):
        cell.text = said
    out = io.BytesIO()
    made.save(out)
    document = read_docx(out.getvalue(), "a.docx")
    assert [s.titles for s in document.sections] == [("Garden",), ("Garden", "Compost")]
    blocks = document.sections[1].blocks
    assert [(b.kind, b.place, b.text) for b in blocks] == [
        ("paragraph", "paragraph 3", "Slow. Use more leaves."),
        ("list", "paragraph 4", "- leaves\n- grass"),
        ("table", "paragraph 6", "| Key | Meaning |\n|---|---|\n| a | b |"),
    ]
    assert blocks[0].entries[0].lead == "Slow."


def test_encrypted_or_old_word_files_are_refused():
    with pytest.raises(DocxRefused, match="encrypted"):
        read_docx(b"\xd0\xcf\x11\xe0" + b"\0" * 100, "a.docx")


def test_a_docx_that_unpacks_to_too_much_is_refused(monkeypatch):
    out = io.BytesIO()
    docx.Document().save(out)
    monkeypatch.setattr("mlx_ft.documents.word.MAX_UNPACKED", 2**10)
    with pytest.raises(DocxRefused, match="unpacks"):
        read_docx(out.getvalue(), "a.docx")
