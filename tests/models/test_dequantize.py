"""Plain weights made by NumPy are those that MLX makes, bit for bit."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_ft.models.dequantize import to_float32


def layers(bits: int, group_size: int, dtype: mx.Dtype, scale: float) -> nn.Module:
    """A quantized linear layer with a bias, one without, and an embedding; of odd numbers of rows.

    The scales are of many magnitudes, of both signs, some of them 0.
    """
    mx.random.seed(bits + group_size)
    model = nn.Sequential(
        nn.Linear(256, 67), nn.Linear(1024, 301, bias=False), nn.Embedding(9, 384)
    )
    for layer in model.layers:
        layer.weight = mx.random.normal(layer.weight.shape) * scale
    nn.quantize(model, group_size=group_size, bits=bits)
    for layer in model.layers:
        shape = layer.scales.shape
        spread = mx.exp(mx.random.uniform(-9, 4, shape)) * mx.random.randint(-1, 2, shape)
        layer.scales = (layer.scales * spread).astype(dtype)
        layer.biases = layer.biases.astype(dtype)
    mx.eval(model.parameters())
    return model


@pytest.mark.parametrize("scale", [0.03, 1e-5, 3.0])  # 1e-5: scales below float16's normal range
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32])
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("bits", [4, 8])
def test_weights_are_those_of_mlx(bits, group_size, dtype, scale):
    model = layers(bits, group_size, dtype, scale)
    expected = [
        mx.dequantize(
            layer.weight, layer.scales, layer.biases, group_size=group_size, bits=bits
        ).astype(mx.float32)
        for layer in model.layers
    ]
    bias = model.layers[0].bias
    to_float32(model)
    assert [type(layer) for layer in model.layers] == [nn.Linear, nn.Linear, nn.Embedding]
    for layer, weight in zip(model.layers, expected, strict=True):
        assert layer.weight.dtype == mx.float32
        np.testing.assert_array_equal(np.array(layer.weight), np.array(weight))
    assert model.layers[0].bias is bias
    assert "bias" not in model.layers[1]


def test_layers_of_another_kind_stay(caplog):
    model = layers(4, 32, mx.float16, 0.03)
    three = nn.QuantizedLinear.from_linear(nn.Linear(256, 8), group_size=32, bits=3)
    model.layers[0].scales = mx.full(model.layers[0].scales.shape, 65504.0, mx.float16)
    model.layers[1].biases = mx.full(model.layers[1].biases.shape, float("nan"), mx.float16)
    model.layers.append(three)
    to_float32(model)
    kinds = [type(layer) for layer in model.layers]
    assert kinds == [nn.QuantizedLinear, nn.QuantizedLinear, nn.Embedding, nn.QuantizedLinear]
