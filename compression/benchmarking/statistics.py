"""Intervals and what they say. Pure functions of samples and a seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float64]
Interval = tuple[float, float]

_RESAMPLES = 2000
_LEVELS = (2.5, 97.5)
_INDICES_AT_A_TIME = 1 << 21
_MAX_RESAMPLED = 10_000
_Z_95 = 1.959963984540054
# Where its weights happen to lie in memory makes a model up to about 2 % faster or slower for as long as it stays
# loaded: of pairs of the same file, timed for a second, most have an interval that is narrower than that and beside 1.
LUCK_OF_LOADING = 0.03


def ratio_of_medians(numerator: Samples, denominator: Samples, seed: int) -> tuple[float, Interval]:
    """median(numerator) / median(denominator) with its 95 % percentile-bootstrap interval (Efron 1979).

    Pairs are resampled, not single samples: a slow phase of the machine hits both samples of a pair, and mostly
    cancels. Of more than 10,000 pairs, 10,000 that are evenly spread give the interval, which so is a little wide.

    Args:
        numerator: (n,) positive samples.
        denominator: (n,) positive samples, each taken next to the one at the same index in `numerator`.
        seed: Of the resampling.
    """
    ratio = float(np.median(numerator) / np.median(denominator))
    kept = len(numerator)
    if kept > _MAX_RESAMPLED:
        spread = np.arange(_MAX_RESAMPLED) * kept // _MAX_RESAMPLED
        numerator, denominator, kept = numerator[spread], denominator[spread], _MAX_RESAMPLED
    rng = np.random.default_rng(seed)
    rows = max(1, _INDICES_AT_A_TIME // kept)
    ratios = []
    for start in range(0, _RESAMPLES, rows):
        chosen = rng.integers(0, kept, (min(rows, _RESAMPLES - start), kept))
        ratios.append(_row_medians(numerator[chosen]) / _row_medians(denominator[chosen]))
    return ratio, _interval(np.concatenate(ratios))


def _row_medians(values: Samples) -> Samples:
    """`numpy.median` along the last axis, in place and without its check for NaN."""
    middle = values.shape[1] // 2
    if values.shape[1] % 2:
        values.partition(middle, axis=1)
        return values[:, middle]
    values.partition((middle - 1, middle), axis=1)
    medians: Samples = (values[:, middle - 1] + values[:, middle]) / 2
    return medians


def mean_difference(first: npt.NDArray[Any], second: npt.NDArray[Any], seed: int) -> tuple[float, Interval]:
    """mean(second - first) of paired samples with its 95 % percentile-bootstrap interval.

    Equal differences are drawn together, which gives the same distribution as drawing samples and costs nothing when
    the samples are hits and misses: only three differences are possible, however many samples there are.

    Args:
        first: (n,) numbers, such as whether the original was right on each sample.
        second: (n,) the same of the result.
        seed: Of the resampling.
    """
    differences = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    values, counts = np.unique(differences, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(differences), counts / len(differences), _RESAMPLES)
    return float(differences.mean()), _interval(drawn @ values / len(differences))


def proportion_interval(successes: int, trials: int) -> Interval:
    """95 % interval of a proportion (Wilson 1927), which is sensible at 0 and 1 too, where a bootstrap has no width."""
    share = successes / trials
    center = share + _Z_95**2 / (2 * trials)
    half = _Z_95 * np.sqrt(share * (1 - share) / trials + _Z_95**2 / (4 * trials**2))
    scale = 1 + _Z_95**2 / trials
    return float(np.clip((center - half) / scale, 0, share)), float(np.clip((center + half) / scale, share, 1))


def verdict(ratio: float, interval: Interval) -> str:
    """A speed-up in words. Less than 3 % either way is luck of loading, however narrow the interval.

    >>> verdict(1.82, (1.74, 1.9))
    'faster, 1.82x [1.74, 1.90]'
    >>> verdict(0.99, (0.96, 1.03))
    'no difference shown, 0.99x [0.96, 1.03]'
    >>> verdict(0.71, (0.69, 0.73))
    'slower, 0.71x [0.69, 0.73]'
    >>> verdict(1.02, (1.01, 1.03))
    'no difference shown, 1.02x [1.01, 1.03]'
    """
    side = _side(interval, 1 - LUCK_OF_LOADING, 1 + LUCK_OF_LOADING, ("slower", "faster"))
    return f"{side}, {ratio:.2f}x [{interval[0]:.2f}, {interval[1]:.2f}]"


def accuracy_verdict(difference: float, interval: Interval) -> str:
    """A change of accuracy in words, in percentage points.

    >>> accuracy_verdict(-0.012, (-0.019, -0.005))
    'worse, -1.20 points [-1.90, -0.50]'
    """
    side = _side(interval, 0.0, 0.0, ("worse", "better"))
    return f"{side}, {difference * 100:+.2f} points [{interval[0] * 100:+.2f}, {interval[1] * 100:+.2f}]"


def is_slower(interval: Interval) -> bool:
    """Whether the interval of a speed-up shows that the result is slower; `verdict` agrees."""
    return interval[1] < 1 - LUCK_OF_LOADING


def _side(interval: Interval, low: float, high: float, words: tuple[str, str]) -> str:
    below, above = words
    if interval[1] < low:
        return below
    return above if interval[0] > high else "no difference shown"


def _interval(values: Samples) -> Interval:
    low, high = np.percentile(values, _LEVELS)
    return float(low), float(high)
