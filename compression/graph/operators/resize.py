"""Resize and Upsample: by gathering along each axis, or by torch's kernels where they compute the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from compression.graph.operators.call import OperatorCall
from compression.graph.operators.registry import operator


class Interpolation(NamedTuple):
    """How Resize samples; the attributes of the operator."""

    mode: str = "nearest"
    coordinates: str = "half_pixel"
    rounding: str = "round_prefer_floor"
    antialias: bool = False
    cubic_coefficient: float = -0.75
    exclude_outside: bool = False
    extrapolation_value: float = 0.0


def sources(
    length: int, size: int, scale: float, how: Interpolation, region: tuple[float, float], device: torch.device
) -> torch.Tensor:
    """Where each of `size` output positions lies on an input axis of `length`, in float32 as in ONNX Runtime."""
    x = torch.arange(size, dtype=torch.float32, device=device)
    positions = (x + 0.5) / scale - 0.5
    match how.coordinates:
        case "asymmetric":
            positions = x / scale
        case "align_corners":
            positions = x * ((length - 1) / (size - 1)) if size > 1 else torch.zeros_like(x)
        case "pytorch_half_pixel" if size == 1:
            positions = torch.zeros_like(x)
        case "half_pixel_symmetric":
            # With a size that scale x length was rounded to, the picture is kept in the middle.
            positions = positions + length / 2 * (1 - size / (scale * length))
        case "tf_half_pixel_for_nn":
            positions = (x + 0.5) / scale
        case "tf_crop_and_resize":
            start, end = region
            step = (end - start) * (length - 1) / (size - 1) if size > 1 else 0.0
            first = start if size > 1 else 0.5 * (start + end)
            positions = first * (length - 1) + x * step
    return positions


def _nearest(x: torch.Tensor, rounding: str) -> torch.Tensor:
    match rounding:
        case "round_prefer_ceil":
            return torch.floor(x + 0.5)
        case "floor":
            return torch.floor(x)
        case "ceil":
            return torch.ceil(x)
        case _:
            return torch.ceil(x - 0.5)


def _weights(distance: torch.Tensor, mode: str, coefficient: float) -> torch.Tensor:
    """The kernel at a distance; Keys 1981, "Cubic convolution interpolation", for the cubic one."""
    d = distance.abs()
    if mode == "linear":
        return (1 - d).clamp(min=0)
    a = coefficient
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))


def axis_matrix(length: int, positions: torch.Tensor, scale: float, how: Interpolation) -> torch.Tensor:
    """(outputs, length): the share of every input element in every output element along one axis."""
    outputs = positions.numel()
    if how.mode == "nearest":
        index = _nearest(positions, how.rounding).clamp(0, length - 1).to(torch.int64)
        return functional.one_hot(index, length).to(torch.float32)
    stretch = max(1.0, 1 / scale) if how.antialias else 1.0
    reach = math.ceil((1 if how.mode == "linear" else 2) * stretch)
    taps = torch.arange(-reach, reach + 1, device=positions.device)
    index = torch.floor(positions).unsqueeze(1) + taps
    weights = _weights((positions.unsqueeze(1) - index) / stretch, how.mode, how.cubic_coefficient)
    if how.exclude_outside:
        weights = torch.where((index < 0) | (index >= length), torch.zeros_like(weights), weights)
    weights = weights / weights.sum(1, keepdim=True)
    matrix = torch.zeros(outputs, length, device=positions.device)
    return matrix.scatter_add(1, index.clamp(0, length - 1).to(torch.int64), weights)


def resample(
    x: torch.Tensor,
    sizes: Sequence[int],
    scales: Sequence[float],
    axes: Sequence[int],
    regions: Sequence[float],
    how: Interpolation,
) -> torch.Tensor:
    """Resize axis after axis.

    Args:
        x: Any tensor.
        sizes: Wanted length per axis of `axes`.
        scales: Output over input length per axis; needed beside the sizes, since it may not be their exact ratio.
        axes: The axes that change.
        regions: Starts, then ends, per axis, for `tf_crop_and_resize`; else empty.
        how: The operator's attributes.
    """
    outside: list[tuple[int, torch.Tensor]] = []
    dtype = x.dtype
    y = x if dtype.is_floating_point else x.to(torch.float32)
    for place, axis in enumerate(axes):
        length, size = x.shape[axis], sizes[place]
        region = (regions[place], regions[place + len(axes)]) if regions else (0.0, 1.0)
        crop = how.coordinates == "tf_crop_and_resize"
        if length == size and scales[place] == 1 and not crop:
            continue
        positions = sources(length, size, scales[place], how, region, x.device)
        if crop:
            outside.append((axis, (positions < 0) | (positions > length - 1)))
        if how.mode == "nearest":
            index = _nearest(positions, how.rounding).clamp(0, length - 1).to(torch.int64)
            y = y.index_select(axis, index)
        else:
            matrix = axis_matrix(length, positions, scales[place], how).to(y.dtype)
            y = torch.movedim(torch.movedim(y, axis, -1) @ matrix.t(), -1, axis)
    for axis, beyond in outside:
        shape = [1] * y.dim()
        shape[axis] = -1
        y = torch.where(beyond.reshape(shape), torch.full_like(y, how.extrapolation_value), y)
    if dtype.is_floating_point:
        return y
    info = torch.iinfo(dtype)
    return y.round().clamp(info.min, info.max).to(dtype)


def resize_by_scales(
    x: torch.Tensor, scales: Any, axes: Sequence[int] | None, regions: Any, how: Interpolation
) -> torch.Tensor:
    """Lengths are floor(length x scale)."""
    chosen = [axis % x.dim() for axis in axes] if axes is not None else list(range(x.dim()))
    factors = [float(scale) for scale in scales]
    # A scale is a float32 that may lie a hair below the exact ratio.
    sizes = [math.floor(x.shape[axis] * factor) for axis, factor in zip(chosen, factors, strict=True)]
    return resample(x, sizes, factors, chosen, regions or [], how)


def resize_to_sizes(
    x: torch.Tensor, sizes: Sequence[int], axes: Sequence[int] | None, policy: str, regions: Any, how: Interpolation
) -> torch.Tensor:
    """To given lengths; the policies `not_larger` and `not_smaller` keep the aspect ratio within or beyond them."""
    chosen = [axis % x.dim() for axis in axes] if axes is not None else list(range(x.dim()))
    factors = [size / x.shape[axis] for axis, size in zip(chosen, sizes, strict=True)]
    if policy != "stretch":
        common = min(factors) if policy == "not_larger" else max(factors)
        factors = [common] * len(chosen)
        sizes = [int(x.shape[axis] * common + 0.5) for axis in chosen]
    return resample(x, list(sizes), factors, chosen, regions or [], how)


def to_floats(tensor: torch.Tensor) -> list[float]:
    return [float(element) for element in tensor.reshape(-1).tolist()]


def _floats(op: OperatorCall, position: int) -> Any:
    if not op.has(position):
        return None
    constant = op.constant(position)
    if constant is not None:
        return to_floats(constant) or None
    return op.python(to_floats, op.tensor(position))


def _plain_mode(how: Interpolation, rank: int | None) -> str | None:
    """Torch's mode that computes the same over the spatial axes, None if there is none."""
    linear = {3: "linear", 4: "bilinear", 5: "trilinear"}
    nearest = how.mode == "nearest" and how.coordinates == "asymmetric" and how.rounding == "floor"
    smooth = how.mode == "linear" and how.coordinates in ("half_pixel", "pytorch_half_pixel", "align_corners")
    if how.antialias or how.exclude_outside or rank not in linear:
        return None
    return "nearest" if nearest else linear[rank] if smooth else None


def interpolate(x: torch.Tensor, sizes: Sequence[int], mode: str, align_corners: bool | None) -> torch.Tensor:
    return functional.interpolate(x, tuple(sizes), mode=mode, align_corners=align_corners)


@operator("Resize", since=11)
def resize(op: OperatorCall) -> Any:
    how = Interpolation(
        mode=op.attribute("mode", "nearest"),
        coordinates=op.attribute("coordinate_transformation_mode", "half_pixel"),
        rounding=op.attribute("nearest_mode", "round_prefer_floor"),
        antialias=bool(op.attribute("antialias", 0)),
        cubic_coefficient=op.attribute("cubic_coeff_a", -0.75),
        exclude_outside=bool(op.attribute("exclude_outside", 0)),
        extrapolation_value=op.attribute("extrapolation_value", 0.0),
    )
    axes, policy = op.attribute("axes"), op.attribute("keep_aspect_ratio_policy", "stretch")
    regions = _floats(op, 1) if how.coordinates == "tf_crop_and_resize" else None
    scales = _floats(op, 2)
    if scales is not None:
        return _by_scales(op, scales, axes, regions, how)
    sizes = op.ints(3)
    mode = _plain_mode(how, op.rank(0))
    # torch places a single output in the middle; `pytorch_half_pixel`, despite its name, at the start.
    known = isinstance(sizes, list) and not (how.coordinates == "pytorch_half_pixel" and 1 in sizes[2:])
    if mode and axes is None and policy == "stretch" and known and _keeps_channels(op, sizes):
        align = how.coordinates == "align_corners" if mode != "nearest" else None
        return op.call(interpolate, op.tensor(0), sizes[2:], mode, align)
    return op.call(resize_to_sizes, op.tensor(0), sizes, axes, policy, regions, how)


def _keeps_channels(op: OperatorCall, sizes: list[int]) -> bool:
    shape = op.shape(0)
    return shape is not None and len(shape) == len(sizes) and shape[:2] == sizes[:2]


def scale_spatially(x: torch.Tensor, scales: Sequence[float], mode: str, align_corners: bool | None) -> torch.Tensor:
    """Torch's interpolation to floor(length x scale), for whole scales."""
    sizes = [int(length * scale) for length, scale in zip(x.shape[2:], scales, strict=True)]
    return functional.interpolate(x, sizes, mode=mode, align_corners=align_corners)


def _by_scales(op: OperatorCall, scales: Any, axes: Any, regions: Any, how: Interpolation) -> Any:
    mode = _plain_mode(how, op.rank(0))
    whole = isinstance(scales, list) and scales[:2] == [1, 1] and all(scale == int(scale) for scale in scales)
    if mode and whole and axes is None and op.is_float(0):
        align = how.coordinates == "align_corners" if mode != "nearest" else None
        return op.call(scale_spatially, op.tensor(0), scales[2:], mode, align)
    return op.call(resize_by_scales, op.tensor(0), scales, axes, regions, how)


@operator("Resize", "Upsample")
def upsample(op: OperatorCall) -> Any:
    """Before operator set 11: scales from the corner, nearest by floor."""
    how = Interpolation(mode=op.attribute("mode", "nearest"), coordinates="asymmetric", rounding="floor")
    scales = _floats(op, 1) if op.has(1) else op.attribute("scales")
    return _by_scales(op, scales, None, None, how)
