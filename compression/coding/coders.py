"""The two entropy coders behind one form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from compression.coding import huffman, rans, tables
from compression.coding.damage import Damage

Array = npt.NDArray[Any]
CoderName = Literal["rans", "huffman"]


class Tables(Protocol):
    """What symbols are coded with, numbered from 0 on; table 0 is of the one symbol that costs nothing."""

    explicit: int
    """How many are stored in the file: those from 1 on."""

    def geometric(self, parameter: int, /) -> int:
        """The number of the table of gaps with this parameter."""


@dataclass(frozen=True)
class Coder:
    """An entropy coder and its tables.

    Attributes:
        name: As in the spec.
        number: As in the file.
        escape: Symbol of a gap that goes on in another symbol.
        gap_shift: Low bits of a gap that are stored as they are, by the context's parameter.
        to_row: Counts of 256 symbols as numbers to store.
        from_rows: Stored numbers as tables; raises ValueError for what is no table.
        highest: Largest number in a row.
        encode: Sequences of symbols and their tables as bytes.
        decode: The other way round.
    """

    name: CoderName
    number: int
    escape: int
    gap_shift: Callable[[int], int]
    to_row: Callable[[Array], Array]
    from_rows: Callable[[Sequence[Sequence[int]]], Tables]
    highest: int
    encode: Callable[[Sequence[rans.Uncoded], Any], list[bytes]]
    decode: Callable[[Sequence[rans.Coded], Any], list[Array]]


def _frequencies(rows: Sequence[Sequence[int]]) -> tables.FrequencyTables:
    return tables.FrequencyTables([tables.from_codes(row) for row in rows])


def _lengths(rows: Sequence[Sequence[int]]) -> huffman.LengthTables:
    found = []
    for row in rows:
        lengths = np.array(row, np.uint8)
        if np.count_nonzero(lengths) == 1:
            # A lone symbol needs no bits; its number marks it only.
            lone = int(lengths.argmax())
            lengths[lone] = 0
            found.append(huffman.Code(lengths, lone))
        elif huffman.complete(lengths):
            found.append(huffman.Code(lengths, 0))
        else:
            raise Damage("tables", 0, f"the code lengths of table {len(found) + 1} are no Huffman code's")
    return huffman.LengthTables(found)


RANS = Coder("rans", 0, tables.ESCAPE, tables.gap_shift, tables.to_codes, _frequencies, 112, rans.encode, rans.decode)
HUFFMAN = Coder(
    "huffman",
    1,
    huffman.ESCAPE,
    huffman.gap_shift,
    huffman.code_lengths,
    _lengths,
    huffman.LONGEST,
    huffman.encode,
    huffman.decode,
)
BY_NAME: dict[str, Coder] = {coder.name: coder for coder in (RANS, HUFFMAN)}
BY_NUMBER: dict[int, Coder] = {coder.number: coder for coder in (RANS, HUFFMAN)}
