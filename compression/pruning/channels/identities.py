"""Channel identities: numbers that say which elements of which tensors belong together."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int64]

FROZEN = 0
"""The identity of everything that must stay."""


class Identities:
    """Sets of identities that stand or fall together (union-find over whole arrays).

    The smallest identity of a set represents it, so a set that holds `FROZEN` is represented by `FROZEN`.

    >>> ids = Identities()
    >>> a, b = ids.fresh(3), ids.fresh(3)
    >>> ids.union(a, b[::-1])
    >>> ids.freeze(a[:1])
    >>> ids.find(b).tolist()
    [3, 2, 0]
    """

    def __init__(self) -> None:
        self._parents: Labels = np.zeros(1024, np.int64)
        self._count = 1

    def fresh(self, count: int) -> Labels:
        """So many identities that no element has yet."""
        start, self._count = self._count, self._count + count
        if self._count > len(self._parents):
            grown = np.zeros(max(2 * len(self._parents), self._count), np.int64)
            grown[: len(self._parents)] = self._parents
            self._parents = grown
        new = np.arange(start, self._count)
        self._parents[start : self._count] = new
        return new

    def find(self, ids: npt.NDArray[Any]) -> Labels:
        """The representative of each identity, in the shape of the argument."""
        found = np.asarray(ids, np.int64)
        while True:
            above = self._parents[found]
            if np.array_equal(above, found):
                return found
            # Halving the path, so that later look-ups are short.
            self._parents[found] = self._parents[above]
            found = above

    def union(self, first: npt.NDArray[Any], second: npt.NDArray[Any]) -> None:
        """Join the sets of the elements that meet when the two arrays are broadcast."""
        left, right = np.broadcast_arrays(first, second)
        left, right = left.reshape(-1), right.reshape(-1)
        while True:
            left, right = self.find(left), self.find(right)
            apart = left != right
            if not apart.any():
                return
            left, right = left[apart], right[apart]
            # Parents are always smaller than their children, so there are no cycles.
            np.minimum.at(self._parents, np.maximum(left, right), np.minimum(left, right))

    def freeze(self, ids: npt.NDArray[Any]) -> None:
        """Let everything that belongs to these identities stay."""
        self.union(ids, np.zeros((), np.int64))

    def among(self, chosen: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """For every identity, by its number, whether it is one of those chosen."""
        table = np.zeros(self._count, np.bool_)
        table[chosen] = True
        return table

    def everything(self) -> Labels:
        """The representative of every identity there is."""
        return self.find(np.arange(self._count))
