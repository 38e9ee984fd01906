"""Round-to-nearest in groups along the input axis, each group with a scale of its own. Pure functions on arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Groups:
    """A quantized matrix of N outputs and K inputs.

    Attributes:
        values: (N, groups, group size) uint8 codes from 0 to 2^bits - 1; the last group is padded with zero points.
        scales: (N, groups), of the weight's element type.
        zero_points: (N, groups) uint8 codes that stand for zero.
    """

    values: npt.NDArray[np.uint8]
    scales: Array
    zero_points: npt.NDArray[np.uint8]


def quantize(weight: Array, bits: int, group_size: int, *, symmetric: bool) -> Groups:
    """Quantize a matrix as ONNX Runtime's MatMulNBits reads it: weight = scale * (code - zero point).

    Symmetric groups have their zero point at 2^(bits-1), and the value of largest magnitude becomes code 0, at the end
    that reaches farther; its scale is negative where that value is positive. Asymmetric groups span from their lowest
    to their highest value, zero included.

    Args:
        weight: (K, N), finite.
        bits: 4 or 8.
        group_size: Consecutive inputs that share a scale.
        symmetric: Fix the zero point in the middle.
    """
    inputs, outputs = weight.shape
    padding = -inputs % group_size
    wide = np.pad(weight.astype(np.float32), ((0, padding), (0, 0))).T.reshape(outputs, -1, group_size)
    top = (1 << bits) - 1
    middle = 1 << (bits - 1)
    if symmetric:
        largest = np.take_along_axis(wide, np.abs(wide).argmax(-1, keepdims=True), -1)
        scales = _representable(largest / -middle, weight.dtype)
        zero_points = np.full_like(scales, middle)
    else:
        lowest, highest = np.minimum(wide.min(-1, keepdims=True), 0), np.maximum(wide.max(-1, keepdims=True), 0)
        scales = _representable((highest - lowest) / top, weight.dtype)
        zero_points = np.clip(np.rint(_divided(-lowest, scales)), 0, top)
    values = np.clip(np.rint(_divided(wide, scales)) + zero_points, 0, top)
    return Groups(values.astype(np.uint8), scales[..., 0].astype(weight.dtype), zero_points[..., 0].astype(np.uint8))


def _representable(scales: Array, dtype: npt.DTypeLike) -> Array:
    """Scales as they will be stored, so that codes are rounded by the very numbers that they will be multiplied by."""
    stored: Array = scales.astype(dtype).astype(np.float32)
    return stored


def _divided(values: Array, scales: Array) -> Array:
    """Quotients, 0 in groups of zeros."""
    quotients: Array = np.divide(values, scales, out=np.zeros_like(values), where=scales != 0)
    return quotients


def pack(codes: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Codes along the last axis in bytes, the first of two 4-bit codes in the low half.

    >>> pack(np.array([[1, 2, 3]], np.uint8), 4).tolist()
    [[33, 3]]
    """
    if bits == 8:
        return codes
    if codes.shape[-1] % 2:
        codes = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, 1)])
    return codes[..., 0::2] | codes[..., 1::2] << np.uint8(4)


def dequantize(groups: Groups, inputs: int) -> Array:
    """The (K, N) float32 matrix that codes, scales and zero points stand for, with `inputs` rows."""
    centred = groups.values.astype(np.float32) - groups.zero_points[..., None].astype(np.float32)
    wide: Array = centred * groups.scales[..., None].astype(np.float32)
    return np.ascontiguousarray(wide.reshape(len(wide), -1)[:, :inputs].T)
