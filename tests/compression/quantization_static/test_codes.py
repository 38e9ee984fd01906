"""Weights as whole numbers, against NumPy and against what kernels compute."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from compression.quantization.integer.codes import Layout, largest_pair_sums, quantize_weight
from compression.quantization.isa import saturates

CONV, GEMM, MATMUL = Layout(0, 1), Layout(0, 1), Layout(1, 0)


def test_rows_are_summed_channels_first():
    weight = np.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2)
    rows = CONV.rows(weight)
    # The three channels of the first position, of the second, …
    assert rows[0].tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    np.testing.assert_array_equal(CONV.unrows(rows, weight.shape), weight)
    matrix = np.arange(6).reshape(3, 2)
    assert MATMUL.rows(matrix).tolist() == [[0, 2, 4], [1, 3, 5]]
    np.testing.assert_array_equal(MATMUL.unrows(MATMUL.rows(matrix), matrix.shape), matrix)


@pytest.mark.parametrize("layout", [CONV, Layout(1, 0)])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(("bits", "limit", "top"), [(8, "full", 127), (8, "half", 64), (4, "pairs", 7), (4, "full", 7)])
def test_nearest_multiples_of_the_largest_magnitude_over_the_top(layout, per_channel, bits, limit, top):
    weight = np.random.default_rng(0).normal(size=(6, 4, 3, 3)).astype(np.float32)
    codes = quantize_weight(weight, layout, bits, limit, per_channel=per_channel, least_error=False)
    axes = tuple(axis for axis in range(4) if not per_channel or axis != layout.output_axis)
    scale = np.abs(weight).max(axes, keepdims=True) / top
    np.testing.assert_allclose(codes.scales, scale.reshape(-1) if per_channel else scale.reshape(()), rtol=1e-6)
    np.testing.assert_array_equal(codes.numbers, np.rint(weight / scale.astype(np.float32)))
    assert codes.axis == (layout.output_axis if per_channel else None)
    np.testing.assert_allclose(codes.values(), weight, atol=scale.max() * 0.5001)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("per_channel", [True, False])
def test_least_error_is_the_least_of_all_shares(bits, per_channel):
    weight = np.random.default_rng(1).standard_t(3, size=(5, 200)).astype(np.float32)
    codes = quantize_weight(weight, GEMM, bits, "full", per_channel=per_channel, least_error=True)
    top = 2 ** (bits - 1) - 1

    def error(rows, share):
        scale = np.abs(rows).max() / top * share
        return np.square(np.clip(np.rint(rows / scale), -top, top) * scale - rows).sum()

    rows = weight[:, None] if per_channel else weight[None]
    least = sum(min(error(row, share) for share in np.linspace(0.4, 1, 601)) for row in rows)
    found = np.square(codes.values() - weight).sum()
    assert found <= 1.02 * least
    assert found <= sum(error(row, 1.0) for row in rows) * 1.0001


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_neighbours_never_exceed_what_16_bits_hold(seed, per_channel):
    rng = np.random.default_rng(seed)
    shape = (rng.integers(1, 5), rng.integers(1, 6), rng.integers(1, 4), rng.integers(1, 4))
    weight = rng.standard_t(2, size=shape).astype(np.float32)
    bounded = quantize_weight(weight, CONV, 8, "pairs", per_channel=per_channel, least_error=True)
    assert largest_pair_sums(CONV.rows(bounded.numbers.astype(int))).max() * 255 <= 2**15 - 1
    halved = quantize_weight(weight, CONV, 8, "half", per_channel=per_channel, least_error=False)
    # Never wider than a whole bit less, save by what rounding needs.
    assert np.all(bounded.scales <= halved.scales * 1.01)


def test_bounding_neighbours_costs_less_than_a_bit():
    weight = np.random.default_rng(2).normal(size=(32, 64, 3, 3)).astype(np.float32)
    noise = {
        limit: np.square(
            quantize_weight(weight, CONV, 8, limit, per_channel=True, least_error=False).values() - weight
        ).mean()
        for limit in ("full", "pairs", "half")
    }
    assert noise["full"] < noise["pairs"] < 0.6 * noise["half"]


@pytest.mark.parametrize("shape", [(16, 16, 1, 1), (8, 7, 3, 3), (8, 5, 1, 1)])
def test_kernels_are_exact_on_bounded_neighbours(shape):
    """The largest activations with weights as large as they may be: sums are those of whole numbers."""
    rng = np.random.default_rng(3)
    weight = (rng.uniform(0.5, 1, size=shape) * rng.choice([-1, 1], size=(shape[0], 1, 1, 1))).astype(np.float32)
    x = np.full((1, shape[1], 4, 4), 255, np.uint8)
    codes = quantize_weight(weight, CONV, 8, "pairs", per_channel=True, least_error=False)
    assert _largest_error(codes.numbers, x) == 0
    if saturates():
        full = quantize_weight(weight, CONV, 8, "full", per_channel=True, least_error=False)
        assert _largest_error(full.numbers, x) > 0


def _largest_error(numbers, x):
    """Of QLinearConv with all scales 1, save that of the output, in steps of the output."""
    windows = np.lib.stride_tricks.sliding_window_view(x[0].astype(int), numbers.shape[2:], axis=(1, 2))
    sums = np.einsum("cijkl,ockl->oij", windows, numbers.astype(int))
    step = 2 ** int(np.ceil(np.log2(np.abs(sums).max() / 120)))
    stored = {
        "one": np.float32(1),
        "out": np.float32(step),
        "zero": np.uint8(0),
        "middle": np.uint8(128),
        "w": numbers,
        "w_zero": np.int8(0),
    }
    node = helper.make_node("QLinearConv", ["x", "one", "zero", "w", "one", "w_zero", "out", "middle"], ["y"])
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": x})[0].astype(int)
    expected = np.rint(sums / step) + 128
    return int(np.abs(found[0] - expected).max())


def test_zeros_and_scales_from_below():
    weight = np.array([[0.0, 0.0], [1e-6, -1e-6]], np.float32)
    codes = quantize_weight(weight, GEMM, 8, "full", per_channel=True, least_error=True)
    assert codes.scales[0] == 1.0
    assert codes.numbers.tolist() == [[0, 0], [127, -127]]
    lowest = np.array([0.0, 1e-4])
    codes = quantize_weight(weight, GEMM, 8, "full", per_channel=True, least_error=True, lowest_scales=lowest)
    assert codes.scales[1] == np.float32(1e-4)
    assert codes.numbers[1].tolist() == [0, 0]
