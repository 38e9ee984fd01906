"""How one tensor is to be stored: which of its forms is smallest, by estimated bits."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from compression.coding import books, elements, scales, sparse
from compression.coding.cost import entropy_bits, table_bits
from compression.coding.splice import Hole

Array = npt.NDArray[Any]

# A context of gaps: its parameter and its count.
_CONTEXT_BITS = 24.0
# The increments of neighbours that have none, and five counts.
_LAG_BITS = 88.0
_SIGN_BITS = 64.0
_SPARSE_FROM = 0.5
# Rows and columns of different density alone make weights meet about twice as often as chance does.
_WORTH_A_LOOK = 3.0


@dataclass
class Plane:
    """Bytes of like meaning.

    Attributes:
        symbols: (n,).
        kind: Tensors whose planes share a kind may share a table.
        counts: (256,) how often each symbol occurs.
        classes: For 8-bit integers, the scale of each row and column.
        signs: (n,) the context of signs, or None.
    """

    symbols: Array
    kind: str
    counts: Array
    classes: scales.Classes | None = None
    signs: Array | None = None


@dataclass
class Plan:
    """A tensor in the form that was chosen.

    Attributes:
        hole: Name, type and shape.
        data: The bytes as they are.
        layout: Of its elements.
        rows, columns: Of its matrix.
        planes: What is left to code: one of symbols, or one for each byte of an element.
        books: Stored numbers that symbols stand for, or None.
        levels: Contexts of places, for the sparse form.
        gaps: For each context.
        transposed: The sparse form goes along rows instead of columns.
        zero: In the sparse form, the symbol or the stored number that most elements have.
    """

    hole: Hole
    data: memoryview
    layout: elements.Layout
    rows: int
    columns: int
    planes: list[Plane] = field(default_factory=list)
    books: books.Books | None = None
    levels: sparse.Levels | None = None
    gaps: list[sparse.Gaps] = field(default_factory=list)
    transposed: bool = False
    zero: int = 0


def make_plan(hole: Hole, data: memoryview) -> Plan:
    """Choose between all values as they come, a codebook, and a sparse form of either."""
    layout = elements.layout_of(hole.data_type, hole.size)
    values = elements.numbers(data, layout)
    rows, columns = elements.matrix_shape(hole.dims, len(values))
    plan = Plan(hole, data, layout, rows, columns)
    found = books.find(values.reshape(rows, columns), layout) if layout.width > 1 else None
    if found is None:
        folded = elements.fold(values, layout)
    else:
        plan.books, symbols = found
        folded = symbols.reshape(-1)
    common = _common(folded)
    if common is not None and _make_sparse(plan, folded, common):
        return plan
    plan.planes = _planes(plan, folded)
    if layout.width == 1:
        plan.planes[0].classes = scales.fit(folded.reshape(rows, columns))
    return plan


def _common(folded: Array) -> int | None:
    """The number that most elements have, where more than half of them have the same."""
    sample = folded[:: max(1, len(folded) // 4096)]
    found, counts = np.unique(sample, return_counts=True)
    best = found[counts.argmax()]
    share = float(np.mean(folded == best))
    return int(best) if _SPARSE_FROM < share < 1 else None


def _planes(plan: Plan, folded: Array) -> list[Plane]:
    if plan.books is not None:
        return [_plane(folded, "codebook")]
    kind = f"{plan.layout}"
    return [_plane(part, f"{kind} {index}") for index, part in enumerate(elements.planes(folded, plan.layout))]


def _plane(symbols: Array, kind: str) -> Plane:
    return Plane(symbols, kind, np.bincount(symbols, minlength=256))


def _make_sparse(plan: Plan, folded: Array, common: int) -> bool:
    """Store places and what is there, where that is smaller."""
    one_plane = plan.books is not None or plan.layout.width == 1
    matrix = folded.reshape(plan.rows, plan.columns)
    places = np.ascontiguousarray(common != matrix.T)
    best = _cheapest(places)
    if best is None:
        return False
    cost, plan.levels, plan.transposed, lag = best
    oriented = matrix if plan.transposed else matrix.T
    mask = places.T if plan.transposed else places
    mask = np.ascontiguousarray(mask)
    rest = oriented[mask]
    if one_plane:
        # Dense symbols need no places, and pay for the common one with every other.
        dense = entropy_bits(np.bincount(folded, minlength=256))
        if cost + entropy_bits(np.bincount(rest, minlength=256)) > dense:
            plan.levels, plan.transposed = None, False
            return False
    plan.zero = common if one_plane else int(elements.unfold(np.array([common], folded.dtype), plan.layout)[0])
    plan.gaps = sparse.split(mask, sparse.contexts(mask, plan.levels), plan.levels.contexts)
    plan.planes = _planes(plan, rest)
    if one_plane:
        cost = 0.0 if plan.levels.lag else _LAG_BITS
        if len(mask) > 2 * lag and _add_signs(plan.planes[0], mask, common, lag, cost):
            plan.levels = replace(plan.levels, lag=lag)
    return True


def _add_signs(plane: Plane, mask: Array, zero: int, lag: int, cost: float) -> bool:
    """Code symbols by the signs around them where that pays, which costs `cost` bits beside the tables."""
    signs = np.zeros(mask.shape, np.int8)
    signs[mask] = np.where(plane.symbols > zero, 1, -1)
    around = sparse.signs_around(signs, lag)[mask].astype(np.uint8)
    index = around.astype(np.int64) * 256 + plane.symbols
    by_sign = np.bincount(index, minlength=256 * sparse.SIGN_CONTEXTS).reshape(sparse.SIGN_CONTEXTS, 256)
    cost += entropy_bits(by_sign) + table_bits(by_sign) + _SIGN_BITS
    if cost >= entropy_bits(plane.counts) + table_bits(plane.counts):
        return False
    plane.signs = around
    return True


def _cheapest(places: Array) -> tuple[float, sparse.Levels, bool, int] | None:
    """The cheapest way to say where the weights are; `places` (columns, rows).

    Returns:
        Bits, contexts and orientation, and the distance at which weights resemble one another in that orientation.
    """
    options: list[tuple[float, sparse.Levels, bool]] = []

    def consider(mask: Array, levels: sparse.Levels, *, transposed: bool) -> None:
        gaps = np.zeros((levels.contexts, 2), np.int64)
        if levels.contexts == 1:
            gaps[0] = np.count_nonzero(mask), mask.size
        else:
            context = sparse.contexts(mask, levels)
            gaps[:, 1] = np.bincount(context.reshape(-1), minlength=levels.contexts)
            gaps[:, 0] = np.bincount(context[mask], minlength=levels.contexts)
        gaps[:, 1] -= gaps[:, 0]
        side = sum(
            entropy_bits(np.bincount(part)) + table_bits(np.bincount(part))
            for part in (levels.rows, levels.columns)
            if part is not None
        )
        options.append((entropy_bits(gaps) + _CONTEXT_BITS * levels.contexts + side, levels, transposed))

    count, height = places.shape
    consider(places, sparse.Levels(None, None, 0, np.zeros(19, np.int64), 0, 1), transposed=False)
    if min(count, height) > 1:
        consider(places, sparse.fit_static(places), transposed=False)
    lags = {False: 2, True: 2}
    for transposed in (False, True):
        mask = np.ascontiguousarray(places.T) if transposed else places
        if len(mask) > 4:
            lag, times = sparse.best_lag(mask)
            lags[transposed] = lag
            if times > _WORTH_A_LOOK:
                consider(mask, sparse.fit_neighbours(mask, lag), transposed=transposed)
    bits, chosen, turned = min(options, key=lambda option: option[0])
    return bits, chosen, turned, lags[turned]
