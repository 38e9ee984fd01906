"""Changing element types."""

from __future__ import annotations

from typing import Any

import torch
from onnx import TensorProto

from compression.graph.operators.call import OperatorCall
from compression.graph.operators.dtypes import FLOAT8, torch_dtype
from compression.graph.operators.float_formats import to_float4, to_float8, to_power_of_two
from compression.graph.operators.registry import operator

# Bits and signedness of integers that travel in wider ones.
_NARROW_INTEGERS: dict[int, tuple[int, bool]] = {
    TensorProto.INT4: (4, True),
    TensorProto.UINT4: (4, False),
    TensorProto.INT2: (2, True),
    TensorProto.UINT2: (2, False),
}


def convert(x: torch.Tensor, element_type: int, saturate: bool = True, round_mode: str = "up") -> torch.Tensor:
    """The values in another ONNX element type.

    Floats lose their fraction toward zero on the way to integers; narrow integers keep their low bits; float8 types
    clip to their range when `saturate`, else become NaN or infinity; float4 always clips.
    """
    dtype = torch_dtype(element_type)
    if dtype is None:
        msg = f"no torch type for ONNX element type {element_type}"
        raise TypeError(msg)
    if element_type in _NARROW_INTEGERS:
        bits, signed = _NARROW_INTEGERS[element_type]
        return _wrapped(x.to(torch.float32).to(torch.int32), bits, signed).to(dtype)
    if element_type == TensorProto.FLOAT4E2M1:
        return to_float4(x.to(torch.float32))
    if dtype == torch.float8_e8m0fnu:
        return to_power_of_two(x.to(torch.float32), round_mode, saturate)
    if dtype in FLOAT8:
        return to_float8(x.to(torch.float32), dtype, saturate)
    if x.dtype in FLOAT8:
        return x.to(torch.float32).to(dtype)
    return x.to(dtype)


def _wrapped(x: torch.Tensor, bits: int, signed: bool) -> torch.Tensor:
    low = x & ((1 << bits) - 1)
    return torch.where(low >= 1 << (bits - 1), low - (1 << bits), low) if signed else low


def _cast(op: OperatorCall, element_type: int) -> Any:
    dtype = torch_dtype(element_type)
    if dtype is None or op.element_type(0) == TensorProto.STRING:
        op.reject("strings have no place in a training graph")
    plain = element_type not in _NARROW_INTEGERS and element_type != TensorProto.FLOAT4E2M1 and dtype not in FLOAT8
    if plain:
        return op.call(torch.Tensor.to, op.tensor(0), dtype)
    saturate, rounding = bool(op.attribute("saturate", 1)), op.attribute("round_mode", "up")
    return op.call(convert, op.tensor(0), element_type, saturate, rounding)


@operator("Cast")
def cast(op: OperatorCall) -> Any:
    return _cast(op, op.attribute("to"))


@operator("CastLike")
def cast_like(op: OperatorCall) -> Any:
    element_type = op.element_type(1)
    if element_type is None:
        op.reject("the element type of input 1 cannot be inferred")
    return _cast(op, element_type)


def reinterpret(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return x.contiguous().view(dtype)


def reinterpret_narrow(x: torch.Tensor, bits: int, signed: bool) -> torch.Tensor:
    """Between signed and unsigned 4-bit or 2-bit integers, both of which travel in 8 bits."""
    return _wrapped(x.to(torch.int32), bits, signed).to(torch.int8 if signed else torch.uint8)


@operator("BitCast")
def bit_cast(op: OperatorCall) -> Any:
    target = op.attribute("to")
    dtype = torch_dtype(target)
    source = op.element_type(0)
    if target in _NARROW_INTEGERS and source in _NARROW_INTEGERS:
        return op.call(reinterpret_narrow, op.tensor(0), *_NARROW_INTEGERS[target])
    narrow = (*_NARROW_INTEGERS, TensorProto.FLOAT4E2M1)
    if dtype is None or target in narrow or source in narrow:
        op.reject(f"attribute 'to' = {target}: torch has no such bits")
    return op.call(reinterpret, op.tensor(0), dtype)
