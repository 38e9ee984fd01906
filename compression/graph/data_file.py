"""The file beside a graph that holds its large tensors, written one tensor at a time."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

import onnx

from compression.graph import skeleton, stored
from compression.graph.tensors import is_external, set_place, stored_bytes

# ONNX advises offsets that are multiples of a page, so that tensors can be mapped.
_PAGE, _PAGED_FROM, _LINE = 4096, 1 << 16, 64


class DataFile:
    """A file that takes the values of tensors, in the order in which they come.

    Args:
        path: Of a new file; a model's graph is to lie beside it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._file = self.path.open("wb")
        self._end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def put(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        """Write a tensor's values; the tensor whose place is in this file."""
        outside = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        if is_external(tensor):
            size = stored_bytes(tensor)
            parts = stored.pieces(tensor)
        else:
            data = tensor.raw_data if tensor.HasField("raw_data") else stored.values(tensor).tobytes()
            size, parts = len(data), iter((data,))
        step = _PAGE if size >= _PAGED_FROM else _LINE
        self._file.write(bytes(-self._end % step))
        self._end += -self._end % step
        set_place(outside, self.path, self._end)
        for part in parts:
            self._file.write(part)
            self._end += len(part)
        return outside

    def take_in(self, model: onnx.ModelProto) -> None:
        """Write all values that are not small and not in this file yet, in place."""
        for tensor in model.graph.initializer:
            there = is_external(tensor) and stored.place(tensor)[0] == self.path
            if not there and not skeleton.is_small(tensor):
                tensor.CopyFrom(self.put(tensor))
        self._file.flush()


def graph_beside(model: onnx.ModelProto, data: Path) -> onnx.ModelProto:
    """A copy of a model whose large values all lie in one file, as a graph that is to lie beside `data`."""
    graph = onnx.ModelProto()
    graph.CopyFrom(model)
    for tensor in graph.graph.initializer:
        if is_external(tensor):
            set_place(tensor, data.name, stored.place(tensor)[1])
    return graph
