"""Operators that move elements: reshapes, slices, joins."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import onnx

from compression.pruning.channels import label_arrays
from compression.pruning.channels.engine import Engine, Rule, Unknown, attribute
from compression.pruning.channels.identities import Labels
from compression.pruning.channels.rules_layers import gather_rows


def reshape(engine: Engine, node: onnx.NodeProto) -> None:
    """Reshape, Flatten, Unsqueeze."""
    data, output = node.input[0], node.output[0]
    if node.op_type == "Reshape" and len(node.input) < 2:
        raise Unknown  # before opset 5 the target was an attribute
    engine.set(output, label_arrays.reshape(engine.labels(data), engine.shape(data), engine.shape(output)))


def squeeze(engine: Engine, node: onnx.NodeProto) -> None:
    """Without axes it drops every axis of length 1, so none may become one."""
    if len(node.input) < 2 and attribute(node, "axes", None) is None and engine.labels(node.input[0]).any():
        raise Unknown
    reshape(engine, node)


def transpose(engine: Engine, node: onnx.NodeProto) -> None:
    labels = engine.labels(node.input[0])
    order = attribute(node, "perm", list(reversed(range(labels.ndim))))
    engine.set(node.output[0], labels.transpose(order))


def concat(engine: Engine, node: onnx.NodeProto) -> None:
    names = list(node.input)
    shapes = [engine.shape(name) for name in names]
    rank = len(shapes[0])
    axis = attribute(node, "axis", 1) % rank
    operands = [engine.labels(name) for name in names]
    for other in range(rank):
        if other != axis and any(
            own[other] > 1 and labels.shape[other] == 1 for own, labels in zip(shapes, operands, strict=True)
        ):
            operands = [label_arrays.unify(engine.ids, labels, [other]) for labels in operands]
    for labels in operands:
        if labels.size == 1:
            engine.ids.freeze(labels)
    operands = [engine.ids.find(labels) for labels in operands]
    if all(labels.shape[axis] == 1 for labels in operands) and any(labels.size > 1 for labels in operands):
        engine.set(node.output[0], engine.meet(operands, rank))
        return
    wide = [label_arrays.expand(labels, own, [axis]) for labels, own in zip(operands, shapes, strict=True)]
    common = np.broadcast_shapes(*([*w.shape[:axis], 1, *w.shape[axis + 1 :]] for w in wide))
    parts = [np.broadcast_to(w, [*common[:axis], w.shape[axis], *common[axis + 1 :]]) for w in wide]
    engine.set(node.output[0], label_arrays.compress(np.concatenate(parts, axis)))


def split(engine: Engine, node: onnx.NodeProto) -> None:
    labels = engine.labels(node.input[0])
    axis = attribute(node, "axis", 0) % labels.ndim
    if labels.shape[axis] == 1:
        for name in node.output:
            engine.set(name, labels)
        return
    ends = np.cumsum([0, *(engine.shape(name)[axis] for name in node.output)])
    for name, (start, end) in zip(node.output, pairwise(ends), strict=True):
        engine.set(name, label_arrays.compress(labels.take(range(start, end), axis)))


def slice_(engine: Engine, node: onnx.NodeProto) -> None:
    labels, shape = engine.labels(node.input[0]), engine.shape(node.input[0])
    for axis, (start, stop, step) in slices(engine, node).items():
        if labels.shape[axis] == 1:
            continue
        if step != 1:
            labels = label_arrays.unify(engine.ids, labels, [axis])
        else:
            labels = labels.take(range(*slice(start, stop).indices(shape[axis])), axis)
    engine.set(node.output[0], label_arrays.compress(labels) if labels.size else label_arrays.none(labels.ndim))


def slices(engine: Engine, node: onnx.NodeProto) -> dict[int, tuple[int, int, int]]:
    """Start, end and step of each axis that a Slice cuts."""
    rank = len(engine.shape(node.input[0]))
    if len(node.input) < 3:
        starts, ends = attribute(node, "starts", []), attribute(node, "ends", [])
        axes, steps = attribute(node, "axes", None), None
        if engine.labels(node.input[0]).any():
            raise Unknown  # before opset 10 the bounds were attributes
    else:
        values = [engine.folding.values.get(name) if name else None for name in node.input[1:]]
        if values[0] is None or values[1] is None:
            if engine.labels(node.input[0]).any():
                raise Unknown
            return {}
        starts, ends = values[0].tolist(), values[1].tolist()
        axes = values[2].tolist() if len(values) > 2 and values[2] is not None else None
        steps = values[3].tolist() if len(values) > 3 and values[3] is not None else None
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    return {axis % rank: (start, end, step) for axis, start, end, step in zip(axes, starts, ends, steps, strict=True)}


def gather(engine: Engine, node: onnx.NodeProto) -> None:
    """Entries at fixed places, or rows of a stored table at places that only a run knows (an embedding)."""
    if gather_rows(engine, node):
        return
    data, places = node.input
    labels, shape = engine.labels(data), engine.shape(data)
    axis = attribute(node, "axis", 0) % len(shape)
    index = engine.folding.values.get(places)
    if index is None and places in engine.constants:
        index = onnx.numpy_helper.to_array(engine.constants[places])
    rank = len(engine.shape(places))
    if labels.shape[axis] > 1 and index is None:
        labels = label_arrays.unify(engine.ids, labels, [axis])
    if labels.shape[axis] == 1:
        kept = list(labels.shape)
        kept[axis : axis + 1] = [1] * rank
        engine.set(node.output[0], labels.reshape(kept))
        return
    if index is None:
        raise Unknown
    if index.ndim > 1 and not _is_wild(engine, data):
        # Places of several axes cannot be renumbered.
        labels = label_arrays.unify(engine.ids, labels, [axis])
        kept = list(labels.shape)
        kept[axis : axis + 1] = [1] * rank
        engine.set(node.output[0], labels.reshape(kept))
        return
    engine.set(node.output[0], label_arrays.compress(labels.take(index % shape[axis], axis)))


def gather_nd(engine: Engine, node: onnx.NodeProto) -> None:
    """Whole slices at places in the leading axes; channels lie along the axes of the slices."""
    data, places = node.input
    if attribute(node, "batch_dims", 0) != 0:
        raise Unknown
    *picked, depth = engine.shape(places)
    labels = label_arrays.unify(engine.ids, engine.labels(data), range(depth))
    engine.set(node.output[0], labels.reshape([1] * len(picked) + list(labels.shape[depth:])))


def _is_wild(engine: Engine, name: str) -> bool:
    return name in engine.constants


def expand(engine: Engine, node: onnx.NodeProto) -> None:
    """Broadcasting to a target shape; what is repeated may be repeated less often."""
    shape, target = engine.shape(node.input[0]), engine.shape(node.output[0])
    labels = label_arrays.aligned(engine.labels(node.input[0]), len(target))
    old = (1,) * (len(target) - len(shape)) + shape
    repeated = [axis for axis in range(len(target)) if old[axis] == 1 and target[axis] > 1]
    if labels.any() or not repeated or math.prod(shape) > 1 or math.prod(target) > 1 << 20:
        engine.set(node.output[0], labels)
    else:
        engine.set(node.output[0], engine.ids.fresh(math.prod(target)).reshape(target))


def filled(engine: Engine, node: onnx.NodeProto) -> None:
    """ConstantOfShape: a tensor of any length wanted."""
    shape = engine.shape(node.output[0])
    if not 1 < math.prod(shape) <= 1 << 20:
        engine.set_none(node.output[0])
    else:
        engine.set(node.output[0], engine.ids.fresh(math.prod(shape)).reshape(shape))


def resize(engine: Engine, node: onnx.NodeProto) -> None:
    """Resize, Upsample, Tile: axes that change their length mix or repeat what lies along them."""
    old, new = engine.shape(node.input[0]), engine.shape(node.output[0])
    changed = [axis for axis, (before, after) in enumerate(zip(old, new, strict=True)) if before != after]
    engine.set(node.output[0], label_arrays.unify(engine.ids, engine.labels(node.input[0]), changed))


def pad(engine: Engine, node: onnx.NodeProto) -> None:
    """Channels that are added by padding stay."""
    old, new = engine.shape(node.input[0]), engine.shape(node.output[0])
    labels = engine.labels(node.input[0])
    pads = attribute(node, "pads", None)
    if pads is None:
        if node.input[1] not in engine.folding.values:
            raise Unknown
        pads = engine.folding.values[node.input[1]].tolist()
    axes = list(range(len(old)))
    if len(node.input) > 3 and node.input[3]:
        axes = [axis % len(old) for axis in engine.folding.values[node.input[3]].tolist()]
    around = {axis: (pads[index], pads[index + len(pads) // 2]) for index, axis in enumerate(axes)}
    for axis in label_arrays.varying(labels):
        before, after = around.get(axis, (0, 0))
        if before or after:
            if attribute(node, "mode", "constant") != "constant" or min(before, after) < 0:
                labels = label_arrays.unify(engine.ids, labels, [axis])
            else:
                widths = [(before, after) if other == axis else (0, 0) for other in range(labels.ndim)]
                labels = np.pad(labels, widths)
    if len(new) != labels.ndim:
        raise Unknown
    engine.set(node.output[0], labels)


def depth_to_space(engine: Engine, node: onnx.NodeProto) -> None:
    """Each channel of the result is made of block x block channels, which go together."""
    block, (_, channels, *_rest) = attribute(node, "blocksize", 1), engine.shape(node.input[0])
    vector = engine.vector(node.input[0], 1)
    first = attribute(node, "mode", "DCR") == "DCR"
    cube = vector.reshape((block * block, -1) if first else (channels // block**2, block * block))
    made: Labels = label_arrays.unify(engine.ids, cube, [0 if first else 1]).reshape(-1)
    engine.set(node.output[0], made.reshape(1, -1, 1, 1))


def space_to_depth(engine: Engine, node: onnx.NodeProto) -> None:
    block = attribute(node, "blocksize", 1)
    engine.set(node.output[0], np.tile(engine.vector(node.input[0], 1), block * block).reshape(1, -1, 1, 1))


def facts(engine: Engine, node: onnx.NodeProto) -> None:
    """Values that hold no channels: shapes, constants, ranges."""
    for name in node.output:
        engine.set_none(name)


_ALONE: dict[str, Rule] = {
    "Reshape": reshape,
    "Flatten": reshape,
    "Unsqueeze": reshape,
    "Squeeze": squeeze,
    "Transpose": transpose,
    "Concat": concat,
    "Split": split,
    "Slice": slice_,
    "Gather": gather,
    "GatherND": gather_nd,
    "Expand": expand,
    "ConstantOfShape": filled,
    "Resize": resize,
    "Upsample": resize,
    "Tile": resize,
    "Pad": pad,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
}
RULES: dict[str, Rule] = _ALONE | dict.fromkeys(("Shape", "Constant", "Range", "EyeLike"), facts)
