"""Streaming histograms against NumPy's of all values at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compression.quantization.integer.histogram import BINS, Extremes, Histogram


def filled(*batches):
    histogram = Histogram()
    for batch in batches:
        histogram.add(np.asarray(batch, np.float32))
    return histogram


def values(seed, count=5000):
    """Batches of very different size and spread, zeros among them."""
    rng = np.random.default_rng(seed)
    batches = [rng.normal(size=(rng.integers(1, count), 3)) * 10.0 ** rng.uniform(-3, 3) for _ in range(6)]
    return [np.where(rng.random(batch.shape) < 0.2, 0, batch).astype(np.float32) for batch in batches]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_bins_are_those_of_all_values_at_once(seed):
    batches = values(seed)
    found = filled(*batches)
    together = np.concatenate(batches)
    edges = np.arange(-BINS, BINS + 1) * found.width
    expected, _ = np.histogram(together.astype(np.float64), edges)
    # NumPy's last bin is closed: nothing lies there, as the largest magnitude is below the outer edge.
    np.testing.assert_array_equal(found.counts, expected)
    assert (found.low, found.high) == (together.min(), together.max())
    assert found.zeros == np.count_nonzero(together == 0)
    assert found.count == together.size
    assert BINS / 2 <= max(-found.low, found.high) / found.width < BINS


def test_the_order_of_batches_does_not_matter():
    batches = values(1)
    one, other = filled(*batches), filled(*reversed(batches))
    np.testing.assert_array_equal(one.counts, other.counts)
    assert one.exponent == other.exponent


@pytest.mark.parametrize("share", [0.0, 0.001, 0.25, 0.5, 0.9, 0.9999, 1.0])
def test_quantiles_are_within_a_bin_of_the_exact_ones(share):
    batches = values(2)
    found = filled(*batches)
    together = np.concatenate(batches).astype(np.float64)
    lower, higher = (np.quantile(together, share, method=method) for method in ("lower", "higher"))
    assert lower - found.width <= found.quantile(share) <= higher + found.width


def test_centres_stand_for_all_values():
    batches = values(3)
    found = filled(*batches)
    together = np.concatenate(batches).astype(np.float64)
    middles, counts = found.centres()
    assert counts.sum() == together.size
    assert counts[middles == 0].sum() == np.count_nonzero(together == 0)
    assert np.all(np.diff(middles) > 0)
    assert middles @ counts == pytest.approx(together.sum(), abs=found.width / 2 * together.size)


def test_powers_of_two_at_the_edge_of_the_range():
    found = filled([1.0, -1.0], [2.0, -2.0])
    assert found.counts.sum() == 4
    middles, counts = found.centres()
    assert np.abs(middles - [-2, -1, 1, 2]).max() <= found.width
    assert counts.tolist() == [1, 1, 1, 1]


def test_zeros_alone_and_nothing():
    found = filled(np.zeros(7), np.zeros((0, 3)))
    assert (found.low, found.high, found.count, found.zeros, found.width) == (0, 0, 7, 7, 0)
    assert [part.tolist() for part in found.centres()] == [[0.0], [7.0]]
    assert filled().count == 0


def test_very_small_and_very_large_values():
    tiny, huge = filled([1e-40, -3e-39]), filled([3e38, -1e-3])
    assert tiny.counts.sum() == 2
    assert (huge.low, huge.high) == (np.float32(-1e-3), np.float32(3e38))
    assert huge.counts.sum() == 2


@pytest.mark.parametrize("kind", [Extremes, Histogram])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(kind, bad):
    with pytest.raises(ValueError, match="finite"):
        kind().add(np.array([1.0, bad, 2.0], np.float32))


def test_memory_does_not_depend_on_the_values():
    found = filled(*values(4))
    assert found.counts.nbytes == 2 * BINS * 8
    assert set(vars(found)) == {"low", "high", "count", "counts", "exponent", "zeros"}
