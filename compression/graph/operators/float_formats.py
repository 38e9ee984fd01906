"""Rounding to the 8-bit and 4-bit floats of ONNX, where torch's own conversion differs or is missing."""

from __future__ import annotations

import torch

# Whether a format has infinities; the others overflow to NaN.
_HAS_INFINITY = {torch.float8_e5m2: True}
_LARGEST = {
    torch.float8_e4m3fn: 448.0,
    torch.float8_e4m3fnuz: 240.0,
    torch.float8_e5m2: 57344.0,
    torch.float8_e5m2fnuz: 57344.0,
}
# Float4 E2M1: magnitudes, and above which value the next one is nearer (ties go to even mantissas).
_FLOAT4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_FLOAT4_BOUNDS = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)


def to_float8(x: torch.Tensor, dtype: torch.dtype, saturate: bool) -> torch.Tensor:
    """float32 to an 8-bit float, to nearest even.

    Args:
        x: float32 values.
        dtype: One of torch's float8 types with a mantissa.
        saturate: Values out of range, infinities among them, become the largest finite one; otherwise infinity where
            the format has it, else NaN.
    """
    largest = _LARGEST[dtype]
    if saturate:
        return torch.where(x.isnan(), x, x.clamp(-largest, largest)).to(dtype)
    rounded = x.clamp(-largest, largest).to(dtype).to(torch.float32)
    # What would round to the next value after the largest is out of range; halfway counts as out.
    step = largest - float(torch.tensor(largest * 0.93).to(dtype).to(torch.float32))
    over = x.abs() >= largest + step / 2
    beyond = torch.inf if _HAS_INFINITY.get(dtype, False) else torch.nan
    return torch.where(over, torch.copysign(torch.full_like(x, beyond), x), torch.where(x.isnan(), x, rounded)).to(
        dtype
    )


def to_float4(x: torch.Tensor) -> torch.Tensor:
    """Nearest float4 (E2M1) value, as float32: always within [-6, 6]; NaN, which the format lacks, gives -0."""
    bounds = torch.tensor(_FLOAT4_BOUNDS, device=x.device)
    magnitude = x.abs()
    upper = torch.bucketize(magnitude, bounds, right=False)
    tie = torch.isin(magnitude, bounds) & (upper % 2 == 1)
    index = torch.where(tie, upper + 1, upper)
    nearest = torch.tensor(_FLOAT4_VALUES, device=x.device)[index.clamp(max=7)]
    return torch.where(x.isnan(), torch.full_like(nearest, -0.0), torch.copysign(nearest, x))


def to_power_of_two(x: torch.Tensor, round_mode: str, saturate: bool) -> torch.Tensor:
    """float8 E8M0: an exponent alone, 2^-127 to 2^127.

    Args:
        x: float32 values; signs are dropped.
        round_mode: `up`, `down` or `nearest` power of two.
        saturate: Whether what is too large becomes the largest value instead of NaN.
    """
    mantissa, exponent = torch.frexp(x.abs())
    power = exponent - 1  # x = mantissa * 2^exponent with a mantissa in [0.5, 1)
    if round_mode == "up":
        power = power + (mantissa > 0.5)
    elif round_mode == "nearest":
        power = power + (mantissa >= 0.75)
    bits = (power + 127).clamp(0, 254 if saturate else 255)
    bits = torch.where(x.isnan(), 255, torch.where(x.isinf(), 254 if saturate else 255, bits))
    bits = torch.where(x == 0, 0, bits)
    return bits.to(torch.uint8).view(torch.float8_e8m0fnu)
