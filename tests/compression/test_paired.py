"""Speed-ups from pairs, against scipy, closed forms, and worlds whose truth is known."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from scipy import signal, stats

from compression.benchmarking import paired


def autoregressive(rng, count, correlation, scale=1.0):
    """A stationary series in which neighbours have this correlation."""
    noise = rng.normal(0, scale * np.sqrt(1 - correlation**2), count + 200)
    return signal.lfilter([1], [1, -correlation], noise)[200:]


def pairs(rng, count, speed_up, *, noise=0.05, correlation=0.0):
    """Times on a machine that changes its speed by half from pair to pair."""
    machine = rng.lognormal(0, 0.5, count)
    return machine * np.exp(np.log(speed_up) + autoregressive(rng, count, correlation, noise)), machine


def misses(rng, trials, *, loads, luck, correlation=0.0, count=150):
    """How many of the 95 % intervals miss the truth, where each load has its own luck."""
    missed = 0
    for trial in range(trials):
        timed = [pairs(rng, count, 1.5 * np.exp(rng.normal(0, luck)), correlation=correlation) for _ in range(loads)]
        low, high = paired.speed_up(timed, trial).interval
        missed += not low <= 1.5 <= high
    return missed


@pytest.mark.parametrize(
    ("loads", "luck", "correlation"), [(1, 0.0, 0.0), (5, 0.0, 0.6), (5, 0.01, 0.0), (5, 0.015, 0.5), (10, 0.03, 0.0)]
)
def test_intervals_miss_the_truth_about_as_rarely_as_they_say(loads, luck, correlation):
    # At most 5 in 100 on average; 13 of 100 or more would be a chance of 1 in 1000.
    assert misses(np.random.default_rng(0), 100, loads=loads, luck=luck, correlation=correlation) <= 12


def test_intervals_are_not_wider_than_they_need_to_be():
    rng = np.random.default_rng(1)
    timed = [pairs(rng, 400, 2.0) for _ in range(5)]
    low, high = paired.speed_up(timed, 0).interval
    # Luck alone, of which the loads showed nothing: 2.306 * 1.5 % / sqrt(2 * 5), on both sides.
    assert np.log(high / low) == pytest.approx(2 * 2.306 * 0.015 / np.sqrt(10), rel=0.15)


def test_blocks_make_the_interval_of_autocorrelated_pairs_wider():
    rng = np.random.default_rng(2)
    first, second = pairs(rng, 2000, 1.0, noise=0.3, correlation=0.9)
    shuffled = rng.permutation(2000)
    mixed = paired.speed_up([(first[shuffled], second[shuffled])], 0)
    found = paired.speed_up([(first, second)], 0)
    assert found.block_length > 10
    assert mixed.block_length <= 3
    # sqrt((1 + r) / (1 - r)) for a mean, where r = 0.72 is that of the signs of a series with 0.9 (2 / pi arcsin).
    assert 1.7 < np.log(found.interval[1] / found.interval[0]) / np.log(mixed.interval[1] / mixed.interval[0]) < 4


def test_estimates_by_hand():
    # Ratios 2, 4, 8 and 1, 1, 4 in two loads: the medians are 4 and 1, their geometric mean 2.
    loads = [(np.array([2.0, 4, 8]), np.ones(3)), (np.array([3.0, 5, 4]), np.array([3.0, 5, 1]))]
    found = paired.speed_up(loads, 0)
    assert found.ratio == pytest.approx(2.0)
    assert found.interval[0] * found.interval[1] == pytest.approx(4.0)
    assert paired.speed_up(loads, 0) == found
    assert paired.speed_up(loads[:1], 0).between_loads is None


def test_slow_phases_of_the_machine_cancel():
    rng = np.random.default_rng(3)
    first, second = pairs(rng, 300, 1.25, noise=0.01)
    slow = np.where(np.arange(300) < 150, 1.0, 7.0)
    found = paired.speed_up([(first * slow, second * slow)], 0)
    assert found.ratio == pytest.approx(1.25, rel=0.003)


def test_luck_of_loading_is_told_from_chance():
    rng = np.random.default_rng(4)
    calm = paired.speed_up([pairs(rng, 500, 1.0) for _ in range(20)], 0)
    lucky = paired.speed_up([pairs(rng, 500, np.exp(rng.normal(0, 0.05))) for _ in range(20)], 0)
    assert calm.between_loads < 0.005
    assert 0.03 < lucky.between_loads < 0.07


@pytest.mark.parametrize("correlation", [0.3, 0.6, 0.9])
def test_block_length_is_the_optimum_of_an_autoregressive_series(correlation):
    """Politis and White, section 2: the optimum follows from the autocovariances, here r^|k|."""
    count = 4000
    optimum = (6 * correlation**2 / (1 - correlation**2) ** 2 * count) ** (1 / 3)
    found = [paired.block_length(autoregressive(np.random.default_rng(seed), count, correlation)) for seed in range(10)]
    assert np.median(found) == pytest.approx(optimum, rel=0.25)


@pytest.mark.parametrize(
    "series", [np.random.default_rng(5).normal(size=1000), np.ones(50), np.array([1.0]), np.ones(2)]
)
def test_independent_samples_need_no_blocks(series):
    assert paired.block_length(series) == 1


def test_block_length_is_bounded():
    assert paired.block_length(np.repeat([0.0, 1.0], 50)) <= 100 / 3 + 1


@pytest.mark.parametrize(("count", "slow"), [(30, 6), (100, 20), (500, 150)])
def test_warming_up_ends_where_calls_have_settled(count, slow):
    found = []
    for seed in range(50):
        seconds = np.random.default_rng(seed).lognormal(0, 0.05, count)
        seconds[:slow] *= np.linspace(3, 1.3, slow)
        found.append(paired.warm_up(seconds))
    assert slow - 5 <= np.median(found) <= slow + 5
    assert np.quantile(found, 0.9) <= count / 2


def test_warming_up_takes_at_most_half():
    assert paired.warm_up(np.linspace(2, 1, 40)) <= 20
    assert paired.warm_up(np.array([9.0, 1.0])) == 1
    assert paired.warm_up(np.array([9.0])) == 0


def test_settled_calls_lose_one_and_spikes_are_no_trend():
    rng = np.random.default_rng(6)
    steady = rng.lognormal(0, 0.05, 200)
    assert paired.warm_up(np.r_[steady[:1], np.full(199, steady[0])]) == 1
    # A few calls that were interrupted, early on: not worth half of the samples.
    steady[[12, 31, 44]] *= 50
    assert paired.warm_up(steady) <= 50


@pytest.mark.parametrize("degrees", [4, 5, 7, 12, 100])
def test_students_quantile_is_scipys(degrees):
    assert paired.student_t(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=4e-4)


@pytest.mark.parametrize("count", [5, 6])
def test_row_medians_are_numpys(count):
    values = np.random.default_rng(0).random((20, count))
    np.testing.assert_array_equal(paired._row_medians(values.copy()), np.median(values, axis=1))


@pytest.mark.parametrize("length", [1, 7])
def test_resampled_medians_spread_as_theory_says(length):
    # The median of n normal samples has the standard deviation 1.2533 / sqrt(n), in blocks or not.
    values = np.random.default_rng(7).normal(size=900)
    medians = paired._block_medians(values, length, 900, np.random.default_rng(8))
    assert medians.std() == pytest.approx(1.2533 / 30, rel=0.35)
    assert np.median(medians) == pytest.approx(np.median(values), abs=0.02)


def test_many_pairs_are_thinned_and_chunks_change_nothing(monkeypatch):
    rng = np.random.default_rng(9)
    loads = [pairs(rng, 3000, 2.0)]
    whole = paired.speed_up(loads, seed=0)
    monkeypatch.setattr(paired, "_INDICES_AT_A_TIME", 9000)
    assert paired.speed_up(loads, seed=0) == whole
    monkeypatch.setattr(paired, "_MAX_RESAMPLED", 750)
    thinned = paired.speed_up(loads, seed=0)
    assert thinned.ratio == whole.ratio
    assert thinned.interval != whole.interval


def test_examples_hold():
    assert doctest.testmod(paired).failed == 0
