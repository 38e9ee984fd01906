"""From streams to tensors. Nothing is allocated that the tensor itself does not need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from compression.coding import elements, scales, sparse
from compression.coding.bits import ByteReader
from compression.coding.books import Books
from compression.coding.coders import Coder, Tables
from compression.coding.forms import CODED, CONSTANT, RAW, Form
from compression.coding.rans import Coded
from compression.coding.splice import Hole
from compression.coding.tables import NO_ONES

Array = npt.NDArray[Any]

_MAX_GAP_PARAMETER = 160
_KNOWN = Form.SPARSE | Form.TRANSPOSED | Form.CODEBOOK | Form.ROWS | Form.COLUMNS | Form.SIGNS | Form.LINES


def read(holes: Sequence[Hole], readers: Sequence[ByteReader], tables: Tables, coder: Coder) -> list[bytes]:
    """The data of some tensors, each from its stream.

    Raises:
        Damage: A stream is not what an encoder writes for such a tensor.
    """
    streams = [_Stream(hole, reader, tables, coder) for hole, reader in zip(holes, readers, strict=True)]
    side = coder.decode([stream.side for stream in streams], tables)
    main = coder.decode([stream.main(levels) for stream, levels in zip(streams, side, strict=True)], tables)
    return [stream.data(symbols) for stream, symbols in zip(streams, main, strict=True)]


class _Context(NamedTuple):
    """Gaps of one context of places: low bits, symbols, table."""

    shift: int
    symbols: int
    table: int


class _Plane(NamedTuple):
    mode: int
    value: int
    """The symbol of a constant plane, the first table of a coded one."""


class _Stream:
    """A stream whose head is read, and whose symbols are asked for in two turns."""

    def __init__(self, hole: Hole, reader: ByteReader, tables: Tables, coder: Coder) -> None:
        self._reader = reader
        self._tables = tables
        self._coder = coder
        self._size = hole.size
        self._layout = elements.layout_of(hole.data_type, hole.size)
        self._count = hole.size // self._layout.width
        self._rows, self._columns = elements.matrix_shape(hole.dims, self._count)
        number = reader.byte()
        self._form = Form(number & _KNOWN.value)
        self._stored = number == Form.STORED.value
        self._side_tables: list[int] = []
        self._contexts: list[_Context] = []
        self._planes: list[_Plane] = []
        self._sign_counts: list[int] = []
        self._books: Books | None = None
        self._bias = 0
        # As the form sees the matrix: what it goes over in one turn, and how many turns it takes.
        self._height, self._turns = self._rows, self._columns
        self._coded = self._count
        if self._stored:
            return
        if number != self._form.value:
            raise reader.damage(f"a tensor of the unknown form {number}")
        if self._form & (Form.CODEBOOK | Form.LINES):
            self._books = self._read_books()
        one_plane = self._layout.width == 1 or self._books is not None
        if Form.SPARSE in self._form:
            if Form.TRANSPOSED in self._form:
                self._height, self._turns = self._turns, self._height
            self._coded = self._read_places(1 if one_plane else self._layout.width)
        elif self._form & (Form.ROWS | Form.COLUMNS):
            folded = reader.varint(1 << 12)
            self._bias = -(folded + 1 >> 1) if folded & 1 else folded >> 1
            self._read_side_tables()
        for index in range(1 if one_plane else self._layout.width):
            self._planes.append(self._read_plane(tables_needed=self._first_plane_tables if index == 0 else 1))

    @property
    def side(self) -> Coded:
        """Levels of rows and columns."""
        lengths = [
            length
            for flag, length in ((Form.ROWS, self._height), (Form.COLUMNS, self._turns))
            if not self._stored and flag in self._form
        ]
        return Coded(np.repeat(np.array(self._side_tables, np.uint16), lengths), self._reader)

    def main(self, levels: Array) -> Coded:
        """Gaps and planes, once `side` is known."""
        self._row_levels = self._column_levels = None
        if self._stored:
            return Coded(np.zeros(0, np.uint16), self._reader)
        if Form.ROWS in self._form:
            self._row_levels, levels = levels[: self._height], levels[self._height :]
        if Form.COLUMNS in self._form:
            self._column_levels = levels
        numbers = [np.full(context.symbols, context.table, np.uint16) for context in self._contexts]
        for index, plane in enumerate(self._planes):
            if plane.mode == CODED:
                numbers.append(self._plane_tables(plane.value, first=index == 0))
        return Coded(np.concatenate([np.zeros(0, np.uint16), *numbers]), self._reader)

    def data(self, symbols: Array) -> bytes:
        """The tensor, once `main` is known."""
        reader = self._reader
        if self._stored:
            data = bytes(reader.take(self._size))
            reader.end()
            return data
        gap_symbols = sum(context.symbols for context in self._contexts)
        gaps = self._gaps(symbols[:gap_symbols])
        position = gap_symbols
        parts: list[Array] = []
        for plane in self._planes:
            if plane.mode == CONSTANT:
                parts.append(np.full(self._coded, plane.value, np.uint8))
            elif plane.mode == RAW:
                parts.append(np.frombuffer(reader.take(self._coded), np.uint8))
            else:
                parts.append(symbols[position : position + self._coded])
                position += self._coded
        reader.end()
        if Form.SPARSE in self._form:
            return self._sparse(gaps, parts)
        return self._values(parts).tobytes()

    # Heads

    def _read_places(self, width: int) -> int:
        """The head of the sparse form; how many weights there are comes back."""
        reader = self._reader
        self._zero = int.from_bytes(reader.take(width), "little")
        lag = reader.varint(1 << 8)
        increments = np.zeros(sparse.NEAR + sparse.FAR + sparse.BEFORE, np.int64)
        if lag:
            packed = np.frombuffer(reader.take((len(increments) + 1) // 2), np.uint8)
            increments = np.stack([packed & 15, packed >> 4], 1).reshape(-1)[: len(increments)].astype(np.int64)
            if lag < 2:
                raise reader.damage("neighbours that do not fit")
        elif Form.SIGNS in self._form:
            raise reader.damage("signs of neighbours where there are none")
        self._read_side_tables()
        count = reader.byte()
        bias = reader.varint(1 << 12)
        self._levels_read = lag, increments, bias, count
        if not 1 <= count <= sparse.MAX_CONTEXTS:
            raise reader.damage(f"{count} contexts")
        for _ in range(count):
            parameter = reader.byte()
            if parameter == NO_ONES:
                self._contexts.append(_Context(0, 0, 0))
                continue
            if parameter > _MAX_GAP_PARAMETER:
                raise reader.damage(f"the parameter {parameter} of gaps")
            # Escapes add at most one symbol for each so many places.
            symbols = reader.varint(2 * self._count)
            shift = self._coder.gap_shift(parameter)
            self._contexts.append(_Context(shift, symbols, self._tables.geometric(parameter)))
        total = reader.varint(min(self._count, sum(context.symbols for context in self._contexts)))
        if Form.SIGNS in self._form:
            self._sign_counts = [reader.varint(total) for _ in range(sparse.SIGN_CONTEXTS)]
            if sum(self._sign_counts) != total:
                raise reader.damage("signs of another number of weights")
        return total

    def _read_books(self) -> Books:
        axis = None if Form.LINES not in self._form else 0 if Form.CODEBOOK in self._form else 1
        count = {None: 1, 0: self._rows, 1: self._columns}[axis]
        sizes = np.frombuffer(self._reader.take(count), np.uint8).astype(np.int64) + 1
        values = elements.numbers(bytes(self._reader.take(int(sizes.sum()) * self._layout.width)), self._layout)
        return Books(values, sizes, axis)

    def _read_side_tables(self) -> None:
        self._side_tables = [self._read_table(1) for flag in (Form.ROWS, Form.COLUMNS) if flag in self._form]

    def _read_table(self, needed: int) -> int:
        first = self._reader.varint()
        if not 1 <= first <= self._tables.explicit - needed + 1:
            raise self._reader.damage(f"table {first}, and there are {self._tables.explicit}")
        return first

    @property
    def _first_plane_tables(self) -> int:
        if Form.SPARSE in self._form:
            return sparse.SIGN_CONTEXTS if Form.SIGNS in self._form else 1
        return scales.CLASSES if Form.ROWS in self._form or Form.COLUMNS in self._form else 1

    def _read_plane(self, *, tables_needed: int) -> _Plane:
        mode = self._reader.byte()
        if mode == CONSTANT:
            return _Plane(mode, self._reader.byte())
        if mode == CODED:
            return _Plane(mode, self._read_table(tables_needed))
        if mode != RAW:
            raise self._reader.damage(f"a plane of the unknown mode {mode}")
        return _Plane(mode, 0)

    # Symbols

    def _plane_tables(self, table: int, *, first: bool) -> Array:
        if first and Form.SIGNS in self._form:
            return np.repeat(np.arange(table, table + sparse.SIGN_CONTEXTS, dtype=np.uint16), self._sign_counts)
        if first and Form.SPARSE not in self._form and self._form & (Form.ROWS | Form.COLUMNS):
            rows = np.zeros(self._rows, np.uint8) if self._row_levels is None else self._row_levels
            classes = scales.Classes(rows, self._column_levels, self._bias, np.zeros(0), 0)
            return classes.of_each(self._columns).reshape(-1).astype(np.uint16) + np.uint16(table)
        return np.full(self._coded, table, np.uint16)

    def _gaps(self, symbols: Array) -> list[Array]:
        low_count = 0
        uppers = []
        position = 0
        for context in self._contexts:
            upper = self._without_escapes(symbols[position : position + context.symbols])
            position += context.symbols
            uppers.append(upper)
            low_count += context.shift * len(upper)
        packed = np.frombuffer(self._reader.take((low_count + 7) // 8), np.uint8)
        bits = np.unpackbits(packed)
        if bits[low_count:].any():
            raise self._reader.damage("bits that stand for nothing")
        gaps = []
        position = 0
        for context, upper in zip(self._contexts, uppers, strict=True):
            count = context.shift * len(upper)
            part = bits[position : position + count].reshape(len(upper), context.shift).astype(np.int64)
            position += count
            low = part @ (1 << np.arange(context.shift, dtype=np.int64)[::-1])
            gap = (upper << context.shift) + low
            if int(gap.sum()) + len(gap) > self._count:
                raise self._reader.damage("weights beyond the tensor's end")
            gaps.append(gap)
        if sum(map(len, gaps)) != (self._coded if Form.SPARSE in self._form else 0):
            raise self._reader.damage("places of another number of weights")
        return gaps

    def _without_escapes(self, symbols: Array) -> Array:
        ends = np.flatnonzero(symbols != self._coder.escape)
        if (int(ends[-1]) if len(ends) else -1) != len(symbols) - 1:
            raise self._reader.damage("a gap that goes on and on")
        return np.diff(np.cumsum(symbols, dtype=np.int64)[ends], prepend=0)

    # Values

    def _values(self, parts: list[Array]) -> Array:
        if self._books is None:
            return elements.unfold(elements.joined(parts, self._layout), self._layout)
        found = self._books.look_up(parts[0].reshape(self._rows, self._columns))
        if found is None:
            raise self._reader.damage("a symbol that the codebook does not have")
        return found

    def _sparse(self, gaps: list[Array], parts: list[Array]) -> bytes:
        lag, increments, bias, contexts = self._levels_read
        levels = sparse.Levels(self._row_levels, self._column_levels, lag, increments, bias, contexts)
        rows = np.split(parts[0], np.cumsum(self._sign_counts)[:-1]) if self._sign_counts else [parts[0]]
        places = sparse.Places((self._turns, self._height), levels, gaps)
        if self._sign_counts:
            mask, parts[0] = places.with_signs(rows, self._zero)
        else:
            mask = places.read()
        if mask is None or int(np.count_nonzero(mask)) != self._coded or len(parts[0]) != self._coded:
            raise self._reader.damage("places that do not fit the tensor")
        symbols = len(parts) == 1
        oriented = np.full(mask.shape, self._zero, np.uint8 if symbols else f"<u{self._layout.width}")
        oriented[mask] = parts[0] if symbols else self._values(parts)
        matrix = oriented if Form.TRANSPOSED in self._form else np.ascontiguousarray(oriented.T)
        return (self._values([matrix]) if symbols else matrix).tobytes()
