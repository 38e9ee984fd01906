"""Gemm in the forms that quantizers handle: with a plain bias, or as MatMul and Add."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import numpy as np
import onnx
from onnx import helper, numpy_helper

from compression.graph import walk
from compression.graph.stored import values


def with_plain_biases(model: onnx.ModelProto) -> list[str]:
    """Give every Gemm a stored bias of one axis that is taken as it is, in place.

    ONNX Runtime's quantizer applies `beta` twice, and runtimes take a quantized bias for one number an output channel.

    Returns:
        Names of the Gemms whose bias cannot be brought into this form, since it is computed or differs by row.
    """
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    unfit = []
    for node in model.graph.node:
        if node.op_type != "Gemm" or _bias(node) is None:
            continue
        bias = stored.get(node.input[2])
        beta = walk.real(node, "beta", 1.0)
        channels = _channels(node, stored)
        if bias is None:
            if beta != 1.0:
                unfit.append(node.name)
        elif channels is None or (len(bias.dims) == 2 and bias.dims[0] != 1):
            unfit.append(node.name)
        elif beta != 1.0 or list(bias.dims) != [channels]:
            whole = values(bias)
            plain = np.broadcast_to(whole * whole.dtype.type(beta), (1, channels))[0]
            # A bias of its own: others may use the stored one.
            node.input[2] = f"{node.output[0]}_bias"
            model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(plain), node.input[2]))
            _clear(node, "beta")
    return unfit


def to_matmul(model: onnx.ModelProto, names: Collection[str]) -> None:
    """Rewrite, in place, each named Gemm whose first input is not transposed and whose weight is its alone.

    `alpha * A @ B + beta * C` becomes `A @ (alpha * B) + beta * C` with a weight of the same name and a node of the
    same name; Gemms that do not fit this form are left as they are.
    """
    with_plain_biases(model)
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    uses = Counter(name for node in walk.nodes(model) for name in node.input)
    rewritten: list[onnx.NodeProto] = []
    for node in graph.node:
        fits = (
            node.op_type == "Gemm"
            and node.name in names
            and uses[node.input[1]] == 1
            and node.input[1] in stored
            and not walk.integer(node, "transA")
            and (_bias(node) is None or walk.real(node, "beta", 1.0) == 1.0)
        )
        if fits:
            rewritten.extend(_product_and_sum(node, stored[node.input[1]]))
        else:
            rewritten.append(node)
    walk.set_nodes(graph, rewritten)


def _product_and_sum(node: onnx.NodeProto, weight: onnx.TensorProto) -> list[onnx.NodeProto]:
    whole = numpy_helper.to_array(weight)
    oriented = whole.T if walk.integer(node, "transB") else whole
    scaled = np.ascontiguousarray(oriented * whole.dtype.type(walk.real(node, "alpha", 1.0)))
    weight.CopyFrom(numpy_helper.from_array(scaled, weight.name))
    bias = _bias(node)
    if bias is None:
        return [helper.make_node("MatMul", node.input[:2], node.output, node.name)]
    product = f"{node.output[0]}_without_bias"
    return [
        helper.make_node("MatMul", node.input[:2], [product], node.name),
        helper.make_node("Add", [product, bias], node.output, f"{node.name}_bias"),
    ]


def _bias(node: onnx.NodeProto) -> str | None:
    return node.input[2] if len(node.input) > 2 and node.input[2] else None


def _channels(node: onnx.NodeProto, stored: dict[str, onnx.TensorProto]) -> int | None:
    weight = stored.get(node.input[1])
    if weight is None or len(weight.dims) != 2:
        return None
    return int(weight.dims[0 if walk.integer(node, "transB") else 1])


def _clear(node: onnx.NodeProto, name: str) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)
