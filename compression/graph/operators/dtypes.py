"""ONNX element types in torch."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper

_NATIVE: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.UINT8: torch.uint8,
    TensorProto.INT8: torch.int8,
    TensorProto.UINT16: torch.uint16,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.BOOL: torch.bool,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.UINT32: torch.uint32,
    TensorProto.UINT64: torch.uint64,
    TensorProto.COMPLEX64: torch.complex64,
    TensorProto.COMPLEX128: torch.complex128,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn,
    TensorProto.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    TensorProto.FLOAT8E5M2: torch.float8_e5m2,
    TensorProto.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
    TensorProto.FLOAT8E8M0: torch.float8_e8m0fnu,
}
# torch computes nothing in these: their values travel in the next wider type.
_CARRIED: dict[int, torch.dtype] = {
    TensorProto.INT4: torch.int8,
    TensorProto.UINT4: torch.uint8,
    TensorProto.INT2: torch.int8,
    TensorProto.UINT2: torch.uint8,
    TensorProto.FLOAT4E2M1: torch.float32,
}
# Same-width types that NumPy knows, for element types that only ml_dtypes knows.
_BITS: dict[int, type[np.generic]] = {1: np.uint8, 2: np.uint16}

LEARNABLE = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
# Types that torch stores and hardly computes in; see `widened`.
UNSIGNED = frozenset({torch.uint16, torch.uint32, torch.uint64})
FLOAT8 = frozenset(
    {
        torch.float8_e4m3fn,
        torch.float8_e4m3fnuz,
        torch.float8_e5m2,
        torch.float8_e5m2fnuz,
        torch.float8_e8m0fnu,
    }
)


def torch_dtype(element_type: int) -> torch.dtype | None:
    """The torch type that holds an ONNX element type, None for strings and unknown ones.

    4-bit and 2-bit integers are carried in 8-bit ones, float4 in float32.
    """
    return _NATIVE.get(element_type) or _CARRIED.get(element_type)


def is_carried(element_type: int) -> bool:
    """Whether values of this type live in a wider torch type."""
    return element_type in _CARRIED


def tensor_from_proto(proto: onnx.TensorProto) -> torch.Tensor:
    """A writable tensor with a stored tensor's values.

    Raises:
        TypeError: for strings.
    """
    array = numpy_helper.to_array(proto)
    dtype = torch_dtype(proto.data_type)
    if dtype is None:
        msg = f"tensor '{proto.name}' holds strings"
        raise TypeError(msg)
    if is_carried(proto.data_type):
        return torch.from_numpy(array.astype(np.float32)).to(dtype)
    if array.dtype.kind == "V" or array.dtype.isbuiltin != 1:
        bits = np.ascontiguousarray(array).view(_BITS[array.dtype.itemsize])
        return torch.from_numpy(bits.copy()).view(dtype).reshape(array.shape)
    return torch.from_numpy(array.copy())


def raw_bytes(tensor: torch.Tensor) -> bytes:
    """The elements in row-major order, little endian, as `TensorProto.raw_data` holds them."""
    return bytes(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def widened(tensor: torch.Tensor) -> torch.Tensor:
    """uint16, uint32 and uint64 as int64, where torch has kernels; values of uint64 above 2^63 wrap around."""
    return tensor.to(torch.int64) if tensor.dtype in UNSIGNED else tensor
