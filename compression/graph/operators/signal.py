"""Fourier transforms and filter banks."""

from __future__ import annotations

import math
from typing import Any

import torch

from compression.graph.operators.call import OperatorCall
from compression.graph.operators.dtypes import torch_dtype
from compression.graph.operators.registry import operator

_WINDOWS = {
    "HannWindow": (0.5, 0.5, 0.0),
    "HammingWindow": (25 / 46, 21 / 46, 0.0),
    "BlackmanWindow": (0.42, 0.5, 0.08),
}


def cosine_window(
    size: int, coefficients: tuple[float, float, float], periodic: bool, dtype: torch.dtype
) -> torch.Tensor:
    """a0 - a1 cos(2 pi n / N) + a2 cos(4 pi n / N), with N the size, or one less for a symmetric window."""
    angle = torch.arange(size, dtype=torch.float64) * (2 * math.pi / (size if periodic else size - 1))
    constant, first, second = coefficients
    return (constant - first * torch.cos(angle) + second * torch.cos(2 * angle)).to(dtype)


@operator(*_WINDOWS)
def window(op: OperatorCall) -> Any:
    dtype = torch_dtype(op.attribute("output_datatype", 1))
    return op.call(cosine_window, op.number(0), _WINDOWS[op.node.op_type], bool(op.attribute("periodic", 1)), dtype)


def fourier(x: torch.Tensor, length: int | None, axis: int, inverse: bool, onesided: bool) -> torch.Tensor:
    """Discrete Fourier transform along an axis.

    Args:
        x: Last axis 1 (real) or 2 (real and imaginary part).
        length: Cut or zero-padded to this; None keeps the length.
        axis: The transformed axis.
        inverse: Divide by the length, the other sign.
        onesided: Only the first half of a real input's spectrum; inverse: that half back to a real signal.
    """
    axis %= x.dim()
    if inverse and onesided:
        return torch.fft.irfft(torch.view_as_complex(x.contiguous()), length, axis).unsqueeze(-1)
    signal = x.squeeze(-1) if x.shape[-1] == 1 else torch.view_as_complex(x.contiguous())
    if inverse:
        result = torch.fft.ifft(signal, length, axis)
    elif onesided and not signal.is_complex():
        result = torch.fft.rfft(signal, length, axis)
    else:
        result = torch.fft.fft(signal, length, axis)
        if onesided:
            result = result.narrow(axis, 0, result.shape[axis] // 2 + 1)
    return torch.view_as_real(result)


@operator("DFT")
def dft(op: OperatorCall) -> Any:
    """The axis is an attribute before operator set 20 (default 1) and an input after (default the last but one)."""
    axis = op.attribute("axis", 1) if op.opset < 20 else op.number(2, -2)
    return op.call(
        fourier,
        op.tensor(0),
        op.number(1),
        axis,
        bool(op.attribute("inverse", 0)),
        bool(op.attribute("onesided", 0)),
    )


def short_time_fourier(
    signal: torch.Tensor, step: int, shape: torch.Tensor | None, length: int | None, onesided: bool
) -> torch.Tensor:
    """(batch, frames, bins, 2) from (batch, samples, 1 or 2): frames every `step` samples, windowed."""
    size = length if length is not None else shape.shape[0] if shape is not None else signal.shape[1]
    frames = signal.unfold(1, size, step).movedim(-1, 2)
    if shape is not None:
        missing = size - shape.shape[0]
        padded = torch.nn.functional.pad(shape, (missing // 2, missing - missing // 2))
        frames = frames * padded.reshape(-1, 1)
    return fourier(frames, None, 2, inverse=False, onesided=onesided)


@operator("STFT")
def stft(op: OperatorCall) -> Any:
    return op.call(
        short_time_fourier,
        op.tensor(0),
        op.number(1),
        op.optional(2),
        op.number(3),
        bool(op.attribute("onesided", 1)),
    )


def mel_weights(bins: int, length: int, rate: int, low: float, high: float, dtype: torch.dtype) -> torch.Tensor:
    """(length / 2 + 1, bins): triangular filters evenly spaced in mel = 2595 log10(1 + f / 700).

    As ONNX defines it the last filter ends a step before `high`.
    """
    step = (_mel(high) - _mel(low)) / (bins + 2)
    edges = torch.arange(bins + 2, dtype=torch.float64) * step + _mel(low)
    frequencies = 700 * (10 ** (edges / 2595) - 1)
    points = torch.floor((length + 1) * frequencies / rate).to(torch.int64)
    weights = torch.zeros(length // 2 + 1, bins, dtype=torch.float64)
    for index in range(bins):
        start, middle, end = (int(point) for point in points[index : index + 3])
        if middle == start:
            weights[middle, index] = 1
        else:
            rising = torch.arange(start, middle + 1)
            weights[rising, index] = (rising - start).to(torch.float64) / (middle - start)
        if end > middle:
            falling = torch.arange(middle, end)
            weights[falling, index] = (end - falling).to(torch.float64) / (end - middle)
    return weights.to(dtype)


def _mel(frequency: float) -> float:
    return 2595 * math.log10(1 + frequency / 700)


@operator("MelWeightMatrix")
def mel_weight_matrix(op: OperatorCall) -> Any:
    dtype = torch_dtype(op.attribute("output_datatype", 1))
    return op.call(mel_weights, *(op.number(position) for position in range(5)), dtype)
