"""Where in a model a name belongs: the graph itself, or a body inside one of its nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TypeAlias

import onnx

# The way from the main graph (empty) to a body: for each node on it, its first output and the attribute.
Scope: TypeAlias = tuple[str, ...]


def first_output(node: onnx.NodeProto) -> str:
    """The name by which a node is known: that of its first output that has one."""
    return next((name for name in node.output if name), "")


def inner_scope(scope: Scope, node: onnx.NodeProto, attribute: str) -> Scope:
    """The scope of a graph that a node holds in an attribute."""
    return (*scope, f"{first_output(node)}:{attribute}")


def scopes(graph: onnx.GraphProto, scope: Scope = ()) -> Iterator[tuple[Scope, onnx.GraphProto]]:
    """A graph and all graphs inside its nodes, each with its scope, outer ones first."""
    yield scope, graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from scopes(attribute.g, inner_scope(scope, node, attribute.name))


def identities(graph: onnx.GraphProto) -> dict[str, str]:
    """Outputs of Identity nodes and what they stand for: exporters put these behind initializers that they merged."""
    return {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "Identity" and node.domain in ("", "ai.onnx")
    }


def count_uses(model: onnx.ModelProto) -> Counter[str]:
    """How many times nodes and graph outputs read each value of the model, Identity nodes looked through.

    Values of the same name in two branches are counted together.
    """
    uses: Counter[str] = Counter()
    _count(model.graph, {}, uses)
    return uses


def _count(graph: onnx.GraphProto, outer: dict[str, str], uses: Counter[str]) -> None:
    alias = dict(outer)
    for output, source in identities(graph).items():
        alias[output] = alias.get(source, source)
    for node in graph.node:
        if not any(name in alias for name in node.output):
            uses.update(alias.get(name, name) for name in node.input if name)
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _count(attribute.g, alias, uses)
    uses.update(alias.get(value.name, value.name) for value in graph.output)
