"""The outermost layers of an ONNX file, read without building any object.

Protobuf gives up a whole message at once and without saying why. These few fields tell a file that was cut short from
one that never was a model, and count nodes before memory is spent on them.
https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

_VARINT, _I64, _LENGTH, _I32 = 0, 1, 2, 5
_MODEL_FIELDS = {
    1: _VARINT,  # ir_version
    2: _LENGTH,  # producer_name
    3: _LENGTH,  # producer_version
    4: _LENGTH,  # domain
    5: _VARINT,  # model_version
    6: _LENGTH,  # doc_string
    7: _LENGTH,  # graph
    8: _LENGTH,  # opset_import
    14: _LENGTH,  # metadata_props
    20: _LENGTH,  # training_info
    25: _LENGTH,  # functions
    26: _LENGTH,  # configuration
}
_GRAPH = 7
_NODE, _INITIALIZER, _SPARSE_INITIALIZER = 1, 5, 15


class NotWireFormat(Exception):
    """The bytes are no ONNX message."""


class CutShort(Exception):
    """The bytes begin like an ONNX message and end before it does."""


class Outline(NamedTuple):
    """What the main graph holds directly.

    Attributes:
        has_graph: Whether there is a graph at all.
        nodes: Nodes of the main graph, subgraphs not included; counting stops just above `stop_at`.
        initializers: Likewise its stored tensors.
    """

    has_graph: bool
    nodes: int
    initializers: int


def outline(data: bytes, *, stop_at: int) -> Outline:
    """Read the top level of a model and of its graph.

    Raises:
        CutShort: a field reaches beyond the end of the bytes.
        NotWireFormat: a field is none of `ModelProto`'s.
    """
    has_graph, nodes, initializers = False, 0, 0
    for number, start, end in _fields(data, 0, len(data), _MODEL_FIELDS):
        if number != _GRAPH:
            continue
        has_graph = True
        try:
            for inner, _, _ in _fields(data, start, end, None):
                nodes += inner == _NODE
                initializers += inner in (_INITIALIZER, _SPARSE_INITIALIZER)
                if max(nodes, initializers) > stop_at:
                    return Outline(has_graph, nodes, initializers)
        except CutShort:
            # The graph is all there by its own length, so what overflows inside it is nonsense.
            raise NotWireFormat from None
    return Outline(has_graph, nodes, initializers)


def count_parts(data: bytes, *, stop_at: int) -> int:
    """Fields of all messages of a model, however deep; counting stops just above `stop_at`.

    An empty message takes two bytes in the file and a hundred in memory, so a file of a moderate size can hold more of
    them than a machine has memory for.

    Raises:
        NotWireFormat: a message is cut short or none.
    """
    import onnx  # noqa: PLC0415 - telling formats apart must not wait for it

    total = 0
    pending: list[tuple[Any, int, int]] = [(onnx.ModelProto.DESCRIPTOR, 0, len(data))]
    try:
        while pending and total <= stop_at:
            kind, start, end = pending.pop()
            inner = _messages(kind)
            for number, first, last in _fields(data, start, end, None):
                total += 1
                if number in inner and last > first:
                    pending.append((inner[number], first, last))
                if total > stop_at:
                    break
    except CutShort:
        raise NotWireFormat from None
    return total


@cache
def _messages(kind: Any) -> dict[int, Any]:  # noqa: ANN401 - protobuf has no public name for descriptors
    return {field.number: field.message_type for field in kind.fields if field.message_type is not None}


def _fields(data: bytes, position: int, end: int, known: Mapping[int, int] | None) -> Iterator[tuple[int, int, int]]:
    """Number, first byte and end of every field between two offsets; those of other kinds than `known` are errors."""
    while position < end:
        tag, position = _varint(data, position, end)
        number, kind = tag >> 3, tag & 7
        if known is not None and known.get(number) != kind:
            raise NotWireFormat
        start = position
        if kind == _VARINT:
            _, position = _varint(data, position, end)
        elif kind == _LENGTH:
            length, start = _varint(data, position, end)
            position = start + length
        elif kind in (_I64, _I32):
            position += 8 if kind == _I64 else 4
        else:
            raise NotWireFormat
        if position > end:
            raise CutShort
        yield number, start, position


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        if position >= end:
            raise CutShort
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
        shift += 7
        if shift > 63:
            raise NotWireFormat
