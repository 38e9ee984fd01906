"""The `.levity` file: an ONNX file, byte for byte, in fewer bytes.

Numbers are little-endian. `varint` is an unsigned number of seven bits a byte, low ones first, the highest bit of a
byte saying that another one follows.

    file     := head graph tables stream*

    head     := "LEVITY"  version (1 byte, now 1)  coder (1 byte: 0 rans, 1 huffman)
                SHA-256 of the ONNX file (32 bytes)
                bytes of the ONNX file (varint)
                bytes of `graph` unpacked (varint)  bytes of `graph` (varint)
                bytes of `tables` (varint)
                number of streams (varint)  bytes of each stream (varint)
                CRC-32 of all before (4 bytes)
    graph    := the ONNX file without the data of its tensors, deflated (RFC 1951) after the preset dictionary of
                `compression.coding.dictionary`;  CRC-32 of these bytes (4 bytes)
    tables   := what `compression.coding.tables` writes;  CRC-32 of these bytes (4 bytes)
    stream   := a tensor, see below;  CRC-32 of these bytes (4 bytes)

Sizes in the head do not count the checksums. The streams belong to the tensors whose `raw_data` has 64 bytes or more,
in the order of the ONNX file (`compression.coding.splice`), so a tensor's place in the file follows from the head, and
it is read with the tables and its own bytes alone.

    stream   := form (1 byte)  codebook?  (places | scales)?  plane+  sequence sequence  low bits  raw planes
    form     := bits from the lowest: sparse, transposed, codebook, rows, columns, signs, lines; 128: the rest is data
    codebook := number of values - 1 (1 byte) of each book  values of all books as the tensor stores them
                one book if codebook; one a row if codebook and lines, one a column if lines
    places   := most frequent symbol (1 byte), or element where there is neither a codebook nor one byte an element
                lag (varint)  increments (10 bytes, two a byte, the lower half first) if lag > 0
                table of row levels (varint) if rows   table of column levels (varint) if columns
                contexts (1 byte)  bias (varint)
                for each context its parameter (1 byte) and, unless that is 255, its number of gap symbols (varint)
                number of weights (varint)
                number of weights in each of 5 contexts of signs (varint each) if signs
    scales   := bias (varint: 2 * bias from 0 on, -2 * bias - 1 below), the same two tables; if rows or columns
    plane    := 0 symbol | 1 | 2 first table (varint): a constant, raw bytes, coded symbols

One plane where there is a codebook or an element is one byte, else one for each byte of an element, see
`compression.coding.elements`. The first sequence holds the levels of rows and columns; the second the gaps of each
context (`compression.coding.sparse`) and the symbols of coded planes, ordered by context where there are contexts of
signs. Tables of a sequence's symbols: those named; for gaps the geometric one of the context's parameter; for scales
the first table + class (`compression.coding.scales`); for signs the first table + context. The low bits of all gaps
follow, high bits first, filled up with zeros; then the raw planes.

A matrix has the first axis of a tensor as rows and all others as columns; it is one row where there is one axis.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from compression.coding import coders, splice
from compression.coding.bits import ByteReader, varint
from compression.coding.coders import Coder, Tables
from compression.coding.damage import Damage
from compression.coding.dictionary import DICTIONARY
from compression.coding.tables import read_tables, write_tables
from compression.errors import ModelRejected
from compression.graph.architectures.formats import LEVITY_MAGIC as MAGIC

VERSION = 1
_CHECK = 4
_MAX_RATIO_OF_GRAPH = 1100  # deflate's own limit is 1032


class Head(NamedTuple):
    """What a file says of itself.

    Attributes:
        coder: That its sequences need.
        sha256: Of the ONNX file.
        size: Bytes of the ONNX file.
        graph_size: Bytes of the graph unpacked.
        graph, tables: Start and end of these parts in the file.
        streams: Likewise of each stream.
    """

    coder: Coder
    sha256: bytes
    size: int
    graph_size: int
    graph: tuple[int, int]
    tables: tuple[int, int]
    streams: list[tuple[int, int]]


def assemble(model: bytes, graph: bytes, rows: Sequence[Any], streams: Sequence[bytes], coder: Coder) -> bytes:
    """The file.

    Args:
        model: The ONNX file.
        graph: The same without data.
        rows: Of the tables.
        streams: Of the tensors.
        coder: That wrote them.
    """
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, zlib.Z_DEFAULT_STRATEGY, DICTIONARY)
    packed = packer.compress(graph) + packer.flush()
    tables = write_tables(rows)
    head = b"".join(
        (
            MAGIC,
            bytes([VERSION, coder.number]),
            hashlib.sha256(model).digest(),
            *map(varint, (len(model), len(graph), len(packed), len(tables), len(streams))),
            *(varint(len(stream)) for stream in streams),
        )
    )
    return b"".join(part + zlib.crc32(part).to_bytes(_CHECK, "little") for part in (head, packed, tables, *streams))


def read_head(data: memoryview, max_bytes: int) -> Head:
    """Check the head of a file.

    Args:
        data: The file.
        max_bytes: Bytes that the ONNX file may have.

    Raises:
        ModelRejected: `levity_version`, `model_too_large`.
        Damage: `levity_truncated`, `levity_corrupted`.
    """
    if bytes(data[: len(MAGIC)]) != MAGIC:
        raise ModelRejected("not_levity", "The bytes are not a .levity file.")
    return _read_head(ByteReader(data, "header", 0, short="levity_truncated"), data, max_bytes)


def _read_head(reader: ByteReader, data: memoryview, max_bytes: int) -> Head:
    reader.take(len(MAGIC))
    version = reader.byte()
    if version != VERSION:
        raise ModelRejected(
            "levity_version",
            f"The .levity file has version {version}, and this decoder knows version {VERSION}: decode it with the "
            "release that wrote it, or a later one.",
        )
    number = reader.byte()
    sha256 = bytes(reader.take(32))
    size, graph_size, packed_size, tables_size, count = (reader.varint() for _ in range(5))
    # Each stream takes at least its length and its checksum, so that a few bytes cannot claim many.
    if count * (_CHECK + 1) > len(data):
        raise _truncated("header", len(data))
    sizes = [packed_size, tables_size, *(reader.varint() for _ in range(count))]
    end = len(data) - reader.rest
    if int.from_bytes(reader.take(_CHECK), "little") != zlib.crc32(data[:end]):
        raise reader.damage("its checksum does not match")
    if number not in coders.BY_NUMBER:
        raise reader.damage(f"the unknown coder {number}")
    if size > max_bytes:
        raise ModelRejected("model_too_large", f"The model unpacks to {size} bytes; at most {max_bytes} are accepted.")
    if graph_size > size or graph_size > _MAX_RATIO_OF_GRAPH * packed_size:
        raise reader.damage(f"a graph of {graph_size} bytes")
    parts = []
    position = end + _CHECK
    for index, part in enumerate(sizes):
        parts.append((position, position + part))
        position += part + _CHECK
        if position > len(data):
            raise _truncated(_place(index), len(data))
    if position < len(data):
        raise Damage("end", position, f"{len(data) - position} bytes too many")
    return Head(coders.BY_NUMBER[number], sha256, size, graph_size, parts[0], parts[1], parts[2:])


def checked(data: memoryview, span: tuple[int, int], place: str) -> memoryview:
    """A part of the file whose checksum is right.

    Raises:
        Damage: It is not.
    """
    start, end = span
    if int.from_bytes(data[end : end + _CHECK], "little") != zlib.crc32(data[start:end]):
        raise Damage(place, start, "its checksum does not match")
    return data[start:end]


def read_graph(data: memoryview, head: Head) -> tuple[bytes, list[splice.Hole]]:
    """The ONNX file without data, and the tensors that belong into it."""
    packed = checked(data, head.graph, "graph")
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS, DICTIONARY)
    try:
        graph = unpacker.decompress(packed, head.graph_size + 1)
    except zlib.error:
        graph = b""
    if len(graph) != head.graph_size or not unpacker.eof or unpacker.unused_data:
        raise Damage("graph", head.graph[0], "it does not unpack to what the header says")
    holes = splice.find_holes(graph, cut=True)
    if len(holes) != len(head.streams) or len(graph) + sum(hole.size for hole in holes) != head.size:
        raise Damage("graph", head.graph[0], "its tensors are not those of the header")
    return graph, holes


def read_coded_tables(data: memoryview, head: Head) -> Tables:
    """The file's tables."""
    start = head.tables[0]
    return head.coder.from_rows(read_tables(checked(data, head.tables, "tables"), start, head.coder.highest))


def stream_reader(data: memoryview, head: Head, index: int) -> ByteReader:
    """Reads a stream, from its beginning."""
    place = _place(index + 2)
    return ByteReader(checked(data, head.streams[index], place), place, head.streams[index][0])


def _place(index: int) -> str:
    return ("graph", "tables")[index] if index < 2 else f"stream {index - 2}"


def _truncated(place: str, size: int) -> Damage:
    return Damage(place, size, "the file ends here and should go on", code="levity_truncated")
