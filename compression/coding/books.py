"""Values that the weights of a tensor, of each of its rows, or of each of its columns share."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from compression.coding.elements import Layout, few_values, in_order

Array = npt.NDArray[Any]

MOST = 256
_SHORTEST = 8
_TRIED = 4


class Books(NamedTuple):
    """Codebooks of a matrix (rows, columns).

    Attributes:
        values: All books one after the other, numbers as the tensor stores them.
        sizes: (books,) how many values each has.
        axis: None for one book, 0 for one a row, 1 for one a column.
    """

    values: Array
    sizes: Array
    axis: int | None

    def look_up(self, symbols: Array) -> Array | None:
        """What the symbols (rows, columns) stand for; None where one stands for nothing."""
        shape = (-1, 1) if self.axis == 0 else (1, -1)
        if (symbols >= self.sizes.reshape(shape)).any():
            return None
        found: Array = self.values.take(symbols + (np.cumsum(self.sizes) - self.sizes).reshape(shape))
        return found


def find(values: Array, layout: Layout) -> tuple[Books, Array] | None:
    """The books that are worth their room, and the symbols (rows, columns) of the numbers in a matrix.

    A number that most elements have is symbol 0 of every row's or column's book.
    """
    known = few_values(values.reshape(-1), MOST)
    if known is not None:
        pays = len(known) * layout.width * 2 < values.size * (layout.width - 1) or len(known) == 1
        return _joined([values.reshape(1, -1)], None, layout, None, values.shape) if pays else None
    options = []
    for axis in (0, 1):
        lines = values if axis == 0 else values.T
        few = min(MOST, lines.shape[1] // 2)
        tried = lines[:: max(1, len(lines) // _TRIED)][:_TRIED]
        if lines.shape[1] < _SHORTEST or len(lines) < 2 or any(len(np.unique(line)) > few for line in tried):
            continue
        found = _joined(list(lines), axis, layout, _most_frequent(values), values.shape)
        if found is not None and 2 * len(found[0].values) < values.size:
            options.append(found)
    return min(options, key=lambda option: len(option[0].values), default=None)


def _most_frequent(values: Array) -> int:
    sample = values.reshape(-1)[:: max(1, values.size // 4096)]
    found, counts = np.unique(sample, return_counts=True)
    return int(found[counts.argmax()])


def _joined(
    lines: list[Array], axis: int | None, layout: Layout, first: int | None, shape: tuple[int, ...]
) -> tuple[Books, Array] | None:
    books, symbols = [], []
    for line in lines:
        book, places = np.unique(line, return_inverse=True)
        if first is not None and first not in book:
            book = np.append(book, book.dtype.type(first))
        if len(book) > MOST:
            return None
        keys = in_order(book, layout)
        order = np.argsort(keys, kind="stable")
        if first is not None:
            order = np.concatenate([order[book[order] == first], order[book[order] != first]])
        symbol_of = np.empty(len(book), np.uint8)
        symbol_of[order] = np.arange(len(book))
        books.append(book[order])
        symbols.append(symbol_of[places.reshape(-1)])
    matrix = np.concatenate(symbols).reshape(-1, len(symbols[0]))
    oriented = matrix.reshape(shape) if axis is None else np.ascontiguousarray(matrix.T if axis == 1 else matrix)
    sizes = np.array([len(book) for book in books])
    return Books(np.concatenate(books), sizes, axis), oriented
