"""The bytes of an ONNX file with and without the data of its tensors.

Only the outlines of the protobuf message are read, and what is put together again are the very bytes that were taken
apart, whatever wrote them. https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from compression.coding.damage import Damage

SMALLEST = 64
"""Tensors of fewer bytes stay in the graph."""
_MAX_DEPTH = 48
_DIMS, _DATA_TYPE, _NAME, _RAW_DATA = 1, 2, 8, 9
# By message, the fields that may hold tensors and what they are.
_PARTS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}


class Hole(NamedTuple):
    """Where a tensor's data belongs.

    Attributes:
        name: Of the tensor; empty in attributes.
        data_type: Number of its element type in `TensorProto.DataType`.
        dims: Its shape.
        position: Where the data begins in the graph without data.
        size: Bytes of the data.
    """

    name: str
    data_type: int
    dims: tuple[int, ...]
    position: int
    size: int


def find_holes(graph: bytes | memoryview, *, cut: bool) -> list[Hole]:
    """Every tensor of at least `SMALLEST` bytes that is stored as raw data, in the order of the file.

    Args:
        graph: An ONNX file, or what `without_data` made of one.
        cut: Whether the data is taken out already; positions are those without data in either case.

    Raises:
        Damage: These are no protobuf messages.
    """
    walk = _Walk(graph, cut=cut)
    walk.message("model", walk.length if not cut else None, 0)
    return walk.holes


def without_data(model: bytes, holes: Sequence[Hole]) -> tuple[bytes, list[memoryview]]:
    """The file without the data of `holes`, and that data."""
    view = memoryview(model)
    kept, data = [], []
    position = taken = 0
    for hole in holes:
        start = hole.position + taken
        kept.append(view[position:start])
        data.append(view[start : start + hole.size])
        position = start + hole.size
        taken += hole.size
    kept.append(view[position:])
    return b"".join(kept), data


def with_data(graph: bytes, holes: Sequence[Hole], data: Sequence[bytes | memoryview]) -> bytearray:
    """The other way round: the file again."""
    out = bytearray(len(graph) + sum(hole.size for hole in holes))
    view, source = memoryview(out), memoryview(graph)
    position = at = 0
    for hole, part in zip(holes, data, strict=True):
        kept = hole.position - position
        view[at : at + kept] = source[position : hole.position]
        view[at + kept : at + kept + hole.size] = part
        at += kept + hole.size
        position = hole.position
    view[at:] = source[position:]
    return out


class _Walk:
    """Reads messages one inside the other.

    Lengths of messages count the data that is taken out; `_virtual` is the position that they refer to.
    """

    def __init__(self, data: bytes | memoryview, *, cut: bool) -> None:
        self._data = data
        self._cut = cut
        self.length = len(data)
        self._position = 0
        self._taken = 0
        self._value = 0
        self.holes: list[Hole] = []

    @property
    def _virtual(self) -> int:
        return self._position + self._taken if self._cut else self._position

    def message(self, kind: str, end: int | None, depth: int) -> None:
        """Read a message up to the virtual position `end`; the outermost one ends with the bytes."""
        if depth > _MAX_DEPTH:
            raise self._damage("messages nest too deep")
        parts = _PARTS.get(kind, {})
        while self._virtual < end if end is not None else self._position < self.length:
            number, size = self._field()
            if size is None:
                continue
            inner = parts.get(number)
            # What is shorter than a hole has none inside.
            if inner == "tensor" and size >= SMALLEST:
                self._tensor(self._virtual + size)
            elif inner is not None and size >= SMALLEST:
                self.message(inner, self._virtual + size, depth + 1)
            else:
                self._skip(size)
        if end is not None and self._virtual != end:
            raise self._damage("a message does not end where it says")

    def _tensor(self, end: int) -> None:
        name, data_type, dims = "", 0, list[int]()
        found: list[tuple[int, int]] = []
        while self._virtual < end:
            number, size = self._field()
            if size is None:
                if number == _DIMS:
                    dims.append(self._value)
                elif number == _DATA_TYPE:
                    data_type = self._value
            elif number == _RAW_DATA and size >= SMALLEST:
                found.append((self._position - (0 if self._cut else self._taken), size))
                self._taken += size
                self._skip(0 if self._cut else size)
            else:
                start = self._position
                self._skip(size)
                if number == _NAME:
                    name = bytes(self._data[start : self._position]).decode("utf-8", "replace")
                elif number == _DIMS:
                    dims += self._packed(start)
        if self._virtual != end:
            raise self._damage("a tensor does not end where it says")
        self.holes += [Hole(name, data_type, tuple(dims), position, size) for position, size in found]

    def _field(self) -> tuple[int, int | None]:
        """The number of the next field, and its size where it has one; else its value is read."""
        tag = self._varint()
        wire, number = tag & 7, tag >> 3
        if wire == 2:
            return number, self._varint()
        if wire == 0:
            self._value = self._varint()
            return number, None
        if wire not in (1, 5):
            raise self._damage("a field of an unknown kind")
        self._skip(8 if wire == 1 else 4)
        return 0, None

    def _packed(self, start: int) -> list[int]:
        end, self._position = self._position, start
        values = []
        while self._position < end:
            values.append(self._varint())
        return values

    def _skip(self, count: int) -> None:
        self._position += count
        if self._position > self.length:
            raise self._damage("a field reaches beyond the end")

    def _varint(self) -> int:
        result = shift = 0
        while True:
            if self._position >= self.length:
                raise self._damage("it ends within a field")
            byte = self._data[self._position]
            self._position += 1
            result |= (byte & 0x7F) << shift
            if byte < 0x80:
                return result
            shift += 7
            if shift > 63:
                raise self._damage("a number of more than 64 bits")

    def _damage(self, what: str) -> Damage:
        return Damage("graph", self._position, what)
