"""Estimated bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

# What a stored table costs beside its symbols, and each of these.
_TABLE_BITS = 24.0
_ENTRY_BITS = 4.5


def table_bits(counts: npt.NDArray[Any]) -> float:
    """Roughly what a table of its own costs; with several rows, one for each that is not empty."""
    present = int(np.count_nonzero(counts))
    rows = int(counts.any(-1).sum()) if counts.ndim > 1 else 1
    return _TABLE_BITS * rows + _ENTRY_BITS * present


def entropy_bits(counts: npt.NDArray[Any]) -> float:
    """Bits of all symbols by their own frequencies: the last axis is the symbol, others are contexts.

    >>> entropy_bits(np.array([[2, 2], [4, 0]]))
    4.0
    """
    return cross_entropy_bits(counts, counts)


def cross_entropy_bits(counts: npt.NDArray[Any], shared: npt.NDArray[Any]) -> float:
    """Bits of all symbols by frequencies that others have a part in."""
    shared = shared.astype(np.float64)
    totals = shared.sum(-1, keepdims=True)
    shares = np.divide(shared, totals, out=np.ones_like(shared), where=shared > 0)
    return abs(float((counts * np.log2(shares)).sum()))
