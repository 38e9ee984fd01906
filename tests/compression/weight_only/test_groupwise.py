"""Groups against numbers worked out by hand and ONNX Runtime's own rounding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compression.quantization.weight_only import groupwise


def column(*values):
    """A (1, 16, 1) weight that starts with the given values and ends with zeros."""
    return np.array([*values, *[0.0] * (16 - len(values))], np.float32)[None, :, None]


@pytest.mark.parametrize(
    "case",
    [
        # The largest magnitude, -4, becomes code 0: scale -4 / -8. 3.9 would be 15.8 and is clipped to 15.
        (4, True, (-4.0, 3.9, 0.5, 0.2, -0.3), 0.5, 8, [0, 15, 9, 8, 7]),
        # The largest magnitude is positive, so the scale is negative.
        (4, True, (8.0, -7.0, 1.0, 0.4), -1.0, 8, [0, 15, 7, 8]),
        # (3 - -0.75) / 15 is 0.25, and zero lies 3 steps above the lowest.
        (4, False, (-0.75, 3.0, 1.0, 0.3), 0.25, 3, [0, 15, 7, 4]),
        # Zero is always in the range.
        (4, False, (1.5, 3.0, 2.0), 0.2, 0, [8, 15, 10]),
        # Of 2 bits, codes 0 to 3 around 2: -2 to 1 steps of 0.5.
        (2, True, (-1.0, 0.6, 0.2, -0.3), 0.5, 2, [0, 3, 2, 1]),
        # 3 bits: (1.5 - -2) / 7 is 0.5.
        (3, False, (-2.0, 1.5, 0.3), 0.5, 4, [0, 7, 5]),
    ],
)
def test_groups_are_rounded_as_by_hand(case):
    bits, symmetric, values, scale, zero_point, codes = case
    groups, error = groupwise.round_to_nearest(column(*values), bits, 16, symmetric=symmetric)
    assert groups.scales.item() == pytest.approx(scale)
    assert groups.zero_points.item() == zero_point
    assert groups.codes[0, 0, :, 0].tolist() == codes + [zero_point] * (16 - len(codes))
    expected = (np.array(codes) - zero_point) * scale
    np.testing.assert_allclose(groupwise.dequantize(groups, 16)[0, : len(codes), 0], expected, rtol=1e-6)
    assert error == pytest.approx(np.square(expected - values).sum(), rel=1e-5)


def test_a_group_of_zeros_stays_zero():
    groups, error = groupwise.round_to_nearest(np.zeros((2, 16, 3), np.float32), 4, 16, symmetric=True)
    assert not groupwise.dequantize(groups, 16).any()
    assert error == 0


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_codes_are_those_of_onnx_runtimes_own_quantizer(bits, symmetric):
    from onnxruntime.capi import _pybind_state as runtime

    inputs, outputs, group = 128, 7, 32
    values = np.random.default_rng(0).standard_normal((inputs, outputs)).astype(np.float32)
    packed = np.zeros((outputs, inputs // group, group * bits // 8), np.uint8)
    scales = np.zeros((outputs, inputs // group), np.float32)
    zero_points = np.zeros((outputs, (inputs // group * bits + 7) // 8), np.uint8)
    quantizer = getattr(runtime, f"quantize_matmul_{bits}bits")
    quantizer(packed, values, scales, zero_points, group, outputs, inputs, symmetric)
    groups, _ = groupwise.round_to_nearest(values[None], bits, group, symmetric=symmetric)
    by_output = groups.turned()
    np.testing.assert_array_equal(groupwise.pack(by_output.codes[..., 0], bits), packed)
    np.testing.assert_array_equal(by_output.scales[..., 0], scales)
    if not symmetric:
        np.testing.assert_array_equal(groupwise.pack(by_output.zero_points[..., 0], bits), zero_points)


def test_every_value_is_within_half_a_step():
    w = np.random.default_rng(0).standard_normal((1, 64, 9)).astype(np.float32)
    groups, _ = groupwise.round_to_nearest(w, 8, 32, symmetric=False)
    steps = np.repeat(groups.scales, 32, axis=1)
    # The zero point is rounded too, which can push the ends of the range half a step out.
    assert np.all(np.abs(groupwise.dequantize(groups, 64) - w) <= steps * 1.001)
    assert np.mean(np.abs(groupwise.dequantize(groups, 64) - w) <= steps * 0.5001) > 0.99


def test_stacks_and_columns_are_quantized_each_for_itself():
    """40 inputs leave the last group incomplete."""
    w = np.random.default_rng(0).standard_normal((2, 40, 3)).astype(np.float32)
    together, error = groupwise.round_to_nearest(w, 4, 16, symmetric=False)
    errors = 0.0
    for stack in range(2):
        for column_ in range(3):
            alone, one = groupwise.round_to_nearest(
                w[stack : stack + 1, :, column_ : column_ + 1], 4, 16, symmetric=False
            )
            np.testing.assert_array_equal(together.codes[stack, ..., column_], alone.codes[0, ..., 0])
            np.testing.assert_array_equal(together.scales[stack, :, column_], alone.scales[0, :, 0])
            errors += one
    assert error == pytest.approx(errors, rel=1e-5)
    assert error == pytest.approx(np.square(groupwise.dequantize(together, 40) - w).sum(), rel=1e-5)


@given(st.sampled_from([2, 4, 8]), st.lists(st.integers(0, 255), min_size=1, max_size=40))
def test_packing_is_bits_in_a_row_with_the_first_code_lowest(bits, values):
    codes = np.array(values, np.uint8) & np.uint8((1 << bits) - 1)
    bit_rows = np.unpackbits(codes[:, None], axis=1, bitorder="little")[:, :bits]
    np.testing.assert_array_equal(groupwise.pack(codes, bits), np.packbits(bit_rows, bitorder="little"))
