"""Weights rounded up or down by what that does to a layer's outputs, instead of each to the nearest number.

The objective is AdaRound's for one layer, E[(dw x)^2] = dw E[x x^T] dw^T (Nagel et al. 2020, section 3.2, equation 13).
The paper relaxes the choice between up and down and trains it; here errors are carried over from input to input, and
numbers flipped one after the other for as long as that helps, which needs second moments alone, no gradients, and gives
the same result every time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from compression.context import Context
from compression.data.feed import ModelFeed
from compression.quantization.integer.codes import Codes
from compression.quantization.integer.observe import batch_size, packed
from compression.quantization.integer.plan import Anatomy, Layer
from compression.quantization.weight_only.gptq import inverse_factor
from compression.quantization.weight_only.moments import Taken, collect, taken_by

Array = npt.NDArray[Any]

_SWEEPS = 8
_DAMPING = 0.01
# Second moments that are held at a time.
_MOMENT_BYTES = 512 << 20
# A layer with more inputs keeps its nearest numbers: its moments alone would take a gigabyte.
_MOST_INPUTS = 16384


@dataclass(frozen=True)
class Adapted:
    """A weight rounded anew.

    Attributes:
        codes: Its numbers, on the scales that it had.
        error_left: The mean squared error of the outputs over what the nearest numbers gave.
    """

    codes: Codes
    error_left: float


def rounded(values: Array, numbers: npt.NDArray[np.int8], moments: Array, top: int) -> npt.NDArray[np.int8]:
    """Numbers next to values that err less in a layer's outputs than the ones given, or as much.

    Two ways to begin, the numbers given and those that `carried` finds, are bettered by single flips; each output takes
    the better of the two.

    Args:
        values: (outputs, inputs) weights over their scales.
        numbers: (outputs, inputs) the nearest, where they are not beyond bounds.
        moments: (inputs, inputs) mean products of the layer's inputs.
        top: The largest number; its negative is the lowest. Values that are zero stay zero.
    """
    ways = [flipped(values, start, moments, top) for start in (numbers, carried(values, numbers, moments, top))]
    errors = [output_error(values, way, moments) for way in ways]
    return np.where((errors[1] < errors[0])[:, None], ways[1], ways[0])


def carried(values: Array, numbers: npt.NDArray[np.int8], moments: Array, top: int) -> npt.NDArray[np.int8]:
    """Round one input after the other, each time carrying the error over to the inputs to come (Frantar et al. 2022).

    Numbers stay next to the values as they were, so that scales and bounds hold.
    """
    order = np.argsort(-np.diagonal(moments), kind="stable")
    factor = inverse_factor(moments[np.ix_(order, order)], _DAMPING)
    work = values[:, order].astype(np.float32)
    found = np.array(numbers)
    lowest, highest = np.maximum(np.floor(values), -top), np.minimum(np.ceil(values), top)
    for index, position in enumerate(order):
        inside = (values[:, position] != 0) & (np.abs(values[:, position]) <= top)
        near = np.clip(np.rint(work[:, index]), lowest[:, position], highest[:, position])
        found[:, position] = np.where(inside, near, numbers[:, position]).astype(np.int8)
        error = (work[:, index] - found[:, position]) / factor[index, index]
        work[:, index + 1 :] -= np.outer(error, factor[index, index + 1 :])
    return found


def flipped(values: Array, numbers: npt.NDArray[np.int8], moments: Array, top: int) -> npt.NDArray[np.int8]:
    """Numbers of which none can be replaced by the one on the other side of its value without erring more.

    Args: as of `rounded`.
    """
    found = numbers.astype(np.float32)
    off = found - values
    slope = off @ moments
    curvature = np.diagonal(moments)
    free = values != 0
    for _ in range(_SWEEPS):
        moved = 0
        for index in np.argsort(-curvature, kind="stable"):
            step = np.where(off[:, index] > 0, -1.0, 1.0).astype(np.float32)
            gain = -(2 * step * slope[:, index] + curvature[index])
            target = found[:, index] + step
            rows = np.flatnonzero((gain > 0) & free[:, index] & (np.abs(target) <= top))
            # Clipped values lie more than 1 away: these stay where they are.
            rows = rows[np.abs(target[rows] - values[rows, index]) < 1]
            if rows.size:
                found[rows, index] = target[rows]
                off[rows, index] += step[rows]
                slope[rows] += step[rows, None] * moments[index]
                moved += rows.size
        if not moved:
            break
    return found.astype(np.int8)


def output_error(values: Array, numbers: Array, moments: Array) -> Array:
    """(outputs,) the mean squared error of each output, in units of the scale squared."""
    off = numbers - values
    result: Array = np.einsum("ij,ij->i", off @ moments, off)
    return result


def adapt(
    anatomy: Anatomy,
    nearest: Mapping[str, Codes],
    weights: Mapping[str, Array],
    feed: ModelFeed,
    context: Context,
    *,
    samples: int,
    top: int,
) -> Iterator[tuple[str, Adapted]]:
    """Round the weights of layers anew, by their names.

    Args:
        anatomy: The float graph.
        nearest: By weight, its nearest numbers.
        weights: The same in float.
        feed: Calibration samples.
        context: Threads and cancellation.
        samples: At most so many are run through the model.
        top: The largest number of a weight.

    Raises:
        StepFailed: `unsupported_by_runtime`.
        DataRejected: `non_finite_values`.
    """
    nodes = {node.name: node for node in anatomy.model.graph.node}
    wanted: dict[str, tuple[Layer, tuple[Taken, ...]]] = {}
    for layer in anatomy.layers.values():
        taken = _taken(layer, nodes[layer.node])
        if layer.weight in nearest and taken is not None:
            own, before = wanted.get(layer.weight, (layer, ()))
            if own.layout == layer.layout and own.groups == layer.groups:
                wanted[layer.weight] = own, (*before, taken)
    for together in packed({name: _moment_bytes(layer) for name, (layer, _) in wanted.items()}, _MOMENT_BYTES):
        asked = {taken for name in together for taken in wanted[name][1]}
        moments = collect(anatomy.model, asked, feed, samples, batch_size(anatomy.model), context)
        for name in together:
            context.check_cancelled()
            layer, uses = wanted[name]
            mean = np.mean([moments[taken] for taken in uses], axis=0)
            yield name, _adapted(weights[name], nearest[name], layer, mean, top)


def _taken(layer: Layer, node: onnx.NodeProto) -> Taken | None:
    if _inputs(layer) > _MOST_INPUTS or (layer.operator != "Conv" and len(layer.shape) != 2):
        return None
    return taken_by(node, layer.shape[2:] if layer.operator == "Conv" else ())


def _moment_bytes(layer: Layer) -> int:
    return 4 * layer.groups * _inputs(layer) ** 2


def _inputs(layer: Layer) -> int:
    """Weights that an output channel has."""
    return math.prod(layer.shape) // layer.shape[layer.layout.output_axis]


def _adapted(weight: Array, codes: Codes, layer: Layer, moments: Array, top: int) -> Adapted:
    axis = layer.layout.output_axis
    moved = np.moveaxis(weight, axis, 0)
    outputs = len(moved)
    scales = np.broadcast_to(codes.scales.reshape(-1), (outputs,)).astype(np.float32)
    values = moved.reshape(outputs, -1).astype(np.float32) / scales[:, None]
    numbers = np.moveaxis(codes.numbers, axis, 0).reshape(outputs, -1)
    per_group = outputs // layer.groups
    result = np.empty_like(numbers)
    before = after = 0.0
    for group in range(layer.groups):
        rows = slice(group * per_group, (group + 1) * per_group)
        result[rows] = rounded(values[rows], numbers[rows], moments[group], top)
        squared = np.square(scales[rows].astype(np.float64))
        before += float(squared @ output_error(values[rows], numbers[rows], moments[group]))
        after += float(squared @ output_error(values[rows], result[rows], moments[group]))
    shaped = np.ascontiguousarray(np.moveaxis(result.reshape(moved.shape), 0, axis))
    return Adapted(Codes(shaped, codes.scales, codes.axis), after / before if before else 1.0)
