"""How probable each symbol is in each context, in whole numbers that every decoder computes alike.

A table gives each of 256 symbols a frequency; they add up to 2**PRECISION. Explicit tables are stored in the file's
`tables` part. Gaps between sparse weights follow a geometric distribution, whose table is computed from one byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from compression.coding.bits import BitReader, BitWriter

PRECISION = 14
TOTAL = 1 << PRECISION
SYMBOLS = 256
ESCAPE = 255
"""The symbol of a gap that says: this much, and another symbol follows."""
NO_ONES = 255
"""The parameter of a context in which there is no non-zero weight."""
_GAP_BITS = 24
# 2**24 * 2**(-i/8), rounded.
_EIGHTHS = (16777216, 15384775, 14107901, 12937002, 11863283, 10878679, 9975792, 9147842)
_MAX_TABLES = 1 << 16
_FEW = 4096

Frequencies = npt.NDArray[np.uint32]
"""(256,), adding up to TOTAL."""
Counts = npt.NDArray[np.int64]


class FrequencyTables:
    """All tables of one file. Table 0 knows one symbol, which costs nothing and changes no state.

    Args:
        explicit: The stored ones, numbered from 1 on.
    """

    def __init__(self, explicit: Sequence[Frequencies]) -> None:
        nothing = np.zeros(SYMBOLS, np.uint32)
        nothing[0] = TOTAL
        self._rows: list[Frequencies] = [nothing, *explicit]
        self._geometric: dict[int, int] = {}
        self.explicit = len(explicit)

    def geometric(self, parameter: int) -> int:
        """The number of the table of gaps with this parameter (see `geometric`)."""
        if parameter not in self._geometric:
            self._geometric[parameter] = len(self._rows)
            self._rows.append(geometric(parameter))
        return self._geometric[parameter]

    @property
    def frequencies(self) -> npt.NDArray[np.uint32]:
        """(tables, 256)."""
        return np.stack(self._rows)


def gap_shift(parameter: int) -> int:
    """So many low bits of a gap are stored as they are: among them a geometric distribution is nearly flat."""
    return max(0, (parameter >> 3) - 3)


def gap_parameter(ones: int, total: int) -> int:
    """The parameter of a context with `ones` non-zeros among `total`: -8 log2 of their share.

    >>> gap_parameter(1, 2), gap_parameter(0, 5)
    (8, 255)
    """
    return min(round(-8 * np.log2(ones / total)), 8 * (_GAP_BITS - 4)) if ones else NO_ONES


def geometric(parameter: int) -> Frequencies:
    """Frequencies of the upper part of a gap, `gap >> gap_shift(parameter)`, where ones are independent.

    The probability of a one is 2**(-parameter / 8). All is integer arithmetic below 2**53.
    """
    unit = 1 << _GAP_BITS
    none = unit - (_EIGHTHS[parameter & 7] >> (parameter >> 3))
    for _ in range(gap_shift(parameter)):
        none = none * none >> _GAP_BITS
    found = []
    left = unit
    for _ in range(ESCAPE):
        following = left * none >> _GAP_BITS
        found.append(max(1, left - following >> _GAP_BITS - PRECISION))
        left = following
    found.append(max(1, left >> _GAP_BITS - PRECISION))
    found[0] += TOTAL - sum(found)
    return np.array(found, np.uint32)


def to_codes(counts: Counts) -> npt.NDArray[np.int64]:
    """Counts as they are stored: numbers with three bits after the leading one, absent symbols zero.

    The loss against exact counts is below 0.001 bits a symbol, or below 0.004 with two bits, where there are so few
    symbols that the table itself weighs more.
    """
    scaled = counts * (TOTAL / counts.sum())
    whole = np.where(counts > 0, np.maximum(1, np.rint(scaled)), 0).astype(np.int64)
    exponent = np.maximum(0, np.frexp(whole.astype(np.float64))[1] - 4).astype(np.int64)
    mantissa = np.rint(whole / np.exp2(exponent)).astype(np.int64)  # 8 to 16, where 16 is 8 of the next exponent
    codes = np.where(exponent > 0, exponent * 8 + mantissa, whole)
    if counts.sum() < _FEW:
        codes = np.where(codes > 0, np.maximum(2, codes + 1 & -2), 0)
    return codes


def from_codes(codes: Sequence[int]) -> Frequencies:
    """Stored numbers as frequencies: floor(weight * TOTAL / sum), at least 1, what is left to the first symbols."""
    weights = [code if code < 16 else 8 + (code & 7) << (code >> 3) - 1 for code in codes]
    total = sum(weights)
    found = [max(1, weight * TOTAL // total) if weight else 0 for weight in weights]
    rest = TOTAL - sum(found)
    if rest < 0:  # many rare symbols were raised to 1
        found[found.index(max(found))] += rest
    for symbol in range(len(found)):
        if rest <= 0:
            break
        if found[symbol]:
            found[symbol] += 1
            rest -= 1
    return np.array(found, np.uint32)


def write_tables(tables: Iterable[npt.NDArray[np.int64]]) -> bytes:
    """Store rows of 256 small numbers: the range of symbols that occur, then differences from symbol to symbol."""
    rows = list(tables)
    writer = BitWriter()
    writer.gamma(len(rows))
    for row in rows:
        present = np.flatnonzero(row)
        first, last = int(present[0]), int(present[-1])
        writer.gamma(first)
        writer.gamma(last - first)
        if first == last:
            continue  # the only symbol, whatever its number
        coarse = int(not (row & 1).any())
        writer.bits(coarse, 1)
        written = row[first : last + 1].astype(np.int64) >> coarse
        writer.bits(int(written[0]), 7)
        steps = np.diff(written)
        folded = np.where(steps < 0, -2 * steps - 1, 2 * steps).tolist()
        lengths = [sum((value >> k) + 1 + k for value in folded) for k in range(8)]
        parameter = lengths.index(min(lengths))
        writer.bits(parameter, 3)
        for value in folded:
            writer.rice(value, parameter)
    return writer.to_bytes()


def read_tables(data: memoryview, offset: int, highest: int) -> list[list[int]]:
    """What `write_tables` stored, each number at most `highest`.

    Raises:
        Damage: The bytes are no tables.
    """
    reader = BitReader(data, "tables", offset)
    count = reader.gamma()
    # Each takes at least two bits, so that a few bytes cannot claim many.
    if count > min(_MAX_TABLES, 4 * len(data)):
        raise reader.damage(f"{count} tables are more than its bytes can hold")
    rows = []
    for _ in range(count):
        first = reader.gamma()
        last = first + reader.gamma()
        if last >= SYMBOLS:
            raise reader.damage(f"symbol {last} does not exist")
        row = [0] * SYMBOLS
        if first == last:
            row[first] = 1
        else:
            coarse = reader.bits(1)
            value = reader.bits(7)
            parameter = reader.bits(3)
            for symbol in range(first, last + 1):
                if symbol > first:
                    folded = reader.rice(parameter)
                    value += -(folded + 1 >> 1) if folded & 1 else folded >> 1
                if not 0 <= value << coarse <= highest:
                    raise reader.damage(f"symbol {symbol} has the impossible frequency {value}")
                row[symbol] = value << coarse
        if not any(row):
            raise reader.damage("a table without symbols")
        rows.append(row)
    reader.end()
    return rows
