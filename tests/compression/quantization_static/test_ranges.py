"""Ranges against hand-computed divergences, brute force and NumPy's percentiles of all values."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from compression.quantization.integer.histogram import Extremes, Histogram
from compression.quantization.integer.ranges import Grid, choose, divergence, grid, parameters, squared_error

UNSIGNED, SIGNED = grid(8, symmetric=False), grid(8, symmetric=True)


def seen(values):
    histogram = Histogram()
    histogram.add(np.asarray(values, np.float32))
    return histogram


def normal_with_outliers():
    rng = np.random.default_rng(0)
    values = rng.normal(size=10_000)
    values[:10] *= 12
    return values.astype(np.float32)


@pytest.mark.parametrize(
    ("low", "high", "numbers", "scale", "zero_point"),
    [
        (-1.0, 3.0, UNSIGNED, 4 / 255, 64),
        (0.0, 6.0, UNSIGNED, 6 / 255, 0),
        (1.0, 6.0, UNSIGNED, 6 / 255, 0),  # zero belongs to every range
        (-3.0, -1.0, UNSIGNED, 3 / 255, 255),
        (-1.0, 3.0, SIGNED, 3 / 127, 0),
        (-1.0, 3.0, grid(16, symmetric=False), 4 / 65535, 16384),
        (0.0, 0.0, UNSIGNED, 1.0, 0),
        (0.0, 1e-45, SIGNED, 1.0, 0),
    ],
)
def test_scale_and_zero_point(low, high, numbers, scale, zero_point):
    found = parameters(low, high, numbers)
    assert found.scale == pytest.approx(scale, rel=1e-6)
    assert found.zero_point == zero_point


def test_minmax_is_the_extremes():
    extremes = Extremes()
    extremes.add(np.array([-2.0, 0.5], np.float32))
    extremes.add(np.array([7.0], np.float32))
    assert choose(extremes, "minmax", 99.99, UNSIGNED) == (-2.0, 7.0)
    assert choose(extremes, "minmax", 99.99, SIGNED) == (-7.0, 7.0)
    assert choose(Extremes(), "minmax", 99.99, UNSIGNED) == (0.0, 0.0)


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9])
def test_percentiles_are_those_of_all_values(percentile):
    values = normal_with_outliers()
    histogram = seen(values)
    outside = (100 - percentile) / 2
    found = choose(histogram, "percentile", percentile, UNSIGNED)
    for end, share in zip(found, (outside, 100 - outside), strict=True):
        # In the thin tails, neighbouring values are further apart than a bin is wide.
        lower, higher = (np.percentile(values, share, method=method) for method in ("lower", "higher"))
        assert lower - histogram.width <= end <= higher + histogram.width
    reach = max(-found[0], found[1])
    assert choose(histogram, "percentile", percentile, SIGNED) == (-reach, reach)


def test_divergence_by_hand():
    """Six bins in three levels, three values clipped into the last bin.

    Reference: 1, 2, 0, 4, 2, 1 + 3 of 13. Levels: 3, 4, 3, over two, one and two filled bins.
    """
    reference = np.array([1, 2, 4, 2, 4]) / 13
    spread = np.array([1.5, 1.5, 4.0, 1.5, 1.5]) / 10
    expected = np.sum(reference * np.log(reference / spread))
    assert divergence(np.array([1, 2, 0, 4, 2, 1]), 0, 3, 3) == pytest.approx(expected, abs=1e-4)


def test_divergence_of_what_levels_hold_exactly_is_nothing():
    assert divergence(np.array([3, 3, 5, 5, 0, 2]), 0, 0, 3) == pytest.approx(0, abs=1e-5)
    assert divergence(np.array([3, 1, 4, 1]), 0, 0, 4) == pytest.approx(0, abs=1e-5)


def test_entropy_takes_the_candidate_of_least_divergence():
    """All candidates computed in loops, from the definition."""
    values = np.abs(normal_with_outliers())
    histogram = seen(values)
    positive = histogram.counts[len(histogram.counts) // 2 :]
    last = int(np.flatnonzero(positive)[-1]) + 1
    lost = {}
    for end in range(last, 255, -16):
        bins = positive[:end].astype(float)
        reference = bins.copy()
        reference[-1] += positive[end:].sum()
        edges = [level * end // 256 for level in range(257)]
        other = np.zeros(end)
        for begin, stop in itertools.pairwise(edges):
            filled = reference[begin:stop] > 0
            if filled.any():
                other[begin:stop][filled] = bins[begin:stop].sum() / filled.sum()
        kept = reference > 0
        p, q = reference[kept] / reference.sum(), other[kept] / other.sum() + 1e-6
        lost[end] = np.sum(p * np.log(p / (q / q.sum())))
    best = min(lost, key=lost.__getitem__)
    low, high = choose(histogram, "entropy", 99.99, UNSIGNED)
    assert low == 0
    assert high == pytest.approx(min(best * histogram.width, values.max()))
    assert high < values.max()


@pytest.mark.parametrize("numbers", [UNSIGNED, SIGNED, grid(4, symmetric=False)], ids=str)
@pytest.mark.parametrize("shape", ["normal", "rectified", "shifted"])
def test_least_error_is_near_what_brute_force_finds(numbers, shape):
    values = normal_with_outliers().astype(np.float64)
    if shape == "rectified":
        values = np.maximum(values, 0)
    if shape == "shifted":
        values = np.exp(values / 3) - 0.5
    low, high = choose(seen(values), "mse", 99.99, numbers)
    assert low <= 0 <= high

    def error(low, high):
        found = parameters(low, high, numbers)
        codes = np.clip(np.rint(values / found.scale) + found.zero_point, numbers.low, numbers.high)
        return np.square((codes - found.zero_point) * found.scale - values).sum()

    if numbers.low < 0:
        candidates = [(-reach, reach) for reach in np.linspace(0.05, 1, 200) * np.abs(values).max()]
    else:
        lows = np.linspace(0.05, 1, 25) * min(values.min(), 0) if values.min() < 0 else [0.0]
        candidates = [(a, b) for a in lows for b in np.linspace(0.05, 1, 60) * values.max()]
    least = min(error(*candidate) for candidate in candidates)
    assert error(low, high) < 1.02 * least
    assert error(low, high) <= 1.0001 * error(min(values.min(), 0), values.max())


def test_squared_error_by_hand():
    # Scale 1, zero point 0: 2.6 becomes 3, 9 is clipped to 7.
    assert squared_error(np.array([2.6, 9.0]), np.array([10.0, 2.0]), 0.0, 7.0, Grid(0, 7)) == pytest.approx(
        10 * 0.16 + 2 * 4
    )


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy", "mse"])
@pytest.mark.parametrize("numbers", [UNSIGNED, SIGNED], ids=str)
def test_constant_values(method, numbers):
    assert choose(seen(np.zeros(100)), method, 99.99, numbers) == (0.0, 0.0)
    low, high = choose(seen(np.full(100, 2.5)), method, 99.99, numbers)
    assert parameters(low, high, numbers).represent(np.array([2.5]), numbers) == pytest.approx(2.5, rel=0.01)


@pytest.mark.parametrize("method", ["entropy", "mse"])
def test_16_bits_take_the_extremes(method):
    values = normal_with_outliers()
    found = choose(seen(values), method, 99.99, grid(16, symmetric=False))
    assert found == (values.min(), values.max())
