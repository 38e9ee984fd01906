"""Streaming statistics of values: their extremes and a histogram whose memory does not depend on how many there are."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# Bins on either side of zero. The largest magnitude always lies in the outer half of them, so that one bin is at most
# 1 / 2048 of it.
BINS = 4096
# Powers of two beyond these are no normal float32 numbers; values so small count as one bin.
_SMALLEST_EXPONENT = -120
# Values binned at a time: what is in between stays in the cache.
_CHUNK = 1 << 16


class Extremes:
    """The lowest and the highest of all values seen.

    Attributes:
        low: Lowest value; infinity where none was seen.
        high: Highest value; minus infinity where none was seen.
        count: Values seen.
    """

    def __init__(self) -> None:
        self.low = math.inf
        self.high = -math.inf
        self.count = 0

    def add(self, values: Array) -> None:
        """Take in float values of any shape.

        Raises:
            ValueError: A value is NaN or infinite.
        """
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        # NumPy's extremes hand a NaN on.
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("values must be finite")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.count += values.size


class Histogram(Extremes):
    """Counts of values in bins of one width, which is a power of two, around zero.

    Bin i holds the values from i * width up to, but not including, (i + 1) * width. When values need more room, the
    width doubles and bins join in pairs, exactly: the counts are those that all values at once would have had, whatever
    the batches. Zeros are counted apart too, since whatever range is chosen represents them without error.

    Attributes:
        counts: (2 * BINS,) int64; the bin of index i is at i + BINS.
        exponent: The width is 2 ** exponent; None as long as all values are zero.
        zeros: Values that are exactly zero; they are in the bin of index 0 as well.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: npt.NDArray[np.int64] = np.zeros(2 * BINS, np.int64)
        self.exponent: int | None = None
        self.zeros = 0

    @property
    def width(self) -> float:
        return 0.0 if self.exponent is None else 2.0**self.exponent

    def add(self, values: Array) -> None:
        super().add(values)
        if not values.size:
            return
        self.zeros += values.size - int(np.count_nonzero(values))
        self._make_room(max(-self.low, self.high))
        if self.exponent is None:
            self.counts[BINS] += values.size
            return
        flat = np.ascontiguousarray(values).reshape(-1)
        factor = flat.dtype.type(2.0**-self.exponent)
        scaled = np.empty(min(flat.size, _CHUNK), flat.dtype)
        for start in range(0, flat.size, _CHUNK):
            part = flat[start : start + _CHUNK]
            # A product with a power of two is exact, and so is the floor of it.
            index = np.floor(np.multiply(part, factor, out=scaled[: part.size]), out=scaled[: part.size])
            self.counts += np.bincount(index.astype(np.int64) + BINS, minlength=2 * BINS)

    def _make_room(self, largest: float) -> None:
        """Double the width until a magnitude has a bin."""
        if largest == 0.0:
            return
        # frexp: largest = m * 2**e with m < 1, so that largest / 2**(e - log2(BINS)) < BINS.
        needed = max(math.frexp(largest)[1] - BINS.bit_length() + 1, _SMALLEST_EXPONENT)
        if self.exponent is None:
            self.exponent = needed
        while self.exponent < needed:
            joined = self.counts.reshape(-1, 2).sum(1)
            self.counts[:] = 0
            self.counts[BINS // 2 : -BINS // 2] = joined
            self.exponent += 1

    def centres(self) -> tuple[Array, Array]:
        """The middles of the occupied bins, zero by itself, and how many values each stands for; both 1-D float64."""
        occupied = np.flatnonzero(self.counts)
        counts = self.counts[occupied].astype(np.float64)
        middles = (occupied - BINS + 0.5) * self.width
        first = np.searchsorted(occupied, BINS)
        if self.zeros:
            counts[first] -= self.zeros
            middles = np.insert(middles, first, 0.0)
            counts = np.insert(counts, first, float(self.zeros))
        kept = counts > 0
        return np.clip(middles[kept], self.low, self.high), counts[kept]

    def quantile(self, share: float) -> float:
        """The value below which a share of all lies, to within one bin; values are taken as spread evenly in a bin.

        Args:
            share: 0 to 1.
        """
        cumulated = np.cumsum(self.counts)
        wanted = share * self.count
        position = int(np.searchsorted(cumulated, wanted))
        before = int(cumulated[position - 1]) if position else 0
        held = int(self.counts[position])
        inside = (wanted - before) / held if held else 0.0
        return min(max((position - BINS + inside) * self.width, self.low), self.high)
