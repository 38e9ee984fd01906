"""Rows and columns of 8-bit integers differ in how large their values are; each value's table follows from both.

    class of a value = row[i] + column[j] - bias, limited to 0 .. classes - 1

Rows and columns are stored as logarithms of their scale in steps of `STEP`, so that one set of tables, from narrow to
wide, serves all tensors of a network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from compression.coding.cost import entropy_bits

Array = npt.NDArray[Any]

STEP = 0.25
CLASSES = 27
MIDDLE = 128
"""What is stored for the median row and column."""
_LEAST = 0.3
_LOWEST = -5  # the class of magnitude 0: log(_LEAST) / STEP
_SIDE_BITS = 40.0
_ROUNDS = 3
_SAMPLE = 1 << 18


@dataclass(frozen=True)
class Classes:
    """The scale of each row and column of one tensor.

    Attributes:
        rows: (rows,) around `MIDDLE`.
        columns: (columns,) likewise, or None.
        bias: May be negative.
        counts: (CLASSES, 256) how often each symbol occurs in each class.
        side_bits: What storing rows and columns takes.
    """

    rows: Array
    columns: Array | None
    bias: int
    counts: Array
    side_bits: float

    def of_each(self, width: int) -> Array:
        """(rows, width) the class of every value in a matrix of `width` columns."""
        columns = np.zeros(width, np.int16) if self.columns is None else self.columns.astype(np.int16)
        rows = self.rows.astype(np.int16) - np.int16(self.bias)
        total = rows[:, None] + columns
        return np.clip(total, 0, CLASSES - 1, out=total).astype(np.uint8)


def fit(symbols: Array) -> Classes | None:
    """Classes of a matrix of symbols, whose magnitude is their distance from 128; None where there is one row.

    Whether they pay is for the caller to decide, who knows the tables.
    """
    height, width = symbols.shape
    if height < 2 or width < 8:
        return None
    magnitude = np.abs(symbols.astype(np.float32) - MIDDLE) + np.float32(_LEAST)
    rows = np.log(magnitude.mean(1))
    if height < 16:
        return _classes(symbols, rows, None)
    levels, columns = rows, np.zeros(width, np.float32)
    for _ in range(_ROUNDS):
        columns = np.log(np.exp(-levels) @ magnitude / height)
        levels = np.log(magnitude @ np.exp(-columns) / width)
    # Whether columns pay shows on some of the rows.
    some = slice(None, None, -(-symbols.size // _SAMPLE))
    share = len(rows[some]) / height
    alone, both = _classes(symbols[some], rows[some], None), _classes(symbols[some], levels[some], columns)
    saved = (entropy_bits(alone.counts) - entropy_bits(both.counts)) / share
    if saved < entropy_bits(np.bincount(_levels(columns)[0])):
        return _classes(symbols, rows, None)
    return _classes(symbols, levels, columns)


def _classes(symbols: Array, rows: Array, columns: Array | None) -> Classes:
    row_levels, row_middle = _levels(rows)
    bias, column_levels, side = _LOWEST - row_middle + MIDDLE, None, entropy_bits(np.bincount(row_levels))
    if columns is not None:
        column_levels, column_middle = _levels(columns)
        bias += MIDDLE - column_middle
        side += entropy_bits(np.bincount(column_levels))
    draft = Classes(row_levels, column_levels, bias, np.zeros(0), side + _SIDE_BITS)
    index = draft.of_each(symbols.shape[1]).astype(np.int32)
    index *= 256
    index += symbols
    counts = np.bincount(index.reshape(-1), minlength=CLASSES * 256).reshape(CLASSES, 256)
    return Classes(row_levels, column_levels, bias, counts, side + _SIDE_BITS)


def _levels(logarithms: Array) -> tuple[Array, int]:
    """Steps around `MIDDLE`, and the median's step."""
    steps = np.rint(logarithms / STEP).astype(np.int64)
    middle = int(np.median(steps))
    return np.clip(steps - middle + MIDDLE, 0, 255).astype(np.uint8), middle
