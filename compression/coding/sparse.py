"""Where the weights are that differ from the one value that most have: usually zero, in a pruned network.

The matrix (rows, columns) is read column by column. Each place has a context, a small number that says how likely a
weight is there; it is known to a decoder before the place itself:

    level = row[i] + column[j] + near[a] + far[b] + before[p]
    context = level - bias, limited to 0 .. contexts - 1

Rows, columns and neighbours each may be left out.

`a` counts weights in the same row at columns j-1 and j-lag, `b` (3 at most) those at j-2, j-2 lag, j-lag-1 and j-lag+1,
and `p` is the number of bits of the count of all weights in columns j-1 and j-lag (11 at most). With pictures as inputs
and the right lag these are the pixels above and to the left, where a neuron that looks at one looks at the next.

Within a context weights are taken to be independent, so what is coded are the gaps between them, each context's on its
own and across columns: all gaps can be decoded before any place is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

NEAR, FAR, BEFORE = 3, 4, 12
"""Numbers of different `a`, `b` and `p`."""
MAX_CONTEXTS = 32
SIGN_CONTEXTS = 5
_STEP = 0.8  # of the log odds from one level to the next
_PRIOR = 0.7
_LOOKED_AT = 1 << 13
# Effects that move by less are rounded to the same levels, but for luck.
_SETTLED = 0.01
_MAX_LAG = 64
_NEWTON_STEPS = 12
_FEW_ONES = 6


@dataclass(frozen=True)
class Levels:
    """The numbers from which contexts are made, all from 0 on.

    Attributes:
        rows: (rows,) or None.
        columns: (columns,) or None.
        lag: Distance of the second neighbour; 0 without neighbours.
        increments: (19,) `near`, `far` and `before` one after the other.
        bias: What is taken off.
        contexts: How many there are.
    """

    rows: Array | None
    columns: Array | None
    lag: int
    increments: Array
    bias: int
    contexts: int


class Gaps(NamedTuple):
    """Distances between weights of one context: `gaps` (n,), and how many places it has."""

    gaps: Array
    total: int


def contexts(mask: Array, levels: Levels) -> Array:
    """(columns, rows) the context of every place of a known mask (columns, rows)."""
    count, height = mask.shape
    total = np.zeros((count, height), np.int16)
    if levels.rows is not None:
        total += levels.rows.astype(np.int16)
    if levels.columns is not None:
        total += levels.columns.astype(np.int16)[:, None]
    if levels.lag:
        near, far, before = _neighbours(mask, levels.lag)
        steps = levels.increments.astype(np.int16)
        total += steps[:NEAR].take(near)
        total += steps[NEAR : NEAR + FAR].take(far)
        total += steps[NEAR + FAR :].take(before)[:, None]
    return np.clip(total - levels.bias, 0, levels.contexts - 1).astype(np.uint8)


def split(mask: Array, context: Array, count: int) -> list[Gaps]:
    """The gaps of each context, both arguments (columns, rows)."""
    flat = context.reshape(-1)
    order = np.argsort(flat, kind="stable")
    totals = np.bincount(flat, minlength=count)
    parts = np.split(mask.reshape(-1)[order], np.cumsum(totals)[:-1])
    return [Gaps(np.diff(np.flatnonzero(bits), prepend=-1) - 1, len(bits)) for bits in parts]


def signs_around(signs: Array, lag: int) -> Array:
    """(columns, rows) 0 to 4: whether the weights near each place are negative or positive on the whole.

    Args:
        signs: (columns, rows) -1, 0 or 1.
        lag: As in `Levels`.
    """
    total = np.zeros(signs.shape, np.int8)
    for distance in (1, lag, lag - 1, lag + 1):
        total[distance:] += signs[:-distance]
    return np.clip(total, -2, 2) + 2


def _neighbours(mask: Array, lag: int) -> tuple[Array, Array, Array]:
    """`a` and `b` (columns, rows) and `p` (columns,) of a mask (columns, rows)."""
    ones = mask.astype(np.uint8)
    near, far = np.zeros_like(ones), np.zeros_like(ones)
    for target, distances in ((near, (1, lag)), (far, (2, 2 * lag, lag + 1, lag - 1))):
        for distance in distances:
            target[distance:] += ones[:-distance]
    counts = mask.sum(1, dtype=np.int64)
    sums = np.zeros(len(counts), np.int64)
    for distance in (1, lag):
        sums[distance:] += counts[:-distance]
    return near, np.minimum(far, FAR - 1), _bit_length(sums)


def _bit_length(numbers: Array) -> Array:
    """Bits of each number, `BEFORE - 1` at most."""
    return np.minimum(np.frexp(numbers.astype(np.float64))[1], BEFORE - 1)


def fit_static(mask: Array) -> Levels:
    """Rows and columns by how many weights they have: the Rasch model (1960) of a mask (columns, rows)."""
    in_rows, in_columns = mask.sum(0, dtype=np.int64), mask.sum(1, dtype=np.int64)
    # Rows with as many weights are alike, so the model is that of a few kinds.
    kinds, row_kind, row_times = np.unique(in_rows, return_inverse=True, return_counts=True)
    others, column_kind, column_times = np.unique(in_columns, return_inverse=True, return_counts=True)
    start = _log_odds(int(in_rows.sum()), mask.size)
    rows, columns = np.zeros(len(kinds)), np.zeros(len(others))
    for _ in range(_NEWTON_STEPS):
        moved = 0.0
        for effect, own, across, times in ((rows, kinds, columns, column_times), (columns, others, rows, row_times)):
            chance = _logistic(start + effect[:, None] + across[None])
            each = chance @ times
            weight = each - np.square(chance) @ times
            step = np.clip((own - each - _PRIOR * effect) / (weight + _PRIOR), -1.5, 1.5)
            np.add(effect, step, out=effect)
            moved = max(moved, float(np.abs(step).max()))
        if moved < _SETTLED:
            break
    row_levels = np.rint(rows / _STEP).astype(np.int64)[row_kind]
    column_levels = np.rint(columns / _STEP).astype(np.int64)[column_kind]
    low = int(row_levels.min()), int(column_levels.min())
    levels = Levels(row_levels - low[0], column_levels - low[1], 0, np.zeros(NEAR + FAR + BEFORE, np.uint8), 0, 1 << 12)
    return _limited(mask, levels)


def fit_neighbours(mask: Array, lag: int) -> Levels:
    """Rows by how many weights they have, and places by their neighbours, in a mask (columns, rows)."""
    height = mask.shape[1]
    near, far, before = _neighbours(mask, lag)
    kinds = NEAR * FAR * BEFORE
    kind = (near.astype(np.int32) * FAR + far) * BEFORE + before[:, None].astype(np.int32)
    kind += np.arange(height, dtype=np.int32) * kinds
    places = np.bincount(kind.reshape(-1), minlength=height * kinds)
    # Few of all combinations occur.
    present = np.flatnonzero(places)
    shape = (height, NEAR, FAR, BEFORE)
    axes = np.unravel_index(present, shape)
    totals = places[present].astype(np.float64)
    ones = np.bincount(kind[mask], minlength=height * kinds)[present].astype(np.float64)
    odds = np.full(len(present), _log_odds(int(ones.sum()), mask.size))
    effects = [np.zeros(length) for length in shape]
    for _ in range(_NEWTON_STEPS):
        for effect, axis in zip(effects, axes, strict=True):
            chance = _logistic(odds)
            slope = np.bincount(axis, ones - totals * chance, len(effect)) - _PRIOR * effect
            weight = np.bincount(axis, totals * chance * (1 - chance), len(effect)) + _PRIOR
            step = np.clip(slope / weight, -1.5, 1.5)
            np.add(effect, step, out=effect)
            odds += step[axis]
    row, *rest = (np.rint(effect / _STEP).astype(np.int64) for effect in effects)
    increments = np.concatenate([np.minimum(part - part.min(), 15) for part in rest])
    return _limited(mask, Levels(row - row.min(), None, lag, increments, 0, 1 << 12))


def _limited(mask: Array, levels: Levels) -> Levels:
    """Contexts that hold hardly any weight join their neighbours."""
    wide = contexts(mask, Levels(levels.rows, levels.columns, levels.lag, levels.increments, 0, 256))
    ones = np.bincount(wide[mask], minlength=256)
    low = int(np.flatnonzero(ones)[0]) if ones.any() else 0
    high = low + 1
    while high < 255 and ones[high + 1 :].sum() >= _FEW_ONES and high - low + 2 < MAX_CONTEXTS:
        high += 1
    # One below those with weights: there, nothing is coded at all.
    bias = max(low - 1, 0)
    return Levels(levels.rows, levels.columns, levels.lag, levels.increments, bias, high - bias + 1)


def best_lag(mask: Array) -> tuple[int, float]:
    """The distance above 1 at which weights most often have another one in the same row, in a mask (columns, rows).

    With it comes how often, as a multiple of how often places have weights at all.
    """
    count, height = mask.shape
    flat = mask.reshape(-1)
    places = np.flatnonzero(flat)
    # So many tell lags apart as well as all do, and every lag looks at all of them.
    places = places[:: max(1, len(places) // _LOOKED_AT)]
    best, found = 2, -1.0
    for lag in range(2, min(_MAX_LAG, count - 1) + 1):
        inside = places[places < (count - lag) * height]
        together = np.count_nonzero(flat.take(inside + lag * height)) / max(len(inside), 1)
        if together > found:
            best, found = lag, together
    return best, found / max(np.count_nonzero(flat) / flat.size, 1e-12)


def _log_odds(ones: int, total: int) -> float:
    share = min(max(ones / total, 1e-9), 1 - 1e-9)
    return float(np.log(share / (1 - share)))


def _logistic(values: Array) -> Array:
    chances: Array = 1 / (1 + np.exp(-values))
    return chances


class Places:
    """Where weights are, from the gaps between them.

    Args:
        shape: (columns, rows).
        levels: The contexts.
        gaps: Of each context; together at most as long as the matrix is large.
    """

    def __init__(self, shape: tuple[int, int], levels: Levels, gaps: Sequence[Array]) -> None:
        self._shape = shape
        self._levels = levels
        self._gaps = gaps

    def read(self) -> Array | None:
        """The mask (columns, rows); None where a gap leads out of its context."""
        if self._levels.lag:
            return self._by_column(None, 0)[0]
        context = contexts(np.zeros(self._shape, bool), self._levels).reshape(-1)
        totals = np.bincount(context, minlength=self._levels.contexts)
        bits = np.zeros(context.size, bool)
        start = 0
        for gaps, total in zip(self._gaps, totals.tolist(), strict=True):
            places = np.cumsum(gaps + 1) - 1
            if len(places) and int(places[-1]) >= total:
                return None
            bits[start + places] = True
            start += total
        mask = np.zeros(context.size, bool)
        mask[np.argsort(context, kind="stable")] = bits
        return mask.reshape(self._shape)

    def with_signs(self, symbols: Sequence[Array], zero: int) -> tuple[Array | None, Array]:
        """The same where the symbols of the weights have contexts of signs.

        Args:
            symbols: Of the weights in each context of signs.
            zero: The symbol that most weights have; those above it are positive.

        Returns:
            The mask, and the symbols in its order.
        """
        values = _Queues([np.append(one, np.uint8(zero)) for one in symbols])
        mask, found = self._by_column(values, zero)
        return (mask if values.taken() == [len(one) for one in symbols] else None), found

    def _by_column(self, values: _Queues | None, zero: int) -> tuple[Array, Array]:
        count, height = self._shape
        levels, lag = self._levels, self._levels.lag
        margin = 2 * lag
        signs = np.zeros((margin + count, height), np.int8)
        ones = np.zeros((margin + count, height), np.uint8)
        totals = [0] * (margin + count)
        steps = levels.increments.astype(np.int16)
        near_step, far_step = steps[:NEAR], steps[NEAR : NEAR + FAR]
        before_step = steps[NEAR + FAR :].tolist()
        columns = [0] * count if levels.columns is None else levels.columns.tolist()
        fixed = np.zeros(height, np.int16) if levels.rows is None else levels.rows.astype(np.int16)
        bits = _Queues([_bits(gaps) for gaps in self._gaps])
        symbols = [np.zeros(0, np.uint8)]
        for j in range(margin, margin + count):
            near = ones[j - 1] + ones[j - lag]
            far = ones[j - 2] + ones[j - margin] + ones[j - lag - 1] + ones[j - lag + 1]
            before = min((totals[j - 1] + totals[j - lag]).bit_length(), BEFORE - 1)
            level = near_step.take(near) + far_step.take(far, mode="clip")
            level += fixed
            level += before_step[before] - levels.bias + columns[j - margin]
            found = bits.take(np.clip(level, 0, levels.contexts - 1).astype(np.uint8))
            places = found.nonzero()[0]
            if not len(places):
                continue
            ones[j] = found
            totals[j] = len(places)
            if values is not None:
                around = signs[j - 1] + signs[j - lag] + signs[j - lag - 1] + signs[j - lag + 1]
                column = values.take((np.clip(around.take(places), -2, 2) + 2).astype(np.uint8))
                symbols.append(column)
                signs[j, places] = np.where(column > zero, 1, -1)
        return ones[margin:].astype(bool), np.concatenate(symbols)


def _bits(gaps: Array) -> Array:
    """Ones after `gaps`, and a zero at the end that stands for all that follow."""
    places = np.cumsum(gaps + 1) - 1
    bits = np.zeros((int(places[-1]) if len(places) else -1) + 2, np.uint8)
    bits[places] = 1
    return bits


class _Queues:
    """Rows of numbers, each taken from front to back; the last of a row is given again and again."""

    def __init__(self, rows: Sequence[Array]) -> None:
        lengths = np.array([len(row) for row in rows])
        self._flat = np.concatenate(rows)
        self._next = np.cumsum(lengths) - lengths
        self._begin = self._next.copy()
        self._last = self._next + lengths - 1
        self._count = len(rows)

    def take(self, row: Array) -> Array:
        """The next number of each named row, in turn."""
        order = row.argsort(kind="stable")
        ordered = row.take(order)
        counts = np.bincount(row, minlength=self._count)
        ends = counts.cumsum()
        places = (self._next - (ends - counts)).take(ordered)
        places += np.arange(len(row))
        np.minimum(places, self._last.take(ordered), out=places)
        found = np.empty(len(row), self._flat.dtype)
        found[order] = self._flat.take(places)
        self._next += counts
        return found

    def taken(self) -> list[int]:
        """How many were taken of each row."""
        counts: list[int] = (self._next - self._begin).tolist()
        return counts
