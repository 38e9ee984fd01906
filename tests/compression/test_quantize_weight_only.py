"""Weight-only quantization against numbers worked out by hand and ONNX Runtime's own rounding."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from compression.errors import StepFailed
from compression.graph.inspect import summarize
from compression.quantization import groupwise
from compression.spec import QuantizeWeightOnly
from tests.compression.models import cnn, embedding, make_model, mlp, value, weight
from tests.compression.quantizing import apply, digits_accuracy, digits_model, outputs, sqnr, stored


def column(*values):
    """A (16, 1) weight that starts with the given values and ends with zeros."""
    return np.array([*values, *[0.0] * (16 - len(values))], np.float32)[:, None]


@pytest.mark.parametrize(
    ("symmetric", "values", "scale", "zero_point", "codes"),
    [
        # The largest magnitude, -4, becomes code 0: scale -4 / -8. 3.9 would be 15.8 and is clipped to 15.
        (True, (-4.0, 3.9, 0.5, 0.2, -0.3), 0.5, 8, [0, 15, 9, 8, 7]),
        # The largest magnitude is positive, so the scale is negative.
        (True, (8.0, -7.0, 1.0, 0.4), -1.0, 8, [0, 15, 7, 8]),
        # (3 - -0.75) / 15 is 0.25, and zero lies 3 steps above the lowest.
        (False, (-0.75, 3.0, 1.0, 0.3), 0.25, 3, [0, 15, 7, 4]),
        # Zero is always in the range.
        (False, (1.5, 3.0, 2.0), 0.2, 0, [8, 15, 10]),
    ],
)
def test_groups_of_4_bits_are_rounded_as_by_hand(symmetric, values, scale, zero_point, codes):
    groups = groupwise.quantize(column(*values), 4, 16, symmetric=symmetric)
    assert groups.scales.item() == pytest.approx(scale)
    assert groups.zero_points.item() == zero_point
    assert groups.values[0, 0].tolist() == codes + [zero_point] * (16 - len(codes))
    expected = (np.array(codes) - zero_point) * scale
    np.testing.assert_allclose(groupwise.dequantize(groups, 16)[: len(codes), 0], expected, rtol=1e-6)


def test_a_group_of_zeros_stays_zero():
    groups = groupwise.quantize(np.zeros((16, 3), np.float32), 4, 16, symmetric=True)
    assert not groupwise.dequantize(groups, 16).any()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_codes_are_those_of_onnx_runtimes_own_quantizer(bits, symmetric):
    from onnxruntime.capi import _pybind_state as runtime

    inputs, outputs_, group = 128, 7, 32
    values = np.random.default_rng(0).standard_normal((inputs, outputs_)).astype(np.float32)
    packed = np.zeros((outputs_, inputs // group, group * bits // 8), np.uint8)
    scales = np.zeros((outputs_, inputs // group), np.float32)
    zero_points = np.zeros((outputs_, (inputs // group * bits + 7) // 8), np.uint8)
    quantizer = {4: runtime.quantize_matmul_4bits, 8: runtime.quantize_matmul_8bits}[bits]
    quantizer(packed, values, scales, zero_points, group, outputs_, inputs, symmetric)
    groups = groupwise.quantize(values, bits, group, symmetric=symmetric)
    np.testing.assert_array_equal(groupwise.pack(groups.values, bits), packed)
    np.testing.assert_array_equal(groups.scales, scales)
    if not symmetric:
        np.testing.assert_array_equal(groupwise.pack(groups.zero_points, bits), zero_points)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [16, 32, 64])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_runtime_multiplies_by_what_the_codes_stand_for(bits, group_size, symmetric, tmp_path):
    """An identity matrix as input gives back the weight; 40 inputs leave a group incomplete."""
    rng = np.random.default_rng(0)
    w = weight(rng, 40, 5)
    model = make_model(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "product")],
        [value("x", ["n", 40])],
        [value("y", ["n", 5])],
        {"w": w},
    )
    spec = QuantizeWeightOnly(weight_bits=bits, group_size=group_size, symmetric=symmetric)
    result, details = apply(model, spec, tmp_path)
    expected = groupwise.dequantize(groupwise.quantize(w, bits, group_size, symmetric=symmetric), 40)
    np.testing.assert_allclose(outputs(result, x=np.eye(40, dtype=np.float32)), expected, atol=1e-6)
    (entry,) = details["weights"]
    assert entry["scales"] == 5 * -(-40 // group_size)
    assert entry["mean_squared_error"] == pytest.approx(np.square(expected - w).mean(), rel=1e-4)


def test_every_value_is_within_half_a_step():
    w = np.random.default_rng(0).standard_normal((64, 9)).astype(np.float32)
    groups = groupwise.quantize(w, 8, 32, symmetric=False)
    steps = np.repeat(groups.scales, 32, axis=1).T
    # The zero point is rounded too, which can push the ends of the range half a step out.
    assert np.all(np.abs(groupwise.dequantize(groups, 64) - w) <= steps * 1.001)
    assert np.mean(np.abs(groupwise.dequantize(groups, 64) - w) <= steps * 0.5001) > 0.99


def test_half_precision_weights(tmp_path):
    model = mlp(dtype=np.float16)
    result, _ = apply(model, QuantizeWeightOnly(weight_bits=8), tmp_path)
    x = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float16)
    assert stored(result)["w1_scale"].dtype == np.float16
    assert sqnr(outputs(model, x=x), outputs(result, x=x)) > 35


def test_gemm_becomes_a_product_and_the_convolutions_stay(tmp_path):
    model = cnn()
    result, details = apply(model, QuantizeWeightOnly(), tmp_path)
    assert {entry["name"]: "skipped" in entry for entry in details["weights"]} == {
        "conv1.weight": True,
        "conv2.weight": True,
        "fc.weight": False,
    }
    assert "Conv 'conv1'" in details["weights"][0]["skipped"]
    np.testing.assert_array_equal(stored(result)["conv1.weight"], stored(model)["conv1.weight"])
    assert [node.op_type for node in result.graph.node][-2:] == ["MatMulNBits", "Add"]
    before, after = summarize(model, 0, 0), summarize(result, 0, 0)
    assert (after.parameters, after.macs, after.quantized) == (before.parameters, before.macs, True)


def test_4_bits_take_an_eighth_and_the_scales(tmp_path):
    result, _ = apply(mlp(), QuantizeWeightOnly(weight_bits=4, group_size=32), tmp_path)
    parts = stored(result)
    assert parts["w1_quantized"].nbytes == 64 * 128 // 2
    assert parts["w1_scale"].shape == (128, 2)
    assert "w1" not in parts


@pytest.mark.parametrize("bits", [4, 8])
def test_digits_stay_within_a_point_of_float(bits, tmp_path):
    model = digits_model()
    result, _ = apply(model, QuantizeWeightOnly(weight_bits=bits), tmp_path)
    assert digits_accuracy(result) > digits_accuracy(model) - 0.01


def test_an_excluded_matrix_stays_float(tmp_path):
    model = mlp()
    result, details = apply(model, QuantizeWeightOnly(exclude=("matmul2",)), tmp_path)
    np.testing.assert_array_equal(stored(result)["w2"], stored(model)["w2"])
    assert [entry["name"] for entry in details["weights"]] == ["w1"]


def test_a_weight_in_several_products(tmp_path):
    rng = np.random.default_rng(0)
    model = make_model(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"], "first"),
            helper.make_node("MatMul", ["h", "w"], ["y"], "second"),
        ],
        [value("x", ["n", 32])],
        [value("y", ["n", 32])],
        {"w": weight(rng, 32, 32)},
    )
    result, _ = apply(model, QuantizeWeightOnly(weight_bits=8), tmp_path)
    assert [node.input[1] for node in result.graph.node] == ["w_quantized", "w_quantized"]
    x = rng.standard_normal((8, 32)).astype(np.float32)
    assert sqnr(outputs(model, x=x), outputs(result, x=x)) > 35


@pytest.mark.parametrize(
    ("model", "include", "reason"),
    [
        (cnn(), ("conv*",), "Conv 'conv1'"),
        (embedding(), ("table",), "Gather 'lookup'"),
        (
            make_model(
                [helper.make_node("MatMul", ["w", "x"], ["y"], "left")],
                [value("x", [8, 3])],
                [value("y", [5, 3])],
                {"w": np.ones((5, 8), np.float32)},
            ),
            ("*",),
            "'left' multiplies by it from the left",
        ),
        (
            make_model(
                [helper.make_node("MatMul", ["x", "w"], ["y"], "stack")],
                [value("x", [2, 3, 8])],
                [value("y", [2, 3, 5])],
                {"w": np.ones((2, 8, 5), np.float32)},
            ),
            ("*",),
            "3 axes",
        ),
    ],
    ids=["convolutions", "embedding", "left", "stack"],
)
def test_nothing_to_quantize(model, include, reason, tmp_path):
    with pytest.raises(StepFailed, match=reason) as error:
        apply(model, QuantizeWeightOnly(include=include), tmp_path)
    assert error.value.code == "no_weights"
