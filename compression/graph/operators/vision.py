"""Operators of detection and spatial transformer models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from compression.graph.operators.call import OperatorCall
from compression.graph.operators.registry import operator

_SAMPLING = {
    "linear": "bilinear",
    "cubic": "bicubic",
    "bilinear": "bilinear",
    "bicubic": "bicubic",
    "nearest": "nearest",
}


@operator("GridSample")
def grid_sample(op: OperatorCall) -> Any:
    mode = _SAMPLING[op.attribute("mode", "linear" if op.opset >= 20 else "bilinear")]
    return op.call(
        functional.grid_sample,
        op.tensor(0),
        op.tensor(1),
        mode,
        op.attribute("padding_mode", "zeros"),
        bool(op.attribute("align_corners", 0)),
    )


def affine_grid(theta: torch.Tensor, size: Sequence[int], align_corners: bool) -> torch.Tensor:
    return functional.affine_grid(theta, list(size), align_corners)


@operator("AffineGrid")
def affine_grid_(op: OperatorCall) -> Any:
    return op.call(affine_grid, op.tensor(0), op.ints(1), bool(op.attribute("align_corners", 0)))


def columns_to_image(
    x: torch.Tensor, image: Sequence[int], block: Sequence[int], stride: list[int], dilation: list[int], pads: list[int]
) -> torch.Tensor:
    """Sum blocks back into an image of any number of spatial axes.

    Args:
        x: (batch, channels x block size, blocks).
        image: Spatial lengths of the result.
        block: Lengths of a block.
        stride: Distance of blocks per axis.
        dilation: Distance of elements of a block per axis.
        pads: Begins, then ends; what falls there is dropped.
    """
    spatial = len(image)
    padded = [length + pads[axis] + pads[axis + spatial] for axis, length in enumerate(image)]
    flat = torch.zeros(1, 1, dtype=torch.int64, device=x.device)
    for axis, length in enumerate(padded):
        count = (length - (block[axis] - 1) * dilation[axis] - 1) // stride[axis] + 1
        starts = torch.arange(count, device=x.device) * stride[axis]
        taps = torch.arange(block[axis], device=x.device) * dilation[axis]
        places = taps.reshape(-1, 1) + starts
        flat = (flat[:, None, :, None] * length + places[None, :, None, :]).reshape(
            flat.shape[0] * places.shape[0], flat.shape[1] * places.shape[1]
        )
    values = x.unflatten(1, (-1, flat.shape[0])).flatten(2)
    index = flat.reshape(1, 1, -1).expand_as(values)
    total = torch.Size(padded).numel()
    result = torch.zeros(*values.shape[:2], total, dtype=x.dtype, device=x.device).scatter_add(2, index, values)
    result = result.unflatten(2, padded)
    for axis, length in enumerate(image):
        result = result.narrow(2 + axis, pads[axis], length)
    return result


@operator("Col2Im")
def col2im(op: OperatorCall) -> Any:
    image, block = op.ints(1), op.ints(2)
    spatial = int((op.shape(1) or [2])[0] or 2)
    stride, dilation = op.attribute("strides", [1] * spatial), op.attribute("dilations", [1] * spatial)
    pads = op.attribute("pads", [0] * 2 * spatial)
    return op.call(columns_to_image, op.tensor(0), image, block, stride, dilation, pads)


def non_max_suppression(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    most: int,
    overlap: float,
    threshold: float | None,
    centred: bool,
) -> torch.Tensor:
    """Indices (batch, class, box) of the boxes kept per class, best first.

    Args:
        boxes: (batch, boxes, 4): two opposite corners, or centre and lengths if `centred`.
        scores: (batch, classes, boxes).
        most: Boxes kept per class; 0 keeps none.
        overlap: Intersection over union above which the worse of two boxes goes.
        threshold: Scores have to be above it.
        centred: The format of `boxes`.
    """
    kept: list[tuple[int, int, int]] = []
    for batch in range(boxes.shape[0]):
        corners = _corners(boxes[batch], centred)
        ratios = _overlaps(corners)
        for label in range(scores.shape[1]):
            chosen: list[int] = []
            for index in scores[batch, label].argsort(descending=True, stable=True).tolist():
                if len(chosen) >= most or (threshold is not None and scores[batch, label, index] <= threshold):
                    break
                if all(float(ratios[index, other]) <= overlap for other in chosen):
                    chosen.append(index)
            kept.extend((batch, label, index) for index in chosen)
    return torch.tensor(kept, dtype=torch.int64, device=boxes.device).reshape(-1, 3)


def _corners(boxes: torch.Tensor, centred: bool) -> torch.Tensor:
    if centred:
        centre, half = boxes[:, :2], boxes[:, 2:] / 2
        return torch.cat([centre - half, centre + half], 1)
    first, second = boxes[:, :2], boxes[:, 2:]
    return torch.cat([torch.minimum(first, second), torch.maximum(first, second)], 1)


def _overlaps(corners: torch.Tensor) -> torch.Tensor:
    low = torch.maximum(corners[:, None, :2], corners[None, :, :2])
    high = torch.minimum(corners[:, None, 2:], corners[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    area = (corners[:, 2:] - corners[:, :2]).prod(-1)
    union = area[:, None] + area[None] - shared
    return torch.where(union > 0, shared / union, torch.zeros_like(union))


@operator("NonMaxSuppression")
def non_max_suppression_(op: OperatorCall) -> Any:
    return op.call(
        non_max_suppression,
        op.tensor(0),
        op.tensor(1),
        op.number(2, 0),
        op.number(3, 0.0),
        op.number(4),
        bool(op.attribute("center_point_box", 0)),
    )


def roi_align(
    x: torch.Tensor,
    regions: torch.Tensor,
    batch: torch.Tensor,
    size: tuple[int, int],
    ratio: int,
    scale: float,
    half_pixel: bool,
    largest: bool,
) -> torch.Tensor:
    """Sample regions to a fixed size. He et al. 2017, "Mask R-CNN", section 3; `largest` pools by maximum."""
    if not largest:
        from torchvision.ops import roi_align as align  # noqa: PLC0415  # torchvision takes a second to import

        rows = torch.cat([batch.to(regions.dtype).unsqueeze(1), regions], 1)
        result: torch.Tensor = align(x, rows, size, scale, ratio, half_pixel)
        return result
    return torch.stack(
        [
            _region_max(x[int(index)], region, size, ratio, scale, half_pixel)
            for region, index in zip(regions, batch, strict=True)
        ]
    )


def _region_max(
    x: torch.Tensor, region: torch.Tensor, size: tuple[int, int], ratio: int, scale: float, half_pixel: bool
) -> torch.Tensor:
    """The largest of the weighted neighbours of all sampling points of a bin, as ONNX Runtime has it."""
    left, top, right, bottom = (region * scale - (0.5 if half_pixel else 0.0)).tolist()
    spans = (bottom - top, right - left) if half_pixel else (max(bottom - top, 1.0), max(right - left, 1.0))
    taps = []
    for start, span, count, length in zip((top, left), spans, size, x.shape[1:], strict=True):
        samples = ratio if ratio > 0 else -(-int(span) // count)
        step = span / count
        points = start + step * (torch.arange(count * samples, device=x.device) + 0.5) / samples
        inside = (points >= -1) & (points <= length)
        points = points.clamp(0, length - 1)
        low = points.floor().to(torch.int64)
        high = (low + 1).clamp(max=length - 1)
        taps.append((low, high, points - low, inside, samples))
    (y0, y1, fy, in_y, ny), (x0, x1, fx, in_x, nx) = taps
    corners = [
        x[:, yi][:, :, xi] * (wy[:, None] * wx[None])
        for yi, wy in ((y0, 1 - fy), (y1, fy))
        for xi, wx in ((x0, 1 - fx), (x1, fx))
    ]
    best = torch.stack(corners).amax(0) * (in_y[:, None] & in_x[None])
    return best.unflatten(2, (size[1], nx)).unflatten(1, (size[0], ny)).amax((2, 4))


@operator("RoiAlign")
def roi_align_(op: OperatorCall) -> Any:
    half_pixel = op.opset >= 16 and op.attribute("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    return op.call(
        roi_align,
        op.tensor(0),
        op.tensor(1),
        op.tensor(2),
        (op.attribute("output_height", 1), op.attribute("output_width", 1)),
        op.attribute("sampling_ratio", 0),
        op.attribute("spatial_scale", 1.0),
        half_pixel,
        op.attribute("mode", "avg") == "max",
    )
