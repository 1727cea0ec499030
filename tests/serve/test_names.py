"""A name is a name and nothing more."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_ft.serve.names import BadName, checked, inside, is_id, made

HOSTILE = [
    "", ".", "..", "...", "a/b", "../a", "/etc/passwd", "a\\b", "..\\a", "a\0b", "a\n", "\na", " a",
    "a ", "a b", "~", "~root", "$HOME", "`id`", "$(id)", "a;b", "a|b", "a&b", "a>b", "a*", "a?",
    "%2e%2e", "%2f", "..%2f..", "a%00", ".hidden", ".lock", "-rf", "--help", "_x", "a.", "CON",
    "con.txt", "aux", "NUL", "lpt1", "com0.x", "é", "日本", "a\u202eb", "\ufeffa", "a" * 101, "a:b",
    "file:///etc", "http://x", "C:", "\\\\x\\y", "{{7*7}}", "${jndi}", "<script>", "'", '"', "a,b",
    "a=b", "a#b", "a@b", "[a]", None, 7, [], {}, True, b"a",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_more_is_refused(name):
    with pytest.raises(BadName, match="expected letters"):
        checked(name)


@pytest.mark.parametrize("name", ["a", "42_methodology", "My-Adapter.v2", "0", "a" * 100, "cone"])
def test_names_pass(name, tmp_path):
    assert checked(name) == name
    assert inside(tmp_path, name) == tmp_path / name


@given(st.text(max_size=30))
def test_whatever_passes_stays_one_name_in_its_folder(tmp_path_factory, text):
    folder = tmp_path_factory.getbasetemp()
    try:
        name = checked(text)
    except BadName:
        return
    assert inside(folder, name).parent == folder
    assert name.isascii()


def test_a_link_does_not_lead_out(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "store" / "a").symlink_to(tmp_path / "secret")
    (tmp_path / "store" / "b").symlink_to(tmp_path / "store")
    for name in ("a", "b"):
        with pytest.raises(BadName):
            inside(tmp_path / "store", name)


def test_ids_are_told_by_their_kind():
    first, second = made("job"), made("job")
    assert first != second
    assert is_id(first, "job")
    assert not is_id(first, "file")
    assert not is_id(f"{first}/..", "job")
    assert checked(first) == first
