"""The values of stored tensors, whole or piece by piece, wherever their bytes lie."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from compression.graph.skeleton import without_weights
from compression.graph.tensors import element_count, is_external, stored_bytes

Array = npt.NDArray[Any]

_AHEAD = 32 << 20


class Stored:
    """A stored tensor whose elements are read as they are asked for.

    Args:
        tensor: Of an element type of at least one byte. Where its data lies outside the model, the place is a file's
            absolute path, as `compression.graph.load` leaves it.
    """

    def __init__(self, tensor: onnx.TensorProto) -> None:
        self.shape = tuple(int(length) for length in tensor.dims)
        self.dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        self.size = element_count(tensor)
        self._descriptor: int | None = None
        self._place: tuple[Path, int] | None = place(tensor) if is_external(tensor) else None
        self._values: Array = numpy_helper.to_array(tensor).reshape(-1) if self._place is None else np.empty(0)

    def part(self, start: int, stop: int) -> Array:
        """Elements `start` to `stop` in row-major order, (stop - start,), not to be written to."""
        if self._place is None:
            return self._values[start:stop]
        path, offset = self._place
        if self._descriptor is None:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self._descriptor)
        values = np.empty(stop - start, self.dtype)
        rest = values.view(np.uint8).data
        at = offset + start * self.dtype.itemsize
        # What comes next is read from the disk while this is worked on.
        os.posix_fadvise(self._descriptor, at + len(rest), _AHEAD, os.POSIX_FADV_WILLNEED)
        while rest:
            count = os.preadv(self._descriptor, [rest], at)
            if not count:
                msg = f"'{path.name}' became shorter while it was in use"
                raise OSError(msg)
            at += count
            rest = rest[count:]
        return values

    def whole(self) -> Array:
        """All elements in their shape, not to be written to."""
        return self.part(0, self.size).reshape(self.shape)


def place(tensor: onnx.TensorProto) -> tuple[Path, int]:
    """File and offset of a tensor whose data lies outside the model."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    return Path(entries["location"]), int(entries.get("offset", "0"))


def held(tensor: onnx.TensorProto) -> onnx.TensorProto:
    """The tensor with its bytes in it: itself, or a copy where they lie in a file."""
    if not is_external(tensor):
        return tensor
    copy = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    copy.raw_data = b"".join(pieces(tensor, stored_bytes(tensor)))
    return copy


def values(tensor: onnx.TensorProto) -> Array:
    """All elements, wherever they lie."""
    return numpy_helper.to_array(held(tensor))


def pieces(tensor: onnx.TensorProto, size: int = 1 << 22) -> Iterator[bytes]:
    """The bytes of a tensor that lies in a file, `size` at a time."""
    path, offset = place(tensor)
    left = stored_bytes(tensor)
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        while left:
            piece = file.read(min(size, left))
            if not piece:
                msg = f"'{path.name}' became shorter while it was in use"
                raise OSError(msg)
            left -= len(piece)
            yield piece


def hold_all(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model with all values in memory: the model itself, or a copy."""
    if not any(is_external(tensor) for tensor in model.graph.initializer):
        return model
    copy = without_weights(model)
    for tensor in model.graph.initializer:
        copy.graph.initializer.append(held(tensor))
    return copy
