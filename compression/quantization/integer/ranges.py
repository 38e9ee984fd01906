"""From what was seen of an activation to the range that its whole numbers span. Pure functions on histograms."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from compression.quantization.integer.histogram import BINS, Extremes, Histogram

Array = npt.NDArray[Any]
Method = Literal["minmax", "percentile", "entropy", "mse"]

# Ends of ranges that are tried, as shares of the extremes: coarsely, then finely around the best.
_COARSE = np.linspace(1.0, 0.1, 46)
_FINE = np.linspace(-0.02, 0.02, 17)
# Bins that a candidate of the entropy method is wider than the one before.
_STRIDE = 16
_SMOOTHING = 1e-6


@dataclass(frozen=True)
class Grid:
    """The whole numbers from `low` to `high`."""

    low: int
    high: int

    @property
    def steps(self) -> int:
        """Steps from the lowest to the highest number."""
        return self.high - self.low


def grid(bits: int, *, symmetric: bool) -> Grid:
    """Unsigned numbers; signed ones without the lowest where zero stays in the middle.

    >>> grid(8, symmetric=False), grid(8, symmetric=True)
    (Grid(low=0, high=255), Grid(low=-127, high=127))
    """
    top = 2 ** (bits - 1) - 1
    return Grid(-top, top) if symmetric else Grid(0, 2**bits - 1)


@dataclass(frozen=True)
class Parameters:
    """value = scale * (number - zero_point)."""

    scale: float
    zero_point: int

    def represent(self, values: Array, numbers: Grid) -> Array:
        """What values become by quantizing and dequantizing."""
        codes = np.clip(np.rint(values / self.scale) + self.zero_point, numbers.low, numbers.high)
        result: Array = (codes - self.zero_point) * self.scale
        return result


def parameters(low: float, high: float, numbers: Grid) -> Parameters:
    """Scale and zero point of a range, which is widened to hold zero and moved by less than a step to hit it.

    Jacob et al. 2017, section 3.1. A symmetric grid spans the larger of both ends to either side. A range of no
    length, as constant zeros have it, gets scale 1.

    >>> parameters(-1.0, 3.0, Grid(0, 255)).zero_point
    64
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if numbers.low == -numbers.high:
        scale, zero_point = max(-low, high) / numbers.high, 0.0
    else:
        scale = (high - low) / numbers.steps
        zero_point = (
            0.0 if scale == 0 else float(np.clip(np.rint(numbers.low - low / scale), numbers.low, numbers.high))
        )
    # As float32 holds it: the graph has no other scale.
    scale = float(np.float32(scale))
    return Parameters(scale if scale > np.finfo(np.float32).tiny else 1.0, int(zero_point))


def choose(seen: Extremes, method: Method, percentile: float, numbers: Grid) -> tuple[float, float]:
    """The range, lowest and highest value, that a method reads off what was seen; zero lies in it.

    With more than 8 bits steps are narrower than the histogram's bins, and nothing is gained by cutting: `entropy` and
    `mse` then take the extremes.

    Args:
        seen: A `Histogram` for all methods but `minmax`.
        method: The method.
        percentile: Share of values inside the range, in percent, for that method.
        numbers: What the values will become.
    """
    if not seen.count:
        return 0.0, 0.0
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    if numbers.low == -numbers.high:
        low, high = -max(-low, high), max(-low, high)
    if method == "minmax" or not isinstance(seen, Histogram) or low == high:
        return low, high
    if method == "percentile":
        return _percentile(seen, percentile, numbers)
    if numbers.steps > 255:
        return low, high
    return _least_divergence(seen, numbers) if method == "entropy" else _least_error(seen, numbers)


def _percentile(seen: Histogram, percentile: float, numbers: Grid) -> tuple[float, float]:
    outside = (1 - percentile / 100) / 2
    low, high = min(seen.quantile(outside), 0.0), max(seen.quantile(1 - outside), 0.0)
    if numbers.low == -numbers.high:
        return -max(-low, high), max(-low, high)
    return low, high


def squared_error(values: Array, counts: Array, low: float, high: float, numbers: Grid) -> float:
    """Sum over all values of the squared difference to what they become in a range.

    Args:
        values: (n,) distinct values.
        counts: (n,) how often each occurs.
        low: Lower end of the range.
        high: Upper end of the range.
        numbers: The whole numbers.
    """
    error = parameters(low, high, numbers).represent(values, numbers) - values
    return float(counts @ np.square(error))


def _least_error(seen: Histogram, numbers: Grid) -> tuple[float, float]:
    """The range with the least squared error: both ends move together first, then one after the other."""
    values, counts = seen.centres()
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)

    def best(candidates: Iterable[tuple[float, float]]) -> tuple[float, float]:
        return min(candidates, key=lambda ends: squared_error(values, counts, ends[0], ends[1], numbers))

    if numbers.low == -numbers.high:
        reach = max(-low, high)
        share = best((-reach * share, reach * share) for share in _COARSE)[1] / reach
        return best((-reach * (share + more), reach * (share + more)) for more in _FINE)
    found = best((low * share, high * share) for share in _COARSE)
    for shares in (_COARSE, None):
        found = best((low * share, found[1]) for share in _around(shares, found[0], low))
        found = best((found[0], high * share) for share in _around(shares, found[1], high))
    return found


def _around(shares: Array | None, found: float, end: float) -> Array:
    """Shares of an end to try: given ones, or some close to the one that was found; none of an end at zero."""
    if end == 0:
        return np.ones(1)
    return np.append(shares, found / end) if shares is not None else found / end + _FINE


def _least_divergence(seen: Histogram, numbers: Grid) -> tuple[float, float]:
    """The range that loses the least information (Migacz 2017), both ends equally far from zero.

    An end stops at the extreme. Zeros are left out, since every range represents them as they are: most of what a ReLU
    gives is zero, and would otherwise be all that counts.
    """
    counts = seen.counts.copy()
    counts[BINS] -= seen.zeros
    occupied = np.flatnonzero(counts)
    first, last = min(int(occupied[0]), BINS), max(int(occupied[-1]) + 1, BINS)
    if numbers.low == -numbers.high:
        first, last = min(first, 2 * BINS - last), max(last, 2 * BINS - first)
    levels = numbers.steps + 1
    reach = max(last - BINS, BINS - first)
    found, least = (first, last), math.inf
    for distance in range(reach, 0, -_STRIDE):
        begin, end = max(first, BINS - distance), min(last, BINS + distance)
        if end - begin < levels:
            break
        lost = divergence(counts[begin:end], int(counts[:begin].sum()), int(counts[end:].sum()), levels)
        if lost < least:
            found, least = (begin, end), lost
    low, high = (found[0] - BINS) * seen.width, (found[1] - BINS) * seen.width
    if numbers.low == -numbers.high:
        return low, high
    return max(low, min(seen.low, 0.0)), min(high, max(seen.high, 0.0))


def divergence(counts: Array, below: int, above: int, levels: int) -> float:
    """Relative entropy, in nats, of a clipped distribution to what is left of it in so many levels (Migacz 2017).

    What lies outside is clipped into the outer bins of the reference; the other distribution does not know it, joins
    neighbouring bins into levels, and spreads each level evenly over those of its bins that the reference fills.

    Args:
        counts: (bins,) values in each bin of the range.
        below: Values below the range.
        above: Values above the range.
        levels: At most as many as there are bins.
    """
    reference = counts.astype(np.float64)
    reference[0] += below
    reference[-1] += above
    filled = reference > 0
    starts = np.arange(levels) * counts.size // levels
    sums = np.add.reduceat(counts.astype(np.float64), starts)
    users = np.add.reduceat(filled.astype(np.float64), starts)
    share = np.divide(sums, users, out=np.zeros(levels), where=users > 0)
    spread = np.repeat(share, np.diff(starts, append=counts.size))[filled]
    reference = reference[filled] / reference.sum()
    # A level that holds nothing but clipped values would make the divergence infinite.
    spread = spread / max(spread.sum(), 1.0) + _SMOOTHING
    spread /= spread.sum()
    return float(reference @ np.log(reference / spread))
