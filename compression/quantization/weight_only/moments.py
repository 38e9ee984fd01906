"""Second moments of what layers are given, collected from calibration samples through ONNX Runtime."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from compression.context import Context
from compression.data import Dataset
from compression.errors import DataRejected
from compression.graph import walk
from compression.quantization import prepare
from compression.quantization.weight_only.groupwise import Array

# Patches of a convolution's input are laid out so many bytes at a time.
_PATCH_BYTES = 32 << 20


@dataclass(frozen=True)
class Window:
    """How a convolution cuts its input into patches; each tuple has one entry a spatial axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    """First those before each axis, then those behind."""
    auto_pad: str
    groups: int


@dataclass(frozen=True)
class Taken:
    """What a layer multiplies its weight by: a value of the graph, cut into patches by convolutions."""

    value: str
    window: Window | None = None


def taken_by(node: onnx.NodeProto, kernel: Sequence[int]) -> Taken | None:
    """What a Conv, MatMul or Gemm multiplies its second input by; None for other nodes and transposed inputs.

    Args:
        node: A node of the main graph.
        kernel: Lengths of the weight's spatial axes; empty for products.
    """
    if node.op_type == "MatMul" or (node.op_type == "Gemm" and not walk.integer(node, "transA")):
        return Taken(node.input[0])
    return Taken(node.input[0], window_of(node, kernel)) if node.op_type == "Conv" else None


def window_of(node: onnx.NodeProto, kernel: Sequence[int]) -> Window:
    """How a convolution cuts its input into patches.

    Args:
        node: The convolution.
        kernel: Lengths of the weight's spatial axes.
    """
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    axes = len(kernel)
    return Window(
        kernel=tuple(kernel),
        strides=tuple(attributes.get("strides", [1] * axes)),
        dilations=tuple(attributes.get("dilations", [1] * axes)),
        pads=tuple(attributes.get("pads", [0] * (2 * axes))),
        auto_pad=attributes.get("auto_pad", b"NOTSET").decode(),
        groups=attributes.get("group", 1),
    )


def collect(  # noqa: PLR0917 - what, on what, and how much of it at a time
    model: onnx.ModelProto, wanted: Collection[Taken], dataset: Dataset, samples: int, batch: int, context: Context
) -> dict[Taken, Array]:
    """Run samples through the part of a model that gives `wanted`, and average the products of its inputs.

    Args:
        model: The model as it is so far; nodes may be in any order.
        wanted: Of which values.
        dataset: Arrays named like the model's inputs.
        samples: At most so many.
        batch: Samples at a time.
        context: Threads, cancellation.

    Returns:
        (groups, inputs, inputs) float32 for each; groups are those of a convolution, else there is one.

    Raises:
        DataRejected: `non_finite_values` when an activation becomes NaN or infinite.
        StepFailed: `unsupported_by_runtime`.
    """
    given = {value.name for value in model.graph.input}
    names = sorted({one.value for one in wanted} - given)
    session = None
    if names:
        with prepare.runtime_failures("loading the model to run calibration data through it"):
            session = prepare.session(_part_that_gives(model, names).SerializeToString(), context)
    sums: dict[Taken, Array] = {}
    rows: dict[Taken, int] = {}
    for one in dataset.batches(batch, samples):
        context.check_cancelled()
        values = dict(one.inputs)
        if session is not None:
            with prepare.runtime_failures("running calibration data through the model"):
                values |= dict(zip(names, session.run(names, one.inputs), strict=True))
        for taken in wanted:
            for patches in _rows(values[taken.value], taken.window):
                with np.errstate(over="ignore", invalid="ignore"):
                    product = patches.transpose(1, 2, 0) @ patches.transpose(1, 0, 2)
                sums[taken] = sums[taken] + product if taken in sums else product
                rows[taken] = rows.get(taken, 0) + len(patches)
                if not np.isfinite(sums[taken]).all():
                    raise DataRejected(
                        "non_finite_values",
                        f"With the calibration samples the model computes NaN, infinity or numbers too large to be "
                        f"squared at '{taken.value}'.",
                    )
    return {taken: total / np.float32(rows[taken]) for taken, total in sums.items()}


def _part_that_gives(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """The model with these outputs and no node that they do not need."""
    producers = {output: node for node in model.graph.node for output in node.output if output}
    needed: dict[str, onnx.NodeProto] = {}
    values: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop()
        if name in values:
            continue
        values.add(name)
        node = producers.get(name)
        if node is not None:
            needed[node.output[0]] = node
            todo += prepare.needs(node)
    part = onnx.ModelProto(ir_version=model.ir_version)
    part.opset_import.extend(model.opset_import)
    part.graph.name = model.graph.name
    part.graph.input.extend(model.graph.input)
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    part.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in values)
    part.graph.node.extend(needed.values())
    prepare.sort(part.graph)
    return part


def _rows(values: Array, window: Window | None) -> Iterator[Array]:
    """What each output position multiplies its weight by, (rows, groups, inputs) float32, some at a time."""
    values = values.astype(np.float32, copy=False)
    if window is None:
        yield values.reshape(-1, 1, values.shape[-1])
        return
    padded = np.pad(values, [(0, 0), (0, 0), *window_padding(window, values.shape[2:])])
    count = len(window.kernel)
    reach = [(length - 1) * dilation + 1 for length, dilation in zip(window.kernel, window.dilations, strict=True)]
    axes = tuple(range(2, 2 + count))
    views = np.lib.stride_tricks.sliding_window_view(padded, reach, axes)
    every = slice(None)
    strided = (every, every, *(slice(None, None, step) for step in window.strides))
    dilated = (every,) * (2 + count) + tuple(slice(None, None, step) for step in window.dilations)
    views = views[strided][dilated]
    samples, channels, *positions = views.shape[: 2 + count]
    inputs = channels // window.groups * int(np.prod(window.kernel))
    at_once = max(1, _PATCH_BYTES // max(1, 4 * inputs * window.groups * int(np.prod(positions))))
    # (samples, channels, *positions, *kernel) -> (samples, *positions, channels, *kernel)
    views = np.moveaxis(views, 1, 1 + count)
    for start in range(0, samples, at_once):
        yield views[start : start + at_once].reshape(-1, window.groups, inputs)


def window_padding(window: Window, lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Zeros before and behind each spatial axis."""
    count = len(window.kernel)
    if window.auto_pad in ("NOTSET", ""):
        return list(zip(window.pads[:count], window.pads[count:], strict=True))
    if window.auto_pad == "VALID":
        return [(0, 0)] * count
    found = []
    for length, kernel, stride, dilation in zip(lengths, window.kernel, window.strides, window.dilations, strict=True):
        total = max(0, (-(-length // stride) - 1) * stride + (kernel - 1) * dilation + 1 - length)
        less, more = total // 2, total - total // 2
        found.append((less, more) if window.auto_pad == "SAME_UPPER" else (more, less))
    return found
