"""Intervals against scipy, closed forms and hand-computed numbers."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from scipy import stats

from compression.benchmarking import statistics


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


def test_mean_interval_of_many_different_values_is_students():
    rng = np.random.default_rng(8)
    for count in (300, 30_000):
        values = rng.gamma(2, 1, count)
        reference = stats.ttest_1samp(values, 0).confidence_interval()
        found = statistics.mean_interval(values, seed=0)
        assert found == pytest.approx((reference.low, reference.high), rel=0.02)


def test_samples_of_different_size_weigh_what_they_hold():
    rng = np.random.default_rng(9)
    sizes = rng.integers(1, 50, 400)
    first = rng.poisson(sizes * 0.3)
    second = first + rng.binomial(sizes, 0.05)
    difference, (low, high) = statistics.ratio_of_sums_difference(first, second, sizes, seed=0)
    assert difference == pytest.approx((second.sum() - first.sum()) / sizes.sum())
    # Against resampling whole samples and dividing anew.
    chosen = rng.integers(0, 400, (4000, 400))
    redone = (second - first)[chosen].sum(axis=1) / sizes[chosen].sum(axis=1)
    assert (low, high) == pytest.approx(np.percentile(redone, [2.5, 97.5]), abs=0.0015)


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (1, 0), (9, 2), (30, 30), (0, 40), (700, 600), (3000, 3100)])
def test_mcnemar_is_the_binomial_test(lost, won):
    before = np.r_[np.ones(lost, bool), np.zeros(won, bool), np.ones(5, bool)]
    after = np.r_[np.zeros(lost, bool), np.ones(won, bool), np.ones(5, bool)]
    expected = stats.binomtest(lost, lost + won).pvalue if lost + won else 1.0
    assert statistics.mcnemar(before, after) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (10, 10), (3, 10), (1797, 1797), (1700, 1797)])
def test_proportion_interval_is_scipys_wilson(successes, trials):
    reference = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    assert statistics.proportion_interval(successes, trials) == pytest.approx((reference.low, reference.high))


def test_verdicts():
    assert statistics.verdict(1.0, (1.0, 1.1)) == "no difference shown, 1.00x [1.00, 1.10]"
    assert statistics.verdict(0.98, (0.965, 0.995)) == "slower, 0.98x [0.96, 0.99]"
    assert not statistics.is_slower((0.96, 1.0))
    assert statistics.is_slower((0.90, 0.99))
    assert statistics.accuracy_verdict(0.004, (0.001, 0.007)) == "better, +0.40 points [+0.10, +0.70]"
    assert statistics.accuracy_verdict(0.0, (0.0, 0.0)) == "no difference shown, +0.00 points [+0.00, +0.00]"
    assert doctest.testmod(statistics).failed == 0
