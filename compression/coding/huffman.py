"""Canonical Huffman codes of at most 12 bits (Huffman 1952; Deep Compression, Han et al. 2015, section 4).

A sequence is one row of bits, each code's high bit first. Every `interval` symbols its position is noted, so that many
places can be decoded side by side; a decoder that goes from front to back needs none of them.

    sequence := interval (varint)  bytes (varint)  bits between positions (varint) of all but the last  the bits
    A sequence of no symbols takes no bytes.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from compression.coding.bits import ByteReader, varint
from compression.coding.rans import Coded, Symbols, TableNumbers, Uncoded
from compression.coding.tables import SYMBOLS

LONGEST = 12
"""Bits of a code at most."""
ESCAPE = 11
"""The symbol of a gap that says: this much, and another symbol follows."""
_INTERVAL = 4096
_SMALLEST_INTERVAL = 512
_PLACES = 4096
# Codes of gaps are unary (Golomb 1966), which is Huffman's for this distribution.
_GAPS = (*range(1, ESCAPE + 1), ESCAPE)

Lengths = npt.NDArray[np.uint8]
"""(256,) bits of the code of each symbol; 0 where it does not occur."""


class Code(NamedTuple):
    """A code, and the symbol that stands for no bits where there is only one."""

    lengths: Lengths
    lone: int


class LengthTables:
    """All codes of one file. Table 0 knows one symbol, whose code is empty.

    Args:
        explicit: The stored ones, numbered from 1 on.
    """

    def __init__(self, explicit: Sequence[Code]) -> None:
        gaps = np.zeros(SYMBOLS, np.uint8)
        gaps[: len(_GAPS)] = _GAPS
        codes = [Code(np.zeros(SYMBOLS, np.uint8), 0), *explicit, Code(gaps, 0)]
        self.lengths: npt.NDArray[np.uint8] = np.stack([code.lengths for code in codes])
        self.lone: npt.NDArray[np.uint8] = np.array([code.lone for code in codes], np.uint8)
        self.explicit = len(explicit)

    def geometric(self, _parameter: int) -> int:
        """The number of the table of gaps, which is one for all."""
        return len(self.lengths) - 1


def gap_shift(parameter: int) -> int:
    """So many low bits of a gap are stored as they are (Rice 1979)."""
    return parameter >> 3


def code_lengths(counts: npt.NDArray[np.int64]) -> Lengths:
    """Bits of each symbol's code: Huffman's, shortened to `LONGEST` where needed; 1 for a lone symbol.

    >>> code_lengths(np.array([5, 2, 1, 1])).tolist()
    [1, 2, 3, 3]
    """
    lengths = np.zeros(len(counts), np.uint8)
    weights = counts.astype(np.int64)
    if np.count_nonzero(counts) == 1:
        return (counts > 0).astype(np.uint8)
    while True:
        heap: list[tuple[int, int, tuple[int, ...]]] = [
            (int(weights[symbol]), int(symbol), (int(symbol),)) for symbol in np.flatnonzero(counts)
        ]
        heapq.heapify(heap)
        lengths[:] = 0
        while len(heap) > 1:
            first, second = heapq.heappop(heap), heapq.heappop(heap)
            members = first[2] + second[2]
            lengths[list(members)] += 1
            heapq.heappush(heap, (first[0] + second[0], min(first[1], second[1]), members))
        if lengths.max(initial=0) <= LONGEST:
            return lengths
        # Raising the rarest symbols makes the tree flatter at little cost.
        weights = np.where(counts > 0, np.maximum(weights // 2, 1), 0)


def complete(lengths: npt.NDArray[np.uint8]) -> bool:
    """True when these are the lengths of a code that leaves no bits without meaning."""
    present = lengths[lengths > 0].astype(np.int64)
    return int((1 << LONGEST - present).sum()) == 1 << LONGEST


def _canonical(lengths: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """(tables, 256) codes: shorter before longer, symbols in order."""
    codes = np.zeros(lengths.shape, np.uint64)
    for row, bits in enumerate(lengths):
        code = 0
        for length in range(1, LONGEST + 1):
            code <<= 1
            for symbol in np.flatnonzero(bits == length):
                codes[row, symbol] = code
                code += 1
    return codes


def encode(parts: Sequence[Uncoded], tables: LengthTables) -> list[bytes]:
    """Code sequences of symbols; see `compression.coding.rans.encode`."""
    codes, lengths = _canonical(tables.lengths).ravel(), tables.lengths.ravel()
    return [_encode_one(part.symbols, part.tables, codes, lengths) for part in parts]


def _encode_one(
    symbols: Symbols, numbers: TableNumbers, codes: npt.NDArray[np.uint64], lengths: npt.NDArray[np.uint8]
) -> bytes:
    if not len(symbols):
        return b""
    entries = numbers.astype(np.int64) * SYMBOLS + symbols
    bits = lengths.take(entries).astype(np.int64)
    ends = np.cumsum(bits)
    starts = ends - bits
    total = int(ends[-1])
    # Each code lies in one or two words of 64 bits; those of one word stand together, so they are joined in runs.
    word, offset = starts >> 6, starts & 63
    code = codes.take(entries)
    room = 64 - offset - bits
    left, right = np.maximum(room, 0).astype(np.uint64), np.maximum(-room, 0).astype(np.uint64)
    upper = code << left >> right
    packed = np.zeros((total >> 6) + 2, np.uint64)
    runs = np.flatnonzero(np.diff(word, prepend=-1))
    packed[word[runs]] = np.bitwise_or.reduceat(upper, runs)
    across = np.flatnonzero(room < 0)
    packed[word[across] + 1] |= code[across] << (64 + room[across]).astype(np.uint64)
    data = packed.astype(">u8").tobytes()[: (total + 7) // 8]
    interval = max(_SMALLEST_INTERVAL, min(_INTERVAL, -(-len(symbols) // _PLACES)))
    steps = np.diff(starts[::interval])
    places = b"".join(varint(step) for step in steps.tolist())
    return varint(interval) + varint(len(data)) + places + data


def decode(parts: Sequence[Coded], tables: LengthTables) -> list[Symbols]:
    """The symbols of each sequence.

    Raises:
        Damage: The bytes are not those of sequences with these tables.
    """
    symbols, bits = _lookup(tables)
    return [_decode_one(part.tables, part.reader, symbols, bits) for part in parts]


def _lookup(tables: LengthTables) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """By table and the next bits, the symbol and the length of its code."""
    lengths = tables.lengths
    symbols = np.repeat(tables.lone[:, None], 1 << LONGEST, axis=1)
    bits = np.zeros(symbols.shape, np.uint8)
    for row, codes in enumerate(_canonical(lengths)):
        for symbol in np.flatnonzero(lengths[row]):
            length = int(lengths[row, symbol])
            start = int(codes[symbol]) << LONGEST - length
            symbols[row, start : start + (1 << LONGEST - length)] = symbol
            bits[row, start : start + (1 << LONGEST - length)] = length
    return symbols.ravel(), bits.ravel()


def _decode_one(
    numbers: TableNumbers, reader: ByteReader, symbols: npt.NDArray[np.uint8], bits: npt.NDArray[np.uint8]
) -> Symbols:
    count = len(numbers)
    if not count:
        return np.zeros(0, np.uint8)
    interval = reader.varint()
    size = reader.varint(2 * count)
    if interval < min(count, _SMALLEST_INTERVAL):
        raise reader.damage(f"positions every {interval} symbols")
    places = -(-count // interval)
    starts = np.zeros(places, np.int64)
    starts[1:] = [reader.varint(interval * LONGEST) for _ in range(places - 1)]
    position = np.cumsum(starts)
    expected = np.append(position[1:], -1)
    data = np.frombuffer(bytes(reader.take(size)) + bytes(8), np.uint8).astype(np.uint32)
    # Three bytes hold any code, wherever in the first of them it begins.
    windows = data[:-2] << np.uint32(16) | data[1:-1] << np.uint32(8) | data[2:]
    rows = np.zeros((places, interval), np.uint16)
    rows.reshape(-1)[:count] = numbers
    found = np.zeros((interval, places), np.uint8)
    for step, table in enumerate(np.ascontiguousarray(rows.T)):
        window = windows.take(position >> 3, mode="clip")
        window >>= (24 - LONGEST - (position & 7)).astype(np.uint32)
        slot = (window & np.uint32((1 << LONGEST) - 1)) | table.astype(np.uint32) << np.uint32(LONGEST)
        found[step] = symbols.take(slot)
        position += bits.take(slot)
    if (position[:-1] != expected[:-1]).any() or int(position[-1]) + 7 >> 3 != size:
        raise reader.damage("what is decoded does not end where it was begun")
    return np.ascontiguousarray(found.T).reshape(-1)[:count]
