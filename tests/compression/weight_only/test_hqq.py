"""Half-quadratic quantization against what it promises: less error, by a norm that forgives outliers."""

from __future__ import annotations

import numpy as np
import pytest

from compression.quantization.weight_only import groupwise, hqq


def heavy_tailed(seed=0):
    """(1, 512, 24) weights with a few that are many times as large as the others."""
    return np.random.default_rng(seed).standard_t(3, (1, 512, 24)).astype(np.float32) * np.float32(0.02)


def norms(values, groups):
    """For each group the sum of |error|^0.7, in double precision."""
    error = groupwise.dequantize(groups, values.shape[1]).astype(np.float64) - values
    return (np.abs(error) ** 0.7).reshape(1, -1, 32, values.shape[2]).sum(2)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_heavy_tails_err_less_than_by_rounding_to_nearest(bits):
    values = heavy_tailed()
    nearest, _ = groupwise.round_to_nearest(values, bits, 32, symmetric=False)
    found, squared = hqq.quantize(values, bits, 32)
    assert norms(values, found).sum() < 0.98 * norms(values, nearest).sum()
    assert np.all(norms(values, found) <= norms(values, nearest) * (1 + 1e-4) + 1e-6)
    error = groupwise.dequantize(found, 512) - values
    assert squared == pytest.approx(np.square(error).sum(), rel=1e-4)


@pytest.mark.parametrize("bits", [2, 4])
def test_a_grid_that_is_there_is_found_exactly(bits):
    """Values on a grid of scale 0.25 with whole zero points lose nothing."""
    rng = np.random.default_rng(1)
    top = (1 << bits) - 1
    codes = rng.integers(0, top + 1, (1, 64, 5))
    codes[:, ::16], codes[:, 1::16] = 0, top
    zero = rng.integers(0, top + 1, (1, 1, 5))
    values = ((codes - zero) * 0.25).astype(np.float32)
    found, error = hqq.quantize(values, bits, 16)
    np.testing.assert_allclose(groupwise.dequantize(found, 64), values, atol=1e-6)
    assert error < 1e-9


def test_it_does_not_matter_in_which_unit_weights_are():
    values = heavy_tailed(2)
    one, _ = hqq.quantize(values, 3, 32)
    other, _ = hqq.quantize(values * np.float32(64), 3, 32)
    np.testing.assert_array_equal(one.codes, other.codes)
    np.testing.assert_allclose(one.scales * 64, other.scales, rtol=1e-5)


def test_groups_of_zeros_and_of_one_value_stay():
    values = np.zeros((1, 32, 2), np.float32)
    values[:, :, 1] = 0.3
    found, _ = hqq.quantize(values, 4, 32)
    np.testing.assert_allclose(groupwise.dequantize(found, 32), values, atol=1e-6)


def test_half_precision_scales_are_the_ones_that_codes_are_made_for():
    values = heavy_tailed(3).astype(np.float16)
    found, squared = hqq.quantize(values, 4, 32)
    assert found.scales.dtype == np.float16
    error = groupwise.dequantize(found, 512) - values.astype(np.float32)
    assert squared == pytest.approx(np.square(error).sum(), rel=1e-3)
