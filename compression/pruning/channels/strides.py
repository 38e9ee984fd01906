"""Gathers that only reshape, as torch's exporter writes `as_strided`, turned into plain reshapes."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from compression.graph import walk
from compression.pruning.channels.engine import attribute
from compression.pruning.channels.folding import OTHER, Folding


def without_strides(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with a Reshape for each Gather that takes all elements of a flattened value in order.

    The places are computed from the batch at run time, so no channel would follow through them.
    """
    made_by = {name: node for node in model.graph.node for name in node.output}
    candidates = [node for node in model.graph.node if _flattens(node, made_by)]
    if not candidates:
        return model
    usual, other = Folding(model), Folding(model, OTHER)
    for node in model.graph.node:
        usual.visit(node)
        other.visit(node)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    wanted = {node.output[0] for node in candidates}
    for node in copy.graph.node:
        if node.output[0] not in wanted:
            continue
        shapes = [_shape_if_in_order(folding, node) for folding in (usual, other)]
        if shapes[0] is None or shapes[1] is None or len(shapes[0]) != len(shapes[1]):
            continue
        target = [one if one == two else -1 for one, two in zip(*shapes, strict=True)]
        if target.count(-1) > 1:
            continue
        name = f"{node.output[0]}.shape"
        copy.graph.initializer.append(numpy_helper.from_array(np.array(target, np.int64), name))
        node.CopyFrom(helper.make_node("Reshape", [made_by[node.input[0]].input[0], name], node.output, node.name))
    _drop_unused(copy, {name for node in model.graph.node for name in node.input})
    return copy


def _flattens(node: onnx.NodeProto, made_by: dict[str, onnx.NodeProto]) -> bool:
    if node.op_type != "Gather" or attribute(node, "axis", 0) != 0 or node.input[1] not in made_by:
        return False
    maker = made_by.get(node.input[0])
    return maker is not None and maker.op_type == "Reshape"


def _shape_if_in_order(folding: Folding, node: onnx.NodeProto) -> tuple[int, ...] | None:
    """The shape of the places where they are 0, 1, 2, … up to the length of what is gathered from."""
    places, data = folding.values.get(node.input[1]), folding.shape(node.input[0])
    if places is None or data is None or len(data) != 1 or places.size != data[0]:
        return None
    return places.shape if np.array_equal(places.reshape(-1), np.arange(places.size)) else None


def _drop_unused(model: onnx.ModelProto, used_before: set[str]) -> None:
    """Remove nodes whose results nobody uses any more, those that computed the places among them."""
    used = {value.name for value in model.graph.output}
    kept = []
    for node in reversed(model.graph.node):
        if any(name in used for name in node.output) or any(one.HasField("g") or one.graphs for one in node.attribute):
            kept.append(node)
            used.update(node.input)
            used.update(name for one in node.attribute for inner in one.g.node for name in inner.input)
    walk.set_nodes(model.graph, reversed(kept))
    for index in reversed(range(len(model.graph.initializer))):
        name = model.graph.initializer[index].name
        if name not in used and name in used_before:
            del model.graph.initializer[index]
