"""Functions that a model defines for itself, expanded into plain operators."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import NamedTuple

import onnx
from onnx import inliner

from compression.errors import ModelRejected
from compression.graph import walk
from compression.graph.limits import Limits

_MAX_FUNCTIONS = 10_000
_Key = tuple[str, str]


class _Size(NamedTuple):
    """What a function is once all that it calls is written out."""

    nodes: int
    bytes: int


def check_expansion(model: onnx.ModelProto, limits: Limits) -> None:
    """Refuse functions that call themselves, or that a few lines of calls blow up beyond the limits.

    Every call gets a copy of the body, its tensors included, and so do the calls inside it.

    Raises:
        ModelRejected: `invalid_model`, `too_many_nodes` or `model_too_large`.
    """
    if not model.functions:
        return
    if len(model.functions) > _MAX_FUNCTIONS:
        raise ModelRejected("too_many_nodes", f"The model defines more than {_MAX_FUNCTIONS} functions.")
    by_key = {(function.domain, function.name): function for function in model.functions}
    bodies = {key: [*_with_subgraphs(function.node)] for key, function in by_key.items()}
    sizes: dict[_Key, _Size] = {}
    called = {key: {_key(node) for node in body} & by_key.keys() for key, body in bodies.items()}
    try:
        order = [*TopologicalSorter(called).static_order()]
    except CycleError as error:
        name = error.args[1][0][1]
        raise ModelRejected("invalid_model", f"Function '{name}' calls itself, directly or through others.") from None
    for key in order:
        own = sum(node.ByteSize() for node in by_key[key].node)
        sizes[key] = _expanded(bodies[key], sizes, own)
    nodes = [node for graph, _ in walk.graphs(model) for node in graph.node]
    whole = _expanded(nodes, sizes, 0)
    if whole.nodes > limits.max_nodes:
        raise ModelRejected("too_many_nodes", f"Its functions expand to more than {limits.max_nodes} nodes.")
    if whole.bytes > limits.max_bytes:
        raise ModelRejected("model_too_large", f"Its functions expand to more than {limits.max_bytes} bytes.")


def _expanded(nodes: Iterable[onnx.NodeProto], sizes: Mapping[_Key, _Size], own_bytes: int) -> _Size:
    parts = [sizes.get(_key(node), _Size(1, 0)) for node in nodes]
    return _Size(sum(part.nodes for part in parts), own_bytes + sum(part.bytes for part in parts))


def inline(model: onnx.ModelProto) -> None:
    """Replace every call of a function of the model by the function's body, in place."""
    try:
        expanded = inliner.inline_local_functions(model)
    except (RuntimeError, ValueError, TypeError, onnx.checker.ValidationError) as error:
        raise ModelRejected("invalid_model", f"Its functions cannot be inlined: {str(error)[:200]}") from None
    model.CopyFrom(expanded)


def _key(node: onnx.NodeProto) -> _Key:
    return (node.domain, node.op_type)


def _with_subgraphs(body: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    pending = [*body]
    while pending:
        node = pending.pop()
        yield node
        for graph in walk.subgraphs(node):
            pending.extend(graph.node)
