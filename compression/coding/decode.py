"""From a `.levity` file to the ONNX file that it was made of."""

from __future__ import annotations

import hashlib
from pathlib import Path

from compression.coding import container, splice
from compression.coding.damage import Damage
from compression.coding.read import read
from compression.graph.architectures.spec import MODEL
from compression.graph.limits import DEFAULT_LIMITS, Limits


def decode(data: bytes | memoryview, *, max_bytes: int = DEFAULT_LIMITS.max_bytes) -> bytes:
    """The ONNX file, byte for byte.

    Args:
        data: A `.levity` file.
        max_bytes: Bytes that the ONNX file may have; more are refused before they are allocated.

    Raises:
        ModelRejected: `not_levity`, `levity_version`, `levity_truncated`, `levity_corrupted`, each naming the place, or
            `model_too_large`.
    """
    file = File(data, max_bytes=max_bytes)
    parts = file.read(range(len(file.tensors)))
    model = bytes(splice.with_data(file.graph, file.tensors, parts))
    if hashlib.sha256(model).digest() != file.sha256:
        raise Damage("header", 8, "what is decoded does not have the announced SHA-256")
    return model


def decode_file(path: Path, out: Path, *, limits: Limits = DEFAULT_LIMITS) -> Path:
    """Decode a `.levity` file into `out / "model.onnx"`, and give that path; raises what `decode` raises."""
    model = decode(path.read_bytes(), max_bytes=limits.max_bytes)
    out.mkdir(parents=True, exist_ok=True)
    graph = out / MODEL
    graph.write_bytes(model)
    return graph


class File:
    """A `.levity` file whose tensors are read one by one.

    Args:
        data: The file.
        max_bytes: As in `decode`.

    Attributes:
        graph: The ONNX file without the data of `tensors`.
        tensors: Name, type, shape and size of each coded tensor, in the order of the streams.
        sha256: Of the ONNX file.

    Raises:
        ModelRejected: As `decode`.
    """

    def __init__(self, data: bytes | memoryview, *, max_bytes: int = DEFAULT_LIMITS.max_bytes) -> None:
        self._data = memoryview(data)
        self._head = container.read_head(self._data, max_bytes)
        self.sha256 = self._head.sha256
        self.graph, self.tensors = container.read_graph(self._data, self._head)
        self._tables = container.read_coded_tables(self._data, self._head)

    def read(self, which: range | list[int]) -> list[bytes]:
        """The data of some tensors, as their `raw_data` has it. Only their own streams are looked at."""
        readers = [container.stream_reader(self._data, self._head, index) for index in which]
        return read([self.tensors[index] for index in which], readers, self._tables, self._head.coder)
