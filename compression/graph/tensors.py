"""What a stored tensor declares against what is there."""

from __future__ import annotations

import math
import os
import stat
from pathlib import Path
from typing import BinaryIO

import onnx
from onnx import TensorProto, helper

from compression.errors import ModelRejected

_SUB_BYTE_BITS: dict[int, int] = {
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
    TensorProto.FLOAT4E2M1: 4,
    TensorProto.INT2: 2,
    TensorProto.UINT2: 2,
}


def dtype_name(onnx_type: int) -> str:
    """NumPy's name of an ONNX element type (`bfloat16` and the like as in ml_dtypes); `string` for text."""
    if onnx_type == TensorProto.STRING:
        return "string"
    return str(helper.tensor_dtype_to_np_dtype(onnx_type).name)


def element_count(tensor: onnx.TensorProto) -> int:
    """Product of the dimensions, as a Python integer that cannot overflow."""
    return math.prod(tensor.dims)


def stored_bytes(tensor: onnx.TensorProto) -> int:
    """Bytes that the elements take in packed form, by the declared type and dimensions; 0 for text."""
    if tensor.data_type == TensorProto.STRING:
        return 0
    bits = _SUB_BYTE_BITS.get(tensor.data_type) or helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize * 8
    return (element_count(tensor) * bits + 7) // 8


def is_external(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def check_declared(tensor: onnx.TensorProto) -> None:
    """Reject a tensor whose element type, dimensions and data do not agree.

    A few bytes can declare many gigabytes: everything here is arithmetic, nothing is allocated.

    Raises:
        ModelRejected: `invalid_model`.
    """
    name = tensor.name or "(in an attribute)"
    if tensor.data_type not in TensorProto.DataType.values() or tensor.data_type == TensorProto.UNDEFINED:
        raise ModelRejected("invalid_model", f"Tensor '{name}' has the unknown element type {tensor.data_type}.")
    if any(length < 0 for length in tensor.dims):
        raise ModelRejected("invalid_model", f"Tensor '{name}' has a negative dimension: {list(tensor.dims)}.")
    if tensor.HasField("segment"):
        raise ModelRejected("invalid_model", f"Tensor '{name}' comes in segments, which nothing reads.")
    if is_external(tensor):
        return
    count = element_count(tensor)
    if tensor.data_type == TensorProto.STRING:
        agrees = len(tensor.string_data) == count
    elif tensor.HasField("raw_data"):
        agrees = len(tensor.raw_data) == stored_bytes(tensor)
    else:
        agrees = _typed_entries(tensor) == _expected_entries(tensor, count)
    if not agrees:
        raise ModelRejected(
            "invalid_model",
            f"Tensor '{name}' declares {list(tensor.dims)} elements of {dtype_name(tensor.data_type)}, "
            "and the data held for it has another length.",
        )


def _typed_entries(tensor: onnx.TensorProto) -> int:
    return len(getattr(tensor, helper.tensor_dtype_to_field(tensor.data_type)))


def _expected_entries(tensor: onnx.TensorProto, count: int) -> int:
    if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
        return 2 * count
    if tensor.data_type in _SUB_BYTE_BITS:
        return stored_bytes(tensor)
    return count


def is_pinned(tensor: onnx.TensorProto) -> bool:
    """Whether the bytes lie in a file that an absolute path names, which uploads never do."""
    return any(entry.key == "location" and entry.value.startswith("/") for entry in tensor.external_data)


def set_place(tensor: onnx.TensorProto, location: Path | str, offset: int) -> None:
    """Say that a tensor's bytes lie in a file from `offset` on."""
    entries = {"location": str(location), "offset": str(offset), "length": str(stored_bytes(tensor))}
    tensor.ClearField("raw_data")
    del tensor.external_data[:]
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    tensor.data_location = TensorProto.EXTERNAL


class ExternalData:
    """The flat folder beside a model, from which its external tensors are read.

    Only plain files directly in the folder count: no paths, no links of either kind, since ONNX Runtime and others
    have followed both out of the folder (CVE-2022-25882, CVE-2024-27318).
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sizes: dict[str, int] = {}

    @property
    def total_bytes(self) -> int:
        """Bytes of all files that tensors referred to so far."""
        return sum(self._sizes.values())

    @property
    def files(self) -> tuple[str, ...]:
        """Sorted names of all files that tensors referred to so far."""
        return tuple(sorted(self._sizes))

    def region(self, tensor: onnx.TensorProto) -> tuple[str, int, int]:
        """File name, offset and length of a tensor's bytes, checked against the file.

        Raises:
            ModelRejected: `external_data_unsafe`, `external_data_missing` or `external_data_invalid`.
        """
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        if location not in self._sizes:
            self._sizes[location] = self._file_size(location)
        size, length = self._sizes[location], stored_bytes(tensor)
        offset = _whole_number(entries.get("offset", "0"), tensor.name)
        declared = _whole_number(entries.get("length", str(length)), tensor.name)
        if declared != length or tensor.data_type == TensorProto.STRING:
            raise ModelRejected(
                "external_data_invalid",
                f"Tensor '{tensor.name}' needs {length} bytes and names {declared} in '{location}'.",
            )
        if offset + length > size:
            raise ModelRejected(
                "external_data_invalid",
                f"Tensor '{tensor.name}' ends at byte {offset + length} of '{location}', which has {size}: "
                "is the file complete?",
            )
        return location, offset, length

    def read_into(self, tensor: onnx.TensorProto) -> None:
        """Move a tensor's bytes from its file into the model."""
        location, offset, length = self.region(tensor)
        with self._open(location) as file:
            file.seek(offset)
            data = file.read(length)
        if len(data) != length:
            raise ModelRejected("external_data_invalid", f"'{location}' became shorter while it was read.")
        tensor.raw_data = data
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")

    def pin(self, tensor: onnx.TensorProto) -> None:
        """Leave a tensor's bytes in their file, named by its absolute path (see `compression.graph.stored`)."""
        location, offset, _ = self.region(tensor)
        set_place(tensor, self._folder.resolve() / location, offset)

    def _file_size(self, location: str) -> int:
        if (
            location in ("", ".", "..")
            or any(character in location for character in "/\\\0")
            or Path(location).name != location
        ):
            raise ModelRejected(
                "external_data_unsafe",
                f"External data must be a plain file name beside the model, not '{location[:100]}'.",
            )
        with self._open(location) as file:
            return os.fstat(file.fileno()).st_size

    def _open(self, location: str) -> BinaryIO:
        try:
            # O_NONBLOCK: opening a pipe must not wait for a writer.
            descriptor = os.open(self._folder / location, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise ModelRejected(
                "external_data_missing", f"The model keeps weights in '{location}', which was not uploaded with it."
            ) from None
        except (OSError, ValueError):
            raise ModelRejected("external_data_unsafe", f"External data '{location[:100]}' cannot be opened.") from None
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            os.close(descriptor)
            raise ModelRejected("external_data_unsafe", f"External data '{location}' is a link or no regular file.")
        return os.fdopen(descriptor, "rb")


def _whole_number(text: str, name: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ModelRejected("external_data_invalid", f"Tensor '{name}' has the offset or length '{text[:30]}'.")
    return int(text)
