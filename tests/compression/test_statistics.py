"""Intervals against scipy, closed forms and hand-computed numbers."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from scipy import stats

from compression.benchmarking import statistics


def test_ratio_of_medians_agrees_with_scipys_paired_bootstrap():
    rng = np.random.default_rng(0)
    machine = rng.lognormal(0, 0.5, 400)
    slow, fast = machine * rng.lognormal(0.6, 0.1, 400), machine * rng.lognormal(0, 0.1, 400)
    ratio, interval = statistics.ratio_of_medians(slow, fast, seed=1)
    assert ratio == np.median(slow) / np.median(fast)
    reference = stats.bootstrap(
        (slow, fast),
        lambda a, b, axis: np.median(a, axis=axis) / np.median(b, axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=4000,
        rng=np.random.default_rng(2),
    ).confidence_interval
    assert interval == pytest.approx((reference.low, reference.high), rel=0.02)


@pytest.mark.parametrize("count", [5, 6])
def test_row_medians_are_numpys(count):
    values = np.random.default_rng(0).random((20, count))
    np.testing.assert_array_equal(statistics._row_medians(values.copy()), np.median(values, axis=1))


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(3)
    covered = 0
    for trial in range(200):
        first, second = rng.lognormal(np.log(1.5), 0.2, 40), rng.lognormal(0, 0.2, 40)
        low, high = statistics.ratio_of_medians(first, second, seed=trial)[1]
        covered += low <= 1.5 <= high
    assert 180 <= covered <= 200


def test_chunks_and_thinning_do_not_change_what_is_estimated(monkeypatch):
    rng = np.random.default_rng(4)
    first, second = rng.normal(2, 0.1, 1000), rng.normal(1, 0.1, 1000)
    whole = statistics.ratio_of_medians(first, second, seed=0)
    monkeypatch.setattr(statistics, "_INDICES_AT_A_TIME", 3000)
    chunked = statistics.ratio_of_medians(first, second, seed=0)
    assert chunked == whole
    monkeypatch.setattr(statistics, "_MAX_RESAMPLED", 250)
    thinned = statistics.ratio_of_medians(first, second, seed=0)
    assert thinned[0] == whole[0]
    # A quarter of the samples: an interval about twice as wide.
    assert 1.3 < np.ptp(thinned[1]) / np.ptp(whole[1]) < 3


def test_the_same_seed_gives_the_same_interval():
    samples = np.random.default_rng(5).random((2, 50)) + 1
    assert statistics.ratio_of_medians(*samples, seed=7) == statistics.ratio_of_medians(*samples, seed=7)
    assert statistics.ratio_of_medians(*samples, seed=7) != statistics.ratio_of_medians(*samples, seed=8)


def test_mean_difference_agrees_with_scipys_bootstrap():
    rng = np.random.default_rng(6)
    before = rng.random(500) < 0.9
    after = np.where(rng.random(500) < 0.05, ~before, before)
    difference, interval = statistics.mean_difference(before, after, seed=1)
    assert difference == pytest.approx(after.mean() - before.mean())
    reference = stats.bootstrap(
        (after.astype(float) - before,), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(2)
    ).confidence_interval
    assert interval == pytest.approx((reference.low, reference.high), abs=0.003)


def test_mean_difference_by_hand():
    # 4 of 100 lost, 1 won: -0.03, standard error sqrt((0.05 - 0.03^2) / 100) = 0.02216.
    before, after = np.zeros(100), np.zeros(100)
    before[:4], after[4] = 1, 1
    difference, (low, high) = statistics.mean_difference(before, after, seed=0)
    assert difference == pytest.approx(-0.03)
    assert (high - low) / 2 == pytest.approx(1.96 * 0.02216, rel=0.1)


def test_mean_difference_without_a_difference_has_no_width():
    assert statistics.mean_difference(np.ones(9), np.ones(9), seed=0) == (0.0, (0.0, 0.0))


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (10, 10), (3, 10), (1797, 1797), (1700, 1797)])
def test_proportion_interval_is_scipys_wilson(successes, trials):
    reference = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    assert statistics.proportion_interval(successes, trials) == pytest.approx((reference.low, reference.high))


def test_verdicts():
    assert statistics.verdict(1.0, (1.0, 1.1)) == "no difference shown, 1.00x [1.00, 1.10]"
    # Within 3 % the luck of loading decides.
    assert statistics.verdict(0.98, (0.975, 0.985)) == "no difference shown, 0.98x [0.97, 0.98]"
    assert not statistics.is_slower((0.96, 0.975))
    assert statistics.is_slower((0.90, 0.96))
    assert statistics.accuracy_verdict(0.004, (0.001, 0.007)) == "better, +0.40 points [+0.10, +0.70]"
    assert statistics.accuracy_verdict(0.0, (0.0, 0.0)) == "no difference shown, +0.00 points [+0.00, +0.00]"
    assert doctest.testmod(statistics).failed == 0
