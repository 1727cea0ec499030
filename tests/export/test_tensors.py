"""safetensors files, array by array: read again by MLX and by safetensors itself."""

import json

import mlx.core as mx
import numpy as np
import pytest
from safetensors import safe_open

from mlx_ft.errors import ModelError
from mlx_ft.export import tensors
from mlx_ft.models.folder import weight_faults


def arrays():
    made = {
        "a": mx.arange(12, dtype=mx.float32).reshape(3, 4),
        "b": mx.array([1.5, -2.25], mx.bfloat16),
        "c": mx.array([[0.1, 7.0]], mx.float16),
        "d": mx.array([1, 2**31], mx.uint32),
        "e": mx.array(3.5),
    }
    made["f"] = made["a"].T * 2  # not computed yet, and not contiguous
    return made


@pytest.mark.parametrize("limit", [10**9, 60, 1])
def test_what_is_written_is_read_again(tmp_path, limit):
    expected, given = arrays(), arrays()
    size = tensors.write(tmp_path, given, limit)
    assert given == {}  # let go of on the way
    assert size == sum(array.nbytes for array in expected.values())
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(files) == {10**9: 1, 60: 2, 1: 6}[limit]
    assert files[0] == (
        "model.safetensors" if len(files) == 1 else f"model-00001-of-0000{len(files)}.safetensors"
    )
    found = {}
    for file in files:
        found |= mx.load(str(tmp_path / file))
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert mx.array_equal(found[name], array)
    assert weight_faults(tmp_path) == []  # the index names what is there


def test_transformers_reads_the_header(tmp_path):
    tensors.write(tmp_path, arrays())
    with safe_open(tmp_path / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}
        np.testing.assert_array_equal(file.get_tensor("c"), np.array(arrays()["c"]))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in arrays().values())


def test_values_that_the_precision_cannot_hold_are_named(tmp_path):
    given = {
        "good": mx.ones(3),
        "large": mx.array([1e6]).astype(mx.float16),
        "nan": mx.array([float("nan")]),
    }
    with pytest.raises(ModelError) as error:
        tensors.write(tmp_path, given)
    assert error.value.faults == ("large", "nan")
