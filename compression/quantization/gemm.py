"""Gemm with a stored weight as MatMul and Add, the form that integer and block-quantized products have."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import helper, numpy_helper

from compression.graph import walk


def to_matmul(model: onnx.ModelProto, names: Collection[str]) -> None:
    """Rewrite, in place, each named Gemm whose first input is not transposed and whose weight is its alone.

    `alpha * A @ B + beta * C` becomes `A @ (alpha * B) + beta * C` with a weight of the same name and a node of the
    same name; Gemms that do not fit this form are left as they are.
    """
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    uses: dict[str, int] = {}
    for node in walk.nodes(model):
        for name in node.input:
            uses[name] = uses.get(name, 0) + 1
    rewritten: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type == "Gemm" and node.name in names and _fits(node, stored, uses):
            rewritten.extend(_rewrite(node, stored))
        else:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            rewritten.append(copy)
    del graph.node[:]
    graph.node.extend(rewritten)


def _attributes(node: onnx.NodeProto) -> dict[str, float | int]:
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0} | given


def _fits(node: onnx.NodeProto, stored: dict[str, onnx.TensorProto], uses: dict[str, int]) -> bool:
    attributes = _attributes(node)
    if attributes["transA"] or node.input[1] not in stored or uses[node.input[1]] > 1:
        return False
    has_bias = len(node.input) > 2 and bool(node.input[2])
    return not has_bias or attributes["beta"] == 1.0 or (node.input[2] in stored and uses[node.input[2]] == 1)


def _rewrite(node: onnx.NodeProto, stored: dict[str, onnx.TensorProto]) -> list[onnx.NodeProto]:
    attributes = _attributes(node)
    weight = numpy_helper.to_array(stored[node.input[1]])
    _store(
        stored[node.input[1]], (weight.T if attributes["transB"] else weight) * weight.dtype.type(attributes["alpha"])
    )
    if len(node.input) < 3 or not node.input[2]:
        return [helper.make_node("MatMul", node.input[:2], node.output, node.name)]
    if attributes["beta"] != 1.0:
        bias = numpy_helper.to_array(stored[node.input[2]])
        _store(stored[node.input[2]], bias * bias.dtype.type(attributes["beta"]))
    product = f"{node.output[0]}_without_bias"
    return [
        helper.make_node("MatMul", node.input[:2], [product], node.name),
        helper.make_node("Add", [product, node.input[2]], node.output, f"{node.name}_bias"),
    ]


def _store(tensor: onnx.TensorProto, values: np.ndarray) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))
