import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_ft.config.schema import DataConfig
from mlx_ft.data.prepare import prepare
from mlx_ft.data.sample import sample

from .conftest import chatml


class Numbers(list):
    """Stands for rows: an index array picks some of them."""

    def __getitem__(self, index):
        return Numbers(list.__getitem__(self, int(i)) for i in index)


def chosen(total, count):
    return list(sample(Numbers(range(total)), count))


@given(total=st.integers(0, 500), count=st.none() | st.integers(1, 600))
def test_so_many_rows_one_from_each_stretch(total, count):
    found = chosen(total, count)
    if count is None or count >= total:
        assert found == list(range(total))
        return
    assert found == chosen(total, count)
    for i, row in enumerate(found):
        assert i * total // count <= row < (i + 1) * total // count
    assert len(found) == count


@pytest.mark.parametrize("kinds", [2, 3, 5, 10, 25])
def test_kinds_that_come_in_turn_are_all_among_them(kinds):
    found = Counter(row % kinds for row in chosen(1000, 100))
    assert min(found.values()) > 0.5 * 100 / kinds
    assert max(found.values()) <= 1.5 * 100 / kinds


def test_every_file_gives_its_share(tmp_path):
    files = []
    for name, count in (("a", 60), ("b", 20), ("train", 10)):
        files.append(tmp_path / f"{name}.jsonl")
        files[-1].write_text(
            "".join(
                json.dumps({"prompt": f"{name} {i}?", "completion": "Yes."}) + "\n"
                for i in range(count)
            )
        )
    (tmp_path / "held").mkdir()
    for file in files[:2]:
        file.rename(tmp_path / "held" / file.name)
    config = DataConfig(
        path=str(files[2]), valid_path=str(tmp_path / "held" / "*.jsonl"), cache=False
    )
    dataset = prepare(config, chatml(), 200, 0, tmp_path)
    test = sample(dataset.test, 8)
    assert Counter(row.messages[0].content[0] for row in test) == {"a": 6, "b": 2}
    valid = sample(dataset.valid, 8)
    assert Counter(valid.sources.tolist()) == {1: 6, 2: 2}
    assert len(valid.lengths) == 8
    assert sample(dataset.valid, None) is dataset.valid
