"""From plans to streams: which tables are shared, and the bytes of every tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from compression.coding import scales, sparse
from compression.coding.bits import varint
from compression.coding.coders import Coder, Tables
from compression.coding.cost import cross_entropy_bits, entropy_bits, table_bits
from compression.coding.forms import CODED, CONSTANT, RAW, Form
from compression.coding.plan import Plan, Plane
from compression.coding.rans import Uncoded
from compression.coding.tables import NO_ONES, gap_parameter

Array = npt.NDArray[Any]

_BOOKS = {None: Form.CODEBOOK, 0: Form.CODEBOOK | Form.LINES, 1: Form.LINES}
_SCALED = "scaled"
_LEVELS = "levels"
# A stream that is coded costs its lengths and the end of its lane.
_SEQUENCE_BITS = 64.0
# Bytes that are nearly noise are stored as they are, which is faster to read.
_WORTH_CODING = 0.995


@dataclass
class Written:
    """A tensor's stream and what it took.

    Attributes:
        data: The bytes.
        form: In words.
        entropy_bits: Of its symbols by their own frequencies in the contexts used, and of what is stored as it is;
            tables and lengths not included.
    """

    data: bytes
    form: str
    entropy_bits: float


@dataclass
class _Choice:
    """How a plane is stored: its mode, and which tables it uses."""

    mode: int
    shared: str | None = None
    own: Array | None = None
    classes: scales.Classes | None = None


class _Pool:
    """The tables of a file, numbered from 1 on as they are asked for."""

    def __init__(self) -> None:
        self.counts: list[Array] = []
        self._shared: dict[str, int] = {}

    def own(self, counts: Array) -> int:
        """The number of the first of new tables, one a row."""
        first = len(self.counts) + 1
        # A context without symbols still needs a table that can be stored.
        self.counts += [row if row.any() else np.eye(1, 256, dtype=np.int64)[0] for row in np.atleast_2d(counts)]
        return first

    def shared(self, key: str, counts: Array) -> int:
        """The number of the first table that all with this key use."""
        if key not in self._shared:
            self._shared[key] = self.own(counts)
        return self._shared[key]


def write(plans: Sequence[Plan], coder: Coder) -> tuple[list[Array], list[Written]]:
    """The rows of the tables, and every tensor's stream."""
    choices, shared = _choose(plans)
    pool = _Pool()
    drafts = [_Draft(plan, choice, pool, shared, coder) for plan, choice in zip(plans, choices, strict=True)]
    rows = [coder.to_row(counts) for counts in pool.counts]
    tables = coder.from_rows([row.tolist() for row in rows])
    side = coder.encode([Uncoded(*draft.side.joined(tables)) for draft in drafts], tables)
    main = coder.encode([Uncoded(*draft.main.joined(tables), draft.raw_bytes) for draft in drafts], tables)
    return rows, [draft.finished(*parts) for draft, *parts in zip(drafts, side, main, strict=True)]


def _choose(plans: Sequence[Plan]) -> tuple[list[list[_Choice]], dict[str, Array]]:
    """For each plane of each plan its mode and tables; and the counts of the tables that are shared."""
    shared: dict[str, Array] = {}
    for plane in _planes(plans):
        shared[plane.kind] = shared.get(plane.kind, np.zeros(256, np.int64)) + plane.counts
        if plane.classes is not None:
            shared[_SCALED] = shared.get(_SCALED, np.zeros((scales.CLASSES, 256), np.int64)) + plane.classes.counts
    choices = [[_choice(plane, shared) for plane in plan.planes] for plan in plans]
    levels = [np.bincount(part, minlength=256) for plan in plans for part in _levels_of(plan)]
    shared[_LEVELS] = np.sum(levels, axis=0) if levels else np.zeros(256, np.int64)
    # Tables hold the symbols of those alone that use them.
    used: dict[str, Array] = {_LEVELS: shared[_LEVELS]}
    for plan, chosen in zip(plans, choices, strict=True):
        for plane, choice in zip(plan.planes, chosen, strict=True):
            if choice.shared is not None:
                counts = plane.counts if choice.classes is None else choice.classes.counts
                used[choice.shared] = used.get(choice.shared, 0) + counts
            if choice.classes is not None:
                for name, part in (("rows", choice.classes.rows), ("columns", choice.classes.columns)):
                    if part is not None:
                        used[name] = used.get(name, 0) + np.bincount(part, minlength=256)
    return choices, used


def _levels_of(plan: Plan) -> list[Array]:
    """Levels of rows and columns in the sparse form."""
    levels = plan.levels
    return [] if levels is None else [part for part in (levels.rows, levels.columns) if part is not None]


def _planes(plans: Sequence[Plan]) -> Iterator[Plane]:
    for plan in plans:
        yield from plan.planes


def _choice(plane: Plane, shared: dict[str, Array]) -> _Choice:
    if np.count_nonzero(plane.counts) <= 1:
        return _Choice(CONSTANT)
    own = plane.counts
    if plane.signs is not None:
        index = plane.signs.astype(np.int64) * 256 + plane.symbols
        own = np.bincount(index, minlength=256 * sparse.SIGN_CONTEXTS).reshape(-1, 256)
    options = [(entropy_bits(own) + table_bits(own) + _SEQUENCE_BITS, _Choice(CODED, own=own))]
    if plane.signs is None:
        pooled = shared[plane.kind]
        part = len(plane.symbols) / max(1, int(pooled.sum()))
        common = cross_entropy_bits(plane.counts, pooled) + table_bits(pooled) * part + _SEQUENCE_BITS
        options.append((common, _Choice(CODED, shared=plane.kind)))
    if plane.classes is not None:
        pooled = shared[_SCALED]
        part = len(plane.symbols) / max(1, int(pooled.sum()))
        side, counts = plane.classes.side_bits + _SEQUENCE_BITS, plane.classes.counts
        common = cross_entropy_bits(counts, pooled) + table_bits(pooled) * part
        options.append((common + side, _Choice(CODED, shared=_SCALED, classes=plane.classes)))
        alone = entropy_bits(counts) + table_bits(counts)
        options.append((alone + side, _Choice(CODED, own=counts, classes=plane.classes)))
    bits, best = min(options, key=lambda option: option[0])
    return best if bits < _WORTH_CODING * 8 * len(plane.symbols) else _Choice(RAW)


class _Symbols:
    """Symbols one after the other, and the tables that they are coded with."""

    def __init__(self) -> None:
        self._symbols: list[Array] = []
        self._tables: list[Any] = []
        self.entropy_bits = 0.0

    def add(self, symbols: Array, table: Array | int, counts: Array | None = None) -> None:
        """Symbols with one table, or each with its own number, or with a parameter of gaps below zero."""
        self._symbols.append(symbols)
        self._tables.append(table)
        self.entropy_bits += entropy_bits(np.bincount(symbols, minlength=256) if counts is None else counts)

    def joined(self, tables: Tables) -> tuple[Array, Array]:
        """All symbols and the numbers of their tables."""
        numbers = [np.zeros(0, np.uint16)]
        for symbols, table in zip(self._symbols, self._tables, strict=True):
            if isinstance(table, np.ndarray):
                numbers.append(table.astype(np.uint16))
            else:
                number = table if table >= 0 else tables.geometric(-1 - table)
                numbers.append(np.full(len(symbols), number, np.uint16))
        return np.concatenate([np.zeros(0, np.uint8), *self._symbols]), np.concatenate(numbers)


@dataclass
class _Draft:
    """A stream whose symbols wait to be coded."""

    plan: Plan
    choices: list[_Choice]
    pool: _Pool
    shared: dict[str, Array]
    coder: Coder
    side: _Symbols = field(default_factory=_Symbols)
    main: _Symbols = field(default_factory=_Symbols)

    def __post_init__(self) -> None:
        plan = self.plan
        self.codebook_bits = 0
        form = Form(0)
        head = bytearray()
        low_bits = b""
        if plan.books is not None:
            form |= _BOOKS[plan.books.axis]
            head += bytes((plan.books.sizes - 1).tolist()) + plan.books.values.tobytes()
            self.codebook_bits = 8 * plan.books.values.nbytes
        if plan.levels is not None:
            form |= Form.SPARSE
            if plan.transposed:
                form |= Form.TRANSPOSED
            form |= self._levels(plan.levels, head)
            low_bits = self._gaps(head)
            signs = plan.planes[0].signs
            if signs is not None and self.choices[0].own is not None:
                form |= Form.SIGNS
                counts = np.bincount(signs, minlength=sparse.SIGN_CONTEXTS)
                head += b"".join(varint(count) for count in counts.tolist())
        raw: list[Array] = []
        for plane, choice in zip(plan.planes, self.choices, strict=True):
            if choice.classes is not None:
                form |= self._classes(choice.classes, head)
            self._plane(plane, choice, head, raw)
        self._head = bytes([form.value]) + head
        self._tail = low_bits + b"".join(part.tobytes() for part in raw)
        self._form = form
        self.raw_bytes = len(self._tail)

    def _levels(self, levels: sparse.Levels, head: bytearray) -> Form:
        form = Form(0)
        plan = self.plan
        width = 1 if plan.books is not None else plan.layout.width
        head += plan.zero.to_bytes(width, "little")
        head += varint(levels.lag)
        if levels.lag:
            steps = [*levels.increments.tolist(), 0]
            head += bytes(low | high << 4 for low, high in zip(steps[::2], steps[1::2], strict=True))
        for flag, part in ((Form.ROWS, levels.rows), (Form.COLUMNS, levels.columns)):
            if part is not None:
                form |= flag
                counts = np.bincount(part, minlength=256)
                common = self.shared[_LEVELS]
                if cross_entropy_bits(counts, common) < entropy_bits(counts) + table_bits(counts):
                    table = self.pool.shared(_LEVELS, common)
                else:
                    table = self.pool.own(counts)
                head += varint(table)
                self.side.add(part.astype(np.uint8), table)
        head.append(levels.contexts)
        head += varint(levels.bias)
        return form

    def _gaps(self, head: bytearray) -> bytes:
        """Gaps as symbols; the low bits that are stored as they are come back."""
        bits: list[Array] = []
        total = 0
        for gaps, places in self.plan.gaps:
            parameter = gap_parameter(len(gaps), places)
            head.append(parameter)
            if parameter == NO_ONES:
                continue
            shift = self.coder.gap_shift(parameter)
            symbols = _with_escapes(gaps >> shift, self.coder.escape)
            head += varint(len(symbols))
            total += len(gaps)
            ones_and_zeros = np.array([[len(gaps), places - len(gaps)]])
            self.main.add(symbols, -1 - parameter, ones_and_zeros)
            self.main.entropy_bits -= shift * len(gaps)
            bits.append((gaps[:, None] >> np.arange(shift)[::-1] & 1).reshape(-1).astype(np.uint8))
        head += varint(total)
        return np.packbits(np.concatenate([np.zeros(0, np.uint8), *bits])).tobytes()

    def _classes(self, classes: scales.Classes, head: bytearray) -> Form:
        form = Form.ROWS
        head += varint(2 * classes.bias if classes.bias >= 0 else -2 * classes.bias - 1)
        table = self.pool.shared("rows", self.shared["rows"])
        head += varint(table)
        self.side.add(classes.rows, table)
        if classes.columns is not None:
            form |= Form.COLUMNS
            table = self.pool.shared("columns", self.shared["columns"])
            head += varint(table)
            self.side.add(classes.columns, table)
        return form

    def _plane(self, plane: Plane, choice: _Choice, head: bytearray, raw: list[Array]) -> None:
        head.append(choice.mode)
        if choice.mode == CONSTANT:
            head.append(int(plane.symbols[0]) if len(plane.symbols) else 0)
            return
        if choice.mode == RAW:
            raw.append(plane.symbols)
            return
        if choice.shared is not None:
            first = self.pool.shared(choice.shared, self.shared[choice.shared])
        else:
            first = self.pool.own(plane.counts if choice.own is None else choice.own)
        head += varint(first)
        if choice.classes is not None:
            numbers = choice.classes.of_each(self.plan.columns).reshape(-1).astype(np.uint16) + np.uint16(first)
            self.main.add(plane.symbols, numbers, choice.classes.counts)
        elif plane.signs is not None:
            # All of one context stand together, so that a decoder knows the table before it knows the place.
            order = np.argsort(plane.signs, kind="stable")
            self.main.add(plane.symbols[order], plane.signs[order].astype(np.uint16) + np.uint16(first), choice.own)
        else:
            self.main.add(plane.symbols, first)

    def finished(self, side: bytes, main: bytes) -> Written:
        size = self.plan.hole.size
        data = self._head + side + main + self._tail
        if len(data) > size:
            return Written(bytes([Form.STORED.value]) + bytes(self.plan.data), Form.STORED.words, 8 * size)
        bits = self.side.entropy_bits + self.main.entropy_bits + 8 * self.raw_bytes + self.codebook_bits
        return Written(data, self._form.words, bits)


def _with_escapes(upper: Array, escape: int) -> Array:
    """Numbers as symbols up to `escape`, which says that another one follows."""
    further = upper // escape
    symbols = np.repeat(np.full(len(upper), escape, np.uint8), further + 1)
    symbols[np.cumsum(further + 1) - 1] = upper % escape
    return symbols
