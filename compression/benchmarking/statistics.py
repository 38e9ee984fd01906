"""Intervals and what they say. Pure functions of samples and a seed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float64]
Interval = tuple[float, float]

_RESAMPLES = 2000
_LEVELS = (2.5, 97.5)
_FEW_VALUES = 64
_MANY_SAMPLES = 20_000
_INDICES_AT_A_TIME = 1 << 21
_Z_95 = 1.959963984540054


def mean_difference(first: npt.NDArray[Any], second: npt.NDArray[Any], seed: int) -> tuple[float, Interval]:
    """mean(second - first) of paired samples with its 95 % interval.

    Args:
        first: (n,) numbers, such as whether the original was right on each sample.
        second: (n,) the same of the result.
        seed: Of the resampling.
    """
    differences = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    return float(differences.mean()), mean_interval(differences, seed)


def mean_interval(values: npt.NDArray[Any], seed: int) -> Interval:
    """The 95 % percentile-bootstrap interval of a mean (Efron 1979); the normal one where samples are very many.

    Equal values are drawn together, which gives the same distribution as drawing samples and costs nothing when the
    samples are hits and misses: only few values are possible, however many samples there are.

    Args:
        values: (n,) numbers.
        seed: Of the resampling.
    """
    values = np.asarray(values, np.float64)
    count = len(values)
    distinct, counts = np.unique(values, return_counts=True)
    rng = np.random.default_rng(seed)
    if len(distinct) <= _FEW_VALUES:
        drawn = rng.multinomial(count, counts / count, _RESAMPLES)
        return _interval(drawn @ distinct / count)
    if count > _MANY_SAMPLES:
        half = _Z_95 * float(values.std(ddof=1)) / math.sqrt(count)
        return float(values.mean()) - half, float(values.mean()) + half
    rows = max(1, _INDICES_AT_A_TIME // count)
    means = [
        values[rng.integers(0, count, (min(rows, _RESAMPLES - start), count))].mean(axis=1)
        for start in range(0, _RESAMPLES, rows)
    ]
    return _interval(np.concatenate(means))


def ratio_of_sums_difference(
    first: npt.NDArray[Any], second: npt.NDArray[Any], sizes: npt.NDArray[Any], seed: int
) -> tuple[float, Interval]:
    """(sum(second) - sum(first)) / sum(sizes) with its 95 % interval: samples of different size weigh what they hold.

    The interval is that of the mean of what each sample adds to the difference (the ratio estimator's linearization,
    Cochran 1977, section 6.3).

    Args:
        first: (n,) sums, such as the negative log likelihood that the original gives to the tokens of each text.
        second: (n,) the same of the result.
        sizes: (n,) such as the number of tokens; not all 0.
        seed: Of the resampling.
    """
    differences = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    total = float(np.sum(sizes))
    share = float(differences.sum()) / total
    low, high = mean_interval((differences - share * sizes) * len(differences) / total, seed)
    return share, (share + low, share + high)


def mcnemar(before: npt.NDArray[Any], after: npt.NDArray[Any]) -> float:
    """The two-sided p-value of McNemar's test in its exact form, 1 where no sample tells the two apart.

    Of the samples that only one of the two got right, each is as likely to be either's if they are equally good
    (McNemar 1947); so the smaller number is binomial.

    Args:
        before: (n,) whether the first was right.
        after: (n,) whether the second was.
    """
    lost = int(np.sum(before & ~after))
    won = int(np.sum(~before & after))
    count, fewer = lost + won, min(lost, won)
    if count == 0:
        return 1.0
    steps = np.arange(1, fewer + 1)
    logs = np.concatenate([[0.0], np.cumsum(np.log((count - steps + 1) / steps))])
    largest = float(logs.max())
    tail = largest + math.log(float(np.exp(logs - largest).sum())) - count * math.log(2)
    return min(1.0, 2 * math.exp(tail))


def proportion_interval(successes: int, trials: int) -> Interval:
    """95 % interval of a proportion (Wilson 1927), which is sensible at 0 and 1 too, where a bootstrap has no width."""
    share = successes / trials
    center = share + _Z_95**2 / (2 * trials)
    half = _Z_95 * np.sqrt(share * (1 - share) / trials + _Z_95**2 / (4 * trials**2))
    scale = 1 + _Z_95**2 / trials
    return float(np.clip((center - half) / scale, 0, share)), float(np.clip((center + half) / scale, share, 1))


def verdict(ratio: float, interval: Interval) -> str:
    """A speed-up in words.

    >>> verdict(1.82, (1.74, 1.9))
    'faster, 1.82x [1.74, 1.90]'
    >>> verdict(0.99, (0.96, 1.03))
    'no difference shown, 0.99x [0.96, 1.03]'
    >>> verdict(0.71, (0.69, 0.73))
    'slower, 0.71x [0.69, 0.73]'
    """
    return ratio_verdict(ratio, interval, ("slower", "faster"))


def ratio_verdict(ratio: float, interval: Interval, words: tuple[str, str]) -> str:
    """A ratio in words, of which the first stands for one below 1, the second for one above."""
    side = _side(interval, 1.0, words)
    return f"{side}, {ratio:.2f}x [{interval[0]:.2f}, {interval[1]:.2f}]"


def difference_verdict(difference: float, interval: Interval) -> str:
    """A change in words where more is better, as it is.

    >>> difference_verdict(-0.012, (-0.019, -0.005))
    'worse, -0.0120 [-0.0190, -0.0050]'
    """
    side = _side(interval, 0.0, ("worse", "better"))
    return f"{side}, {difference:+.4f} [{interval[0]:+.4f}, {interval[1]:+.4f}]"


def accuracy_verdict(difference: float, interval: Interval) -> str:
    """A change of a share of hits in words, in percentage points.

    >>> accuracy_verdict(-0.012, (-0.019, -0.005))
    'worse, -1.20 points [-1.90, -0.50]'
    """
    side = _side(interval, 0.0, ("worse", "better"))
    return f"{side}, {difference * 100:+.2f} points [{interval[0] * 100:+.2f}, {interval[1] * 100:+.2f}]"


def error_verdict(original: float, difference: float, interval: Interval) -> str:
    """A change of an error in words, as a share of the original's where there is any.

    >>> error_verdict(0.5, 0.05, (0.01, 0.09))
    'worse, +10.0 % [+2.0, +18.0]'
    >>> error_verdict(0.0, 0.0005, (-0.0001, 0.0012))
    'no difference shown, +0.0005 [-0.0001, +0.0012]'
    """
    side = _side(interval, 0.0, ("better", "worse"))
    if original > 0:
        change, low, high = (100 * value / original for value in (difference, *interval))
        return f"{side}, {change:+.1f} % [{low:+.1f}, {high:+.1f}]"
    return f"{side}, {difference:+.3g} [{interval[0]:+.3g}, {interval[1]:+.3g}]"


def is_slower(interval: Interval) -> bool:
    """Whether the interval of a speed-up shows that the result is slower; `verdict` agrees."""
    return interval[1] < 1


def _side(interval: Interval, neutral: float, words: tuple[str, str]) -> str:
    below, above = words
    if interval[1] < neutral:
        return below
    return above if interval[0] > neutral else "no difference shown"


def _interval(values: Samples) -> Interval:
    low, high = np.percentile(values, _LEVELS)
    return float(low), float(high)
