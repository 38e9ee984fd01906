"""Range asymmetric numeral systems (Duda 2013) with as many states side by side as arrays need to be fast.

Symbol i of a sequence belongs to lane i % lanes. A lane's state is a number from 2**16 to 2**32 - 1. To decode a symbol
with table t, whose frequencies f add up to 2**14 and whose sums below a symbol are c:

    slot = state % 2**14;  symbol: the one with c[symbol] <= slot < c[symbol] + f[symbol]
    state = f[symbol] * (state >> 14) + slot - c[symbol]
    if state < 2**16: state = state << 16 | next word

Words belong to the sequence: in each round of one symbol a lane, the lanes that need one take the next in their order.
At the end every state is 2**16 again and every word is read, which a decoder checks.

    sequence := lanes (varint)  state (4 bytes) of each lane  words (varint)  word (2 bytes) of each, all little-endian
    A sequence of no symbols takes no bytes.

Several sequences are coded in one pass over arrays that hold the lanes of all, so that small tensors cost no more
time a symbol than large ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from compression.coding.bits import ByteReader, varint
from compression.coding.tables import PRECISION, SYMBOLS, TOTAL, FrequencyTables

Symbols = npt.NDArray[np.uint8]
TableNumbers = npt.NDArray[np.uint16]

MAX_LANES = 4096
# A lane costs about 3 bytes, which are 0.4 % of so many.
_BYTES_A_LANE = 768
_SYMBOLS_A_LANE = 64
_SAMPLE = 1 << 15
# So few in a whole file are quick to decode one by one, and lanes would be a notable part of it.
_FEW_SYMBOLS = 1 << 16
# Arrays pay from so many lanes on.
_FEW_LANES = 48
_START = 1 << 16
_LANES_AT_ONCE = 4096
_DOES_NOT_END = "what is decoded does not end where it was begun"
_WORD = np.uint32(16)
_SHIFT = np.uint32(PRECISION)
_MASK = np.uint32(TOTAL - 1)
_LOW = np.uint32(0xFFFF)


class Uncoded(NamedTuple):
    """A sequence that is to be coded.

    Attributes:
        symbols: (n,).
        tables: (n,) number of the table of each symbol.
        beside: Bytes that are stored beside the sequence whatever it takes: the larger a tensor, the more lanes pay.
    """

    symbols: Symbols
    tables: TableNumbers
    beside: int = 0


class Coded(NamedTuple):
    """A sequence as it is stored, and what is known of its symbols.

    Attributes:
        tables: (n,) number of the table of each symbol.
        reader: Where the bytes of the sequence come next.
    """

    tables: TableNumbers
    reader: ByteReader


class _Sequence(NamedTuple):
    """A sequence on its way through the arrays.

    Attributes:
        tables: (n,) number of the table of each symbol.
        lanes: How many states share them.
        states: (lanes,) uint32.
        words: uint16.
        reader: For messages.
    """

    tables: TableNumbers
    lanes: int
    states: npt.NDArray[np.uint32]
    words: npt.NDArray[np.uint16]
    reader: ByteReader

    @property
    def rounds(self) -> int:
        return -(-len(self.tables) // self.lanes)


def encode(parts: Sequence[Uncoded], tables: FrequencyTables) -> list[bytes]:
    """Code sequences of symbols.

    Args:
        parts: The sequences.
        tables: In which each symbol that occurs has a frequency above 0.

    Returns:
        The stored form of each.
    """
    frequencies = tables.frequencies
    costs = np.log2(TOTAL / np.maximum(frequencies, 1)).astype(np.float32)
    plans = []
    small = sum(len(part.symbols) for part in parts) <= _FEW_SYMBOLS
    for symbols, numbers, beside in parts:
        entries = numbers.astype(np.int32) * SYMBOLS + symbols
        if small:
            plans.append((entries, 1))
            continue
        # A sample tells well enough how much it will be.
        sample = entries[:: -(-len(entries) // _SAMPLE) or 1]
        size = beside + float(costs.ravel().take(sample).mean() if len(sample) else 0) * len(entries) / 8
        lanes = max(1, min(MAX_LANES, round(size / _BYTES_A_LANE), len(symbols) // _SYMBOLS_A_LANE))
        plans.append((entries, lanes))
    below = np.cumsum(frequencies, axis=1, dtype=np.uint32) - frequencies
    packed = (frequencies << _WORD | below).ravel()
    coded: list[bytes] = []
    for group in _groups([lanes for _, lanes in plans]):
        if sum(lanes for _, lanes in plans[group]) < _FEW_LANES:
            coded += [_encode_one(entries, lanes, packed.data) for entries, lanes in plans[group]]
        else:
            coded += _encode_group(plans[group], packed)
    return coded


def _encode_one(entries: npt.NDArray[np.int32], lanes: int, packed: memoryview) -> bytes:
    """A single sequence, symbol by symbol; `packed` has the frequency of each symbol and those below it."""
    states = [_START] * lanes
    spare = 32 - PRECISION
    words = []
    listed = entries.tolist()
    for index in range(len(listed) - 1, -1, -1):
        lane, step = index % lanes, packed[listed[index]]
        state, frequency = states[lane], step >> 16
        if state >> spare >= frequency:
            words.append(state & 0xFFFF)
            state >>= 16
        states[lane] = (state // frequency << PRECISION) + state % frequency + (step & 0xFFFF)
    return _stored(len(listed), np.array(states), np.array(words[::-1], np.uint16))


def _stored(count: int, states: npt.NDArray[Any], words: npt.NDArray[np.uint16]) -> bytes:
    if not count:
        return b""
    return varint(len(states)) + states.astype("<u4").tobytes() + varint(len(words)) + words.astype("<u2").tobytes()


def _groups(lanes: Sequence[int]) -> Iterator[slice]:
    """Runs of sequences whose lanes fill arrays that stay in a processor's cache."""
    start = total = 0
    for index, count in enumerate(lanes):
        if total and total + count > _LANES_AT_ONCE:
            yield slice(start, index)
            start, total = index, 0
        total += count
    if total:
        yield slice(start, len(lanes))


def _in_rounds(
    columns: Sequence[tuple[npt.NDArray[np.generic], int]], dtype: type[np.generic]
) -> npt.NDArray[np.generic]:
    """(rounds, lanes of all): each sequence in its own columns, filled up with 0, the table that changes nothing."""
    rounds = max(-(-len(values) // lanes) for values, lanes in columns)
    matrix = np.zeros((rounds, sum(lanes for _, lanes in columns)), dtype)
    start = 0
    for values, lanes in columns:
        whole = len(values) // lanes
        matrix[:whole, start : start + lanes] = values[: whole * lanes].reshape(whole, lanes)
        rest = len(values) - whole * lanes
        if rest:
            matrix[whole, start : start + rest] = values[whole * lanes :]
        start += lanes
    return matrix


def _encode_group(plans: Sequence[tuple[npt.NDArray[np.int32], int]], packed: npt.NDArray[np.uint32]) -> list[bytes]:
    entries = _in_rounds([(values, lanes) for values, lanes in plans], np.int32)
    lanes = [count for _, count in plans]
    sequence_of = np.repeat(np.arange(len(plans), dtype=np.uint16), lanes)
    states = np.full(entries.shape[1], _START, np.uint32)
    spare = np.uint32(32 - PRECISION)
    words: list[npt.NDArray[np.uint16]] = []
    owners: list[npt.NDArray[np.uint16]] = []
    for row in entries[::-1]:
        step = packed.take(row)
        frequency = step >> _WORD
        full = (states >> spare >= frequency).nonzero()[0]
        if len(full):
            high = states.take(full)
            words.append(high.astype(np.uint16))
            owners.append(sequence_of.take(full))
            states[full] = high >> _WORD
        quotient = states // frequency
        states -= quotient * frequency
        states += (quotient << _SHIFT) + (step & _LOW)
    all_words = np.concatenate(words[::-1]) if words else np.zeros(0, np.uint16)
    owner = np.concatenate(owners[::-1]) if owners else np.zeros(0, np.uint16)
    order = np.argsort(owner, kind="stable")
    parts = np.split(all_words[order], np.cumsum(np.bincount(owner, minlength=len(plans)))[:-1])
    ends = np.split(states, np.cumsum(lanes)[:-1])
    return [_stored(len(values), end, part) for (values, _), part, end in zip(plans, parts, ends, strict=True)]


def decode(parts: Sequence[Coded], tables: FrequencyTables) -> list[Symbols]:
    """The symbols of each sequence.

    Raises:
        Damage: The bytes are not those of sequences with these tables.
    """
    sequences = [_read(part) for part in parts]
    frequencies = tables.frequencies
    lookup = _Lookup(frequencies)
    decoded: list[Symbols] = []
    for group in _groups([one.lanes for one in sequences]):
        if sum(one.lanes for one in sequences[group]) < _FEW_LANES:
            decoded += [_decode_one(one, lookup) for one in sequences[group]]
        else:
            decoded += _decode_group(sequences[group], lookup)
    return decoded


def _decode_one(sequence: _Sequence, lookup: _Lookup) -> Symbols:
    """A single sequence, symbol by symbol."""
    steps, mask, lanes = lookup.steps.data, TOTAL - 1, sequence.lanes
    states, words = sequence.states.tolist(), [*sequence.words.tolist(), 0]
    last = len(words) - 1
    used = 0
    slots = (sequence.tables.astype(np.int64) << PRECISION).tolist()
    for index, table in enumerate(slots):
        lane = index % lanes
        state = states[lane]
        slot = table + (state & mask)
        slots[index] = slot
        step = steps[slot]
        state = (step >> 16) * (state >> PRECISION) + (step & 0xFFFF)
        if state < _START:
            state = state << 16 | words[min(used, last)]
            used += 1
        states[lane] = state
    if used != last or any(state != _START for state in states):
        raise sequence.reader.damage(_DOES_NOT_END)
    return lookup.symbols.take(np.array(slots, np.int64))


def _read(part: Coded) -> _Sequence:
    reader, count = part.reader, len(part.tables)
    if not count:
        return _Sequence(part.tables, 1, np.full(1, _START, np.uint32), np.zeros(0, np.uint16), reader)
    lanes = reader.varint(min(MAX_LANES, count))
    if not lanes:
        raise reader.damage("a sequence without lanes")
    states = np.frombuffer(reader.take(4 * lanes), "<u4").astype(np.uint32)
    if states.min() < _START:
        raise reader.damage(f"a state below {_START}")
    words = np.frombuffer(reader.take(2 * reader.varint(count)), "<u2").astype(np.uint16)
    return _Sequence(part.tables, lanes, states, words, reader)


class _Lookup:
    """By table and slot, the symbol, and packed into one number its frequency and the slot's place in it."""

    def __init__(self, frequencies: npt.NDArray[np.uint32]) -> None:
        count = len(frequencies)
        symbols = np.repeat(np.tile(np.arange(SYMBOLS, dtype=np.uint8), count), frequencies.ravel())
        below = (np.cumsum(frequencies, axis=1, dtype=np.uint32) - frequencies).ravel()
        entry = (np.arange(count, dtype=np.uint32).repeat(TOTAL) * np.uint32(SYMBOLS)) + symbols
        place = np.tile(np.arange(TOTAL, dtype=np.uint32), count) - below.take(entry)
        self.symbols = symbols
        self.steps = frequencies.ravel().take(entry) << _WORD | place


def _decode_group(sequences: Sequence[_Sequence], lookup: _Lookup) -> list[Symbols]:
    numbers = _in_rounds([(one.tables, one.lanes) for one in sequences], np.uint16)
    lanes = [one.lanes for one in sequences]
    sequence_of = np.repeat(np.arange(len(sequences)), lanes)
    states = np.concatenate([one.states for one in sequences])
    words = np.concatenate([*(one.words for one in sequences), np.zeros(1, np.uint16)]).astype(np.uint32)
    ends = np.cumsum([len(one.words) for one in sequences])
    following = ends - [len(one.words) for one in sequences]
    slots = numbers.astype(np.int64)
    slots <<= PRECISION
    counting = np.arange(len(states))
    for slot in slots:
        np.bitwise_or(slot, states & _MASK, out=slot)
        step = lookup.steps.take(slot, mode="wrap")  # the bounds hold by construction, and clipping takes longer
        states >>= _SHIFT
        states *= step >> _WORD
        states += step & _LOW
        empty = (states < _START).nonzero()[0]
        if not len(empty):
            continue
        if len(sequences) == 1:
            fresh = words[following[0] : following[0] + len(empty)]
            following[0] += len(empty)
            if following[0] > ends[0]:
                raise sequences[0].reader.damage(_DOES_NOT_END)
        else:
            owner = sequence_of.take(empty)
            taken = np.bincount(owner, minlength=len(sequences))
            position = (following - (taken.cumsum() - taken)).take(owner)
            position += counting[: len(empty)]
            following += taken
            fresh = words.take(position, mode="clip")
        states[empty] = states.take(empty) << _WORD | fresh
    symbols = lookup.symbols.take(slots)
    decoded = []
    start = 0
    for index, one in enumerate(sequences):
        columns = slice(start, start + one.lanes)
        start += one.lanes
        if following[index] != ends[index] or (states[columns] != _START).any():
            raise one.reader.damage(_DOES_NOT_END)
        rounds = symbols[: one.rounds, columns]
        decoded.append(np.ascontiguousarray(rounds).reshape(-1)[: len(one.tables)])
    return decoded
