"""Quantizing and dequantizing, and products of quantized tensors."""

from __future__ import annotations

from typing import Any

import torch
from onnx import TensorProto
from torch.nn import functional

from compression.graph.operators.call import OperatorCall
from compression.graph.operators.cast import convert
from compression.graph.operators.dtypes import torch_dtype, widened
from compression.graph.operators.linear import integer_matmul
from compression.graph.operators.padding import torch_pads
from compression.graph.operators.registry import operator

_RANGES: dict[int, tuple[int, int]] = {
    TensorProto.UINT8: (0, 255),
    TensorProto.INT8: (-128, 127),
    TensorProto.UINT16: (0, 65535),
    TensorProto.INT16: (-32768, 32767),
    TensorProto.UINT4: (0, 15),
    TensorProto.INT4: (-8, 7),
    TensorProto.UINT2: (0, 3),
    TensorProto.INT2: (-2, 1),
}


def per_element(parameter: torch.Tensor, x: torch.Tensor, axis: int, block: int) -> torch.Tensor:
    """A scale or zero point that broadcasts against `x`.

    One number is for the whole tensor, a vector for the slices of `axis`, a tensor of the rank of `x` for blocks of
    `block` neighbours along `axis`.
    """
    if parameter.numel() == 1:
        return parameter.reshape(())
    axis %= x.dim()
    if parameter.dim() == 1 and not block:
        shape = [1] * x.dim()
        shape[axis] = -1
        return parameter.reshape(shape)
    return parameter.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])


def quantize(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    element_type: int,
    axis: int,
    block: int,
    saturate: bool,
) -> torch.Tensor:
    """clamp(round(x / scale) + zero), halves to even. Jacob et al. 2018, equation 1. No gradient passes."""
    ratio = x.to(torch.float32) / per_element(scale.to(torch.float32), x, axis, block)
    if element_type not in _RANGES:
        return convert(ratio, element_type, saturate)
    low, high = _RANGES[element_type]
    offset = 0 if zero is None else per_element(widened(zero).to(torch.float32), x, axis, block)
    dtype = torch_dtype(element_type)
    return (ratio.round() + offset).clamp(low, high).to(torch.int32).to(dtype or torch.int8)


@operator("QuantizeLinear")
def quantize_linear(op: OperatorCall) -> Any:
    element_type = op.element_type(2) or op.attribute("output_dtype", 0) or TensorProto.UINT8
    zero = op.constant(2) if op.constant(2) is not None else op.optional(2)
    scale = op.constant(1) if op.constant(1) is not None else op.tensor(1)
    axis, block = op.attribute("axis", 1), op.attribute("block_size", 0)
    return op.call(quantize, op.tensor(0), scale, zero, element_type, axis, block, bool(op.attribute("saturate", 1)))


def dequantize(
    x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, dtype: torch.dtype, axis: int, block: int
) -> torch.Tensor:
    """(x - zero) * scale, in the type of the scale."""
    values = widened(x).to(torch.float32)
    if zero is not None:
        values = values - per_element(widened(zero).to(torch.float32), x, axis, block)
    return (values * per_element(scale.to(torch.float32), x, axis, block)).to(dtype)


@operator("DequantizeLinear")
def dequantize_linear(op: OperatorCall) -> Any:
    element_type = op.attribute("output_dtype", 0) or op.element_type(1) or TensorProto.FLOAT
    scale = op.constant(1) if op.constant(1) is not None else op.tensor(1)
    zero = op.constant(2) if op.constant(2) is not None else op.optional(2)
    dtype = torch_dtype(element_type)
    return op.call(dequantize, op.tensor(0), scale, zero, dtype, op.attribute("axis", 1), op.attribute("block_size", 0))


def quantize_dynamically(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """uint8 over the tensor's own range, which is widened to hold zero; also scale and zero point."""
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = (high - low) / 255
    zero = (-low / scale).round().clamp(0, 255)
    return (torch.round(x / scale) + zero).clamp(0, 255).to(torch.uint8), scale, zero.to(torch.uint8)


@operator("DynamicQuantizeLinear")
def dynamic_quantize_linear(op: OperatorCall) -> Any:
    results = op.call(quantize_dynamically, op.tensor(0))
    return [op.item(results, index) for index in range(op.outputs)]


def _centred(x: torch.Tensor, zero: torch.Tensor | None, axis: int) -> torch.Tensor:
    """X - zero in int64; a vector of zero points lies along `axis`."""
    wide = x.to(torch.int64)
    if zero is None:
        return wide
    offset = zero.to(torch.int64)
    if offset.dim() == 1 and offset.numel() > 1:
        shape = [1] * x.dim()
        shape[axis] = -1
        offset = offset.reshape(shape)
    elif offset.numel() == 1:
        offset = offset.reshape(())
    return wide - offset


def matmul_integer(
    a: torch.Tensor, b: torch.Tensor, a_zero: torch.Tensor | None, b_zero: torch.Tensor | None
) -> torch.Tensor:
    """(a - a_zero)(b - b_zero) in int32; zero points per row of `a` and per column of `b`."""
    return integer_matmul(_centred(a, a_zero, -2), _centred(b, b_zero, -1)).to(torch.int32)


@operator("MatMulInteger")
def matmul_integer_(op: OperatorCall) -> Any:
    return op.call(matmul_integer, op.tensor(0), op.tensor(1), op.optional(2), op.optional(3))


def qlinear_matmul(
    a: torch.Tensor,
    a_scale: torch.Tensor,
    a_zero: torch.Tensor,
    b: torch.Tensor,
    b_scale: torch.Tensor,
    b_zero: torch.Tensor,
    y_scale: torch.Tensor,
    y_zero: torch.Tensor,
) -> torch.Tensor:
    """Product of two quantized matrices, quantized to a scale of its own."""
    total = matmul_integer(a, b, a_zero, b_zero).to(torch.float32)
    real = total * (a_scale.to(torch.float32) * b_scale.to(torch.float32)) / y_scale.to(torch.float32)
    return _saturated(real, y_zero)


def _saturated(real: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    info = torch.iinfo(zero.dtype)
    return (real.round() + zero.to(torch.float32)).clamp(info.min, info.max).to(zero.dtype)


def _constants(op: OperatorCall, count: int) -> list[Any]:
    """Inputs, with stored scales as constants: a quantized product has no gradient."""
    known = [op.constant(position) for position in range(count)]
    return [op.tensor(position) if value is None else value for position, value in enumerate(known)]


@operator("QLinearMatMul")
def qlinear_matmul_(op: OperatorCall) -> Any:
    return op.call(qlinear_matmul, *_constants(op, 8))


def convolve_integers(
    x: torch.Tensor,
    w: torch.Tensor,
    x_zero: torch.Tensor | None,
    w_zero: torch.Tensor | None,
    pads: list[int],
    stride: list[int],
    dilation: list[int],
    groups: int,
) -> torch.Tensor:
    """Convolution of (x - x_zero) with (w - w_zero) in int32; padding is real zero."""
    centred = functional.pad(_centred(x, x_zero, 1), torch_pads(pads)).to(torch.float64)
    kernel = _centred(w, w_zero, 0).to(torch.float64)
    convolution = (functional.conv1d, functional.conv2d, functional.conv3d)[w.dim() - 3]
    return convolution(centred, kernel, None, stride, 0, dilation, groups).to(torch.int32)


def _geometry(op: OperatorCall, weight: int) -> tuple[list[int], list[int], list[int], int]:
    spatial = (op.rank(weight) or 4) - 2
    if op.attribute("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        op.reject(f"attribute 'auto_pad' = {op.attribute('auto_pad')}")
    return (
        op.attribute("pads", [0] * 2 * spatial),
        op.attribute("strides", [1] * spatial),
        op.attribute("dilations", [1] * spatial),
        op.attribute("group", 1),
    )


@operator("ConvInteger")
def conv_integer(op: OperatorCall) -> Any:
    return op.call(convolve_integers, op.tensor(0), op.tensor(1), op.optional(2), op.optional(3), *_geometry(op, 1))


def qlinear_conv(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    x_zero: torch.Tensor,
    w: torch.Tensor,
    w_scale: torch.Tensor,
    w_zero: torch.Tensor,
    y_scale: torch.Tensor,
    y_zero: torch.Tensor,
    bias: torch.Tensor | None,
    geometry: tuple[list[int], list[int], list[int], int],
) -> torch.Tensor:
    """Convolution of quantized tensors; the int32 bias has the scale of the accumulator."""
    total = convolve_integers(x, w, x_zero, w_zero, *geometry)
    per_channel = (1, -1, *[1] * (x.dim() - 2))
    if bias is not None:
        total = total + bias.reshape(per_channel)
    factor = (x_scale * w_scale / y_scale).reshape(per_channel if w_scale.numel() > 1 else ())
    return _saturated(total.to(torch.float32) * factor, y_zero)


@operator("QLinearConv")
def qlinear_conv_(op: OperatorCall) -> Any:
    return op.call(qlinear_conv, *_constants(op, 8), op.optional(8), _geometry(op, 3))
