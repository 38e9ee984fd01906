"""How much faster one of two calls is, and how sure that is, from pairs of calls that were timed next to each other.

Three things make a plain bootstrap of such pairs too sure of itself, and each has its answer here:

- the first calls after loading are slow: `warm_up` finds where they end (MSER, White 1997);
- neighbours resemble each other, so n pairs are worth fewer than n: blocks of pairs are resampled instead of pairs
  (Politis and Romano 1992), as long as the series itself demands (Politis and White 2004, corrected 2009);
- where its weights happen to lie makes a model faster or slower for as long as it stays loaded: the pairs come from
  several loads, and how these differ is part of the interval.

Pure functions of samples and a seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float64]
Interval = tuple[float, float]

# What is believed of the standard deviation between loads of a log ratio before loads were compared, and how many loads
# that belief is worth: it decides where there is one load, and ten outvote it.
LUCK_OF_LOADING = 0.015
_BELIEF = 4
_RESAMPLES = 400
_MAX_RESAMPLED = 4000
_INDICES_AT_A_TIME = 1 << 21
_WARM_UP_BATCH = 5
_MIN_BATCHES = 20
_SPIKE = 3 * 1.4826
_NO_SPIKE = 0.05
# Squared standard errors of logarithms that differ by less are equal but for rounding.
_EQUAL = 1e-15


class SpeedUp(NamedTuple):
    """A comparison of two calls.

    Attributes:
        ratio: Seconds of the first over seconds of the second; above 1 the second is faster.
        interval: The 95 % interval of `ratio`.
        between_loads: Standard deviation of the log ratio between loads beyond what chance within loads explains; None
            where there was a single load.
        block_length: Pairs in a block.
    """

    ratio: float
    interval: Interval
    between_loads: float | None
    block_length: int


def speed_up(loads: Sequence[tuple[Samples, Samples]], seed: int) -> SpeedUp:
    """How many times faster the second call of a pair is than the first.

    The estimate of one load is the median over its pairs of the ratio of their times, which a machine that changes its
    speed from one moment to the next disturbs far less than the ratio of the two medians: under load, its error is half
    as large. The estimate is the geometric mean over loads.

    The interval is Student's, of the mean over k loads on the logarithmic scale. With few loads neither their own
    variance (k - 1 degrees of freedom) nor a bootstrap over them (which misses the truth in a fifth of all cases with
    5 loads) says enough, so the variance is moderated (Smyth 2004): what the loads show is averaged with what is
    expected of them, the variance of a median by the block bootstrap plus `LUCK_OF_LOADING` squared, which counts as
    much as 4 loads.

    Args:
        loads: For each load the seconds (n,) of the first and of the second call of its n pairs, n at least 1.
        seed: Of the resampling.
    """
    logs = [np.log(first) - np.log(second) for first, second in loads]
    centers = [float(np.median(part)) for part in logs]
    count = len(loads)
    # How the median of one load varies by chance is learnt from all of them: of few pairs, it could not be.
    residuals = np.concatenate([part - center for part, center in zip(logs, centers, strict=True)])
    size = len(residuals) // count
    # Of very many pairs these tell as much; that they make the interval a little wide does not show beside luck.
    if len(residuals) > _MAX_RESAMPLED:
        residuals = residuals[np.arange(_MAX_RESAMPLED) * len(residuals) // _MAX_RESAMPLED]
    # What moves a median is on which side of it the samples lie.
    length = block_length(np.sign(residuals))
    medians = _block_medians(residuals, length, min(size, len(residuals)), np.random.default_rng(seed))
    chance = float(np.var(medians))
    shown = float(np.var(centers, ddof=1)) if count > 1 else 0.0
    variance = ((count - 1) * shown + _BELIEF * (chance + LUCK_OF_LOADING**2)) / (count - 1 + _BELIEF)
    center, half = float(np.mean(centers)), student_t(count - 1 + _BELIEF) * math.sqrt(variance / count)
    return SpeedUp(
        ratio=math.exp(center),
        interval=(math.exp(center - half), math.exp(center + half)),
        between_loads=math.sqrt(max(shown - chance, 0.0)) if count > 1 else None,
        block_length=length,
    )


def warm_up(seconds: Samples) -> int:
    """How many samples at the beginning are not yet like the rest, at least 1 and at most half.

    The marginal standard error rule (White 1997, "An effective truncation heuristic for bias reduction in simulation
    output"): drop so many that the standard error of the mean of what stays is smallest. It is applied to logarithms,
    in batches of 5 where there are many samples (MSER-5), and spikes count only up to three standard deviations:
    a single preempted call is no trend.

    Args:
        seconds: (n,) positive times in the order in which they were taken, n at least 2.
    """
    logs = np.log(seconds)
    steady = logs[len(logs) // 2 :]
    median = np.median(steady)
    logs = np.minimum(logs, median + max(_SPIKE * float(np.median(np.abs(steady - median))), _NO_SPIKE))
    batch = _WARM_UP_BATCH if len(logs) >= _WARM_UP_BATCH * _MIN_BATCHES else 1
    means = logs[: len(logs) // batch * batch].reshape(-1, batch).mean(axis=1)
    kept = np.arange(len(means), 0, -1)
    # Sums over all tails at once; centered first, so that the squares lose no digits.
    centered = (means - means.mean())[::-1]
    totals, squares = np.cumsum(centered)[::-1], np.cumsum(centered**2)[::-1]
    errors = (squares - totals**2 / kept) / kept**2
    errors = errors[: max(1, len(means) // 2)]
    dropped = int(np.argmax(errors <= errors.min() + _EQUAL)) * batch
    return min(max(dropped, 1), len(seconds) // 2)


def block_length(series: Samples) -> int:
    """The length of blocks that keeps the autocorrelation of a stationary series, 1 where there is none.

    Politis and White 2004, "Automatic block-length selection for the dependent bootstrap", section 3.2, for circular
    blocks, as corrected by Patton, Politis and White 2009; at most a third of the series.

    Args:
        series: (n,) numbers.
    """
    count = len(series)
    longest = math.ceil(min(3 * math.sqrt(count), count / 3))
    lags = min(math.ceil(math.sqrt(count)) + _lags_to_pass(count), count - 1)
    centered = series - series.mean()
    covariances = np.array([float(centered[: count - lag] @ centered[lag:]) / count for lag in range(lags + 1)])
    if lags < 1 or covariances[0] <= 0:
        return 1
    last = _last_correlated_lag(covariances / covariances[0], count)
    if last == 0:
        return 1
    width = min(2 * last, lags)
    lag = np.arange(1, width + 1)
    window = np.clip(2 * (1 - lag / width), 0, 1) * covariances[1 : width + 1]
    bend = 2 * float(lag @ window)
    spectrum = covariances[0] + 2 * float(window.sum())
    if spectrum <= 0:
        return 1
    best = round(math.cbrt(1.5 * (bend / spectrum) ** 2 * count))
    return min(max(best, 1), longest)


def student_t(degrees: int) -> float:
    """The 97.5 % quantile of Student's t with at least 4 degrees of freedom, to 4 digits.

    The expansion in 1 / degrees around the normal quantile (Abramowitz and Stegun 1964, 26.7.5).

    >>> round(student_t(4), 2), round(student_t(8), 3)
    (2.78, 2.306)
    """
    z = 1.959963984540054
    return (
        z
        + (z**3 + z) / (4 * degrees)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * degrees**4)
    )


def _lags_to_pass(count: int) -> int:
    """So many insignificant autocorrelations in a row end the search for a significant one."""
    return max(5, math.ceil(math.sqrt(math.log10(count))))


def _last_correlated_lag(correlations: Samples, count: int) -> int:
    significant = np.abs(correlations[1:]) >= 2 * math.sqrt(math.log10(count) / count)
    run = _lags_to_pass(count)
    for lag in range(len(significant)):
        if not significant[lag : lag + run].any():
            return lag
    return len(significant)


def _block_medians(values: Samples, length: int, size: int, rng: np.random.Generator) -> Samples:
    """Medians of circular-block resamples (size,) of a series (n,)."""
    circle = np.concatenate([values, values[: length - 1]])
    blocks = np.lib.stride_tricks.sliding_window_view(circle, length)
    needed = math.ceil(size / length)
    rows = max(1, _INDICES_AT_A_TIME // size)
    medians = []
    for start in range(0, _RESAMPLES, rows):
        chosen = rng.integers(0, len(values), (min(rows, _RESAMPLES - start), needed))
        resamples = blocks[chosen].reshape(len(chosen), -1)[:, :size]
        medians.append(_row_medians(resamples))
    return np.concatenate(medians)


def _row_medians(values: Samples) -> Samples:
    """`numpy.median` along the last axis, in place and without its check for NaN."""
    middle = values.shape[1] // 2
    if values.shape[1] % 2:
        values.partition(middle, axis=1)
        return values[:, middle]
    values.partition((middle - 1, middle), axis=1)
    medians: Samples = (values[:, middle - 1] + values[:, middle]) / 2
    return medians
