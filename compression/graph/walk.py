"""Going over all parts of a graph, subgraphs included."""

from __future__ import annotations

from collections.abc import Iterator

import onnx


def graphs(model: onnx.ModelProto) -> Iterator[tuple[onnx.GraphProto, int]]:
    """Every graph with its depth: the main one (0), then those that nodes, of functions too, hold in attributes."""
    pending = [(model.graph, 0)]
    pending.extend((inner, 1) for function in model.functions for node in function.node for inner in subgraphs(node))
    while pending:
        graph, depth = pending.pop()
        yield graph, depth
        pending.extend((inner, depth + 1) for node in graph.node for inner in subgraphs(node))


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs in a node's own attributes, such as the branches of an If."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node, those of subgraphs and functions included."""
    for graph, _ in graphs(model):
        yield from graph.node
    for function in model.functions:
        yield from function.node


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every stored tensor: initializers and attributes, dense and the parts of sparse ones, functions included."""
    for graph, _ in graphs(model):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in nodes(model):
        yield from _attribute_tensors(node)


def _attribute_tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        sparse = [*attribute.sparse_tensors]
        if attribute.HasField("sparse_tensor"):
            sparse.append(attribute.sparse_tensor)
        for tensor in sparse:
            yield from (tensor.values, tensor.indices)


def display_name(node: onnx.NodeProto) -> str:
    """The node's name, or what it computes where it has none."""
    return node.name or f"{node.op_type}:{node.output[0] if node.output else ''}"
