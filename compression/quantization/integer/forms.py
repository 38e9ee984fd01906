"""Nodes rewritten into operators that have integer kernels; the values that they compute stay the same."""

from __future__ import annotations

from collections import Counter

import onnx
from onnx import helper, numpy_helper

from compression.graph import shapes, walk
from compression.graph.shapes import KnownShape


def with_integer_forms(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which means over all positions are pooling, and products of matrices with a bias are plain Gemm.

    ReduceMean has no integer kernel, GlobalAveragePool has; Gemm adds its bias in the kernel, where a MatMul's would be
    a sum of floats behind it, but knows no factor of the product. Names of nodes, weights and values stay.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    known = shapes.infer(model)
    stored = {tensor.name: tensor for tensor in result.graph.initializer}
    uses = Counter(name for node in walk.nodes(result) for name in node.input)
    uses.update(value.name for value in result.graph.output)
    readers = {name: node for node in result.graph.node for name in node.input}
    nodes: list[onnx.NodeProto] = []
    gone: set[str] = set()
    for node in result.graph.node:
        if node.output and node.output[0] in gone:
            continue
        if node.op_type == "ReduceMean" and _is_over_positions(node, known, stored):
            nodes.extend(_pooling(node))
        elif node.op_type == "MatMul" and uses[node.output[0]] == 1 and node.output[0] in readers:
            total = readers[node.output[0]]
            bias = _bias(node, total, known, stored)
            if bias is None:
                nodes.append(node)
            else:
                gone.add(total.output[0])
                nodes.append(helper.make_node("Gemm", [*node.input, bias], total.output, node.name))
        else:
            nodes.append(node)
    for node in nodes:
        if node.op_type == "Gemm" and node.input[1] in stored and uses[node.input[1]] == 1:
            _take_in_factor(node, stored[node.input[1]])
    walk.set_nodes(result.graph, nodes)
    return result


def _take_in_factor(node: onnx.NodeProto, weight: onnx.TensorProto) -> None:
    """Multiply a Gemm's factor of the product into its weight, in place: integer kernels know none."""
    alpha = walk.real(node, "alpha", 1.0)
    if alpha == 1.0:
        return
    values = numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array(values * values.dtype.type(alpha), weight.name))
    kept = [attribute for attribute in node.attribute if attribute.name != "alpha"]
    del node.attribute[:]
    node.attribute.extend(kept)


def _is_over_positions(node: onnx.NodeProto, known: dict[str, KnownShape], stored: dict[str, onnx.TensorProto]) -> bool:
    """Whether a mean runs over all axes from the third on of something that has channels."""
    shape = known.get(node.input[0])
    if shape is None or len(shape.axes) < 3:
        return False
    axes = next((list(attribute.ints) for attribute in node.attribute if attribute.name == "axes"), None)
    if axes is None and len(node.input) > 1 and node.input[1] in stored:
        axes = numpy_helper.to_array(stored[node.input[1]]).reshape(-1).tolist()
    rank = len(shape.axes)
    return axes is not None and sorted(axis % rank for axis in axes) == list(range(2, rank))


def _pooling(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    if walk.integer(node, "keepdims", 1):
        return [helper.make_node("GlobalAveragePool", node.input[:1], node.output, node.name)]
    pooled = f"{node.output[0]}_pooled"
    return [
        helper.make_node("GlobalAveragePool", node.input[:1], [pooled], node.name),
        helper.make_node("Flatten", [pooled], node.output, f"{node.name}_flatten"),
    ]


def _bias(
    product: onnx.NodeProto, total: onnx.NodeProto, known: dict[str, KnownShape], stored: dict[str, onnx.TensorProto]
) -> str | None:
    """The stored bias that a sum adds to a product of a matrix with a stored matrix; None where it is no such sum."""
    if total.op_type != "Add" or product.input[1] not in stored or product.input[0] in stored:
        return None
    weight = stored[product.input[1]]
    left = known.get(product.input[0])
    bias = next((stored[name] for name in total.input if name in stored), None)
    if left is None or len(left.axes) != 2 or len(weight.dims) != 2 or bias is None:
        return None
    fits = list(bias.dims) == [weight.dims[1]] and bias.data_type == weight.data_type == onnx.TensorProto.FLOAT
    return bias.name if fits else None
