"""The file beside a graph that holds its large tensors, written one tensor at a time."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import onnx

from compression.graph import skeleton, stored
from compression.graph.tensors import is_external, set_place, stored_bytes

Array = npt.NDArray[Any]

# ONNX advises offsets that are multiples of a page, so that tensors can be mapped.
_PAGE, _PAGED_FROM, _LINE = 4096, 1 << 16, 64


class DataFile:
    """A file that takes the values of tensors, in the order in which they come.

    Args:
        path: Of a new file; a model's graph is to lie beside it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._file = self.path.open("wb", buffering=0)
        self._end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def put(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        """Write a tensor's values; the tensor whose place is in this file."""
        if is_external(tensor):
            parts: Iterable[bytes | memoryview] = stored.pieces(tensor)
        else:
            parts = [tensor.raw_data if tensor.HasField("raw_data") else stored.values(tensor).tobytes()]
        return self._put(tensor.name, tensor.data_type, tensor.dims, parts)

    def room(self, size: int) -> Array:
        """So many bytes of the file, mapped into memory, for `put_array` to find them filled."""
        self._write(bytes(-self._end % _PAGE))
        mapped = np.memmap(self.path, np.uint8, "r+", offset=self._end, shape=(size,))
        self._end += size
        self._file.seek(self._end)
        return mapped

    def put_array(self, name: str, data_type: int, dims: Sequence[int], values: Array) -> onnx.TensorProto:
        """Write values as they lie in memory; the tensor whose place is in this file.

        Args:
            name: Of the tensor.
            data_type: ONNX's element type.
            dims: Its shape.
            values: Contiguous; of types of less than a byte, the bytes that they are packed in. Those of `room` are in
                the file already.
        """
        if isinstance(values, np.memmap):
            tensor = onnx.TensorProto(name=name, data_type=data_type, dims=dims)
            set_place(tensor, self.path, values.offset)
            return tensor
        return self._put(name, data_type, dims, [values.reshape(-1).view(np.uint8).data])

    def _put(
        self, name: str, data_type: int, dims: Sequence[int], parts: Iterable[bytes | memoryview]
    ) -> onnx.TensorProto:
        outside = onnx.TensorProto(name=name, data_type=data_type, dims=dims)
        step = _PAGE if stored_bytes(outside) >= _PAGED_FROM else _LINE
        self._write(bytes(-self._end % step))
        set_place(outside, self.path, self._end)
        start = self._end
        for part in parts:
            self._write(part)
        # Has the system begin to write to the disk, which it would else put off until there is much of it.
        os.posix_fadvise(self._file.fileno(), start, self._end - start, os.POSIX_FADV_DONTNEED)
        return outside

    def _write(self, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        self._end += len(rest)
        while rest:
            rest = rest[self._file.write(rest) :]

    def take_in(self, model: onnx.ModelProto) -> None:
        """Write all values that are not small and not in this file yet, in place."""
        for tensor in model.graph.initializer:
            there = is_external(tensor) and stored.place(tensor)[0] == self.path
            if not there and not skeleton.is_small(tensor):
                tensor.CopyFrom(self.put(tensor))


def graph_beside(model: onnx.ModelProto, data: Path) -> onnx.ModelProto:
    """A copy of a model whose large values all lie in one file, as a graph that is to lie beside `data`."""
    graph = onnx.ModelProto()
    graph.CopyFrom(model)
    for tensor in graph.graph.initializer:
        if is_external(tensor):
            set_place(tensor, data.name, stored.place(tensor)[1])
    return graph
