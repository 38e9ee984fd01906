"""Going over all parts of a graph, subgraphs included."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

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


def sparse_tensors(model: onnx.ModelProto) -> Iterator[onnx.SparseTensorProto]:
    """Every sparse tensor, in initializers and attributes."""
    for graph, _ in graphs(model):
        yield from graph.sparse_initializer
    for node in nodes(model):
        for attribute in node.attribute:
            yield from attribute.sparse_tensors
            if attribute.HasField("sparse_tensor"):
                yield attribute.sparse_tensor


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


def defined(graph: onnx.GraphProto) -> Iterator[str]:
    """Names of the values that a graph defines itself: inputs, initializers and outputs of its nodes."""
    yield from (named.name for named in (*graph.input, *graph.initializer))
    yield from (name for node in graph.node for name in node.output if name)


def rename_values(model: onnx.ModelProto, new: Mapping[str, str]) -> None:
    """Give values other names, in place, wherever they are defined or read; no new name may be taken."""
    for graph, _ in graphs(model):
        for named in (*graph.initializer, *graph.value_info, *graph.input, *graph.output):
            named.name = new.get(named.name, named.name)
        for node in graph.node:
            for names in (node.input, node.output):
                names[:] = [new.get(name, name) for name in names]


def display_name(node: onnx.NodeProto) -> str:
    """The node's name, or what it computes where it has none."""
    return node.name or f"{node.op_type}:{node.output[0] if node.output else ''}"


def integer(node: onnx.NodeProto, name: str, default: int = 0) -> int:
    """The value of an integer attribute."""
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), default)


def real(node: onnx.NodeProto, name: str, default: float = 0.0) -> float:
    """The value of a float attribute."""
    return next((float(attribute.f) for attribute in node.attribute if attribute.name == name), default)


def set_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Let a graph have these nodes, some of its own among them, in this order."""
    # Copies, since emptying the list takes the graph's own nodes away from whoever holds them.
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
