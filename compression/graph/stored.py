"""The values of stored tensors, whole or piece by piece, wherever their bytes lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from compression.graph.tensors import element_count, is_external

Array = npt.NDArray[Any]


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
        self._place: tuple[Path, int] | None = place(tensor) if is_external(tensor) else None
        self._values: Array = numpy_helper.to_array(tensor).reshape(-1) if self._place is None else np.empty(0)

    def part(self, start: int, stop: int) -> Array:
        """Elements `start` to `stop` in row-major order, (stop - start,), not to be written to."""
        if self._place is None:
            return self._values[start:stop]
        path, offset = self._place
        size = self.dtype.itemsize
        values = np.fromfile(path, self.dtype, stop - start, offset=offset + start * size)
        if len(values) != stop - start:
            msg = f"'{path.name}' became shorter while it was in use"
            raise OSError(msg)
        return values

    def whole(self) -> Array:
        """All elements in their shape, not to be written to."""
        return self.part(0, self.size).reshape(self.shape)


def place(tensor: onnx.TensorProto) -> tuple[Path, int]:
    """File and offset of a tensor whose data lies outside the model."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    return Path(entries["location"]), int(entries.get("offset", "0"))
