"""A tokenizer whose rows are encoded is not read again; what is remembered of it is the truth."""

from __future__ import annotations

import copy
import json

import pytest

from mlx_ft.config.schema import DataConfig
from mlx_ft.data.known import know
from mlx_ft.data.prepare import prepare
from mlx_ft.deferred import Deferred
from mlx_ft.errors import ConfigError


@pytest.fixture
def deferred(tokenizers):
    def make(key="a", name="chatml"):
        return Deferred(key, lambda: copy.deepcopy(tokenizers[name]))

    return make


def test_the_second_time_the_tokenizer_is_not_read(write, deferred, tmp_path):
    rows = [{"prompt": f"Question {i}?", "completion": "Yes." * i} for i in range(1, 20)]
    path = write("a.jsonl", *rows)

    def prepared(tokenizer, **keys):
        config = DataConfig(path=str(path), metric="exact_match", **keys)
        return prepare(config, tokenizer, 99, 1, tmp_path / "cache")

    first, again, plain = deferred(), deferred(), deferred().get()
    one, two, three = prepared(first), prepared(again), prepared(plain)
    assert (first.made, again.made) == (True, False)
    assert one.encoded.folder == two.encoded.folder == three.encoded.folder
    assert one.known == two.known == three.known
    answers = [row.messages[-1].content for row in one.test]
    assert two.longest_answer() == max(len(plain.encode(text)) for text in answers)
    assert again.get().chat_template == plain.chat_template == two.template.text
    prepared(other := deferred(key="b"))
    assert other.made
    prepared(uncached := deferred(), cache=False)
    assert uncached.made


def test_a_template_is_given_when_the_tokenizer_is_read_and_is_the_remembered_one(
    deferred, tmp_path
):
    file = tmp_path / "own.jinja"
    file.write_text("{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}")
    known = know(deferred(), str(file), tmp_path / "known")
    assert know(again := deferred(), str(file), tmp_path / "known") == known
    before = file.read_text()
    file.write_text(before + "\n")  # while the run goes on
    assert (again.made, again.get().chat_template) == (False, before)
    assert know(changed := deferred(), str(file), tmp_path / "known").template.text != before
    assert changed.made


@pytest.mark.parametrize("damage", ["", "[]", '{"sha256": 1}', "flip"])
def test_a_damaged_memory_is_none(deferred, tmp_path, damage):
    known = know(deferred(), None, tmp_path)
    (file,) = tmp_path.glob("*.json")
    sealed = json.loads(file.read_text())
    sealed["content"] = sealed["content"].replace("im_end", "im_and")
    file.write_text(json.dumps(sealed) if damage == "flip" else damage)
    assert know(again := deferred(), None, tmp_path) == known
    assert again.made
    assert know(third := deferred(), None, tmp_path) == known
    assert not third.made


def test_a_place_that_cannot_be_written_only_costs_time(deferred, tmp_path):
    (tmp_path / "file").write_text("")
    for _ in range(2):
        know(tokenizer := deferred(), None, tmp_path / "file" / "known")
        assert tokenizer.made


def test_a_template_that_is_not_there_is_told(deferred, tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        know(deferred(), str(tmp_path / "none.jinja"), tmp_path)
