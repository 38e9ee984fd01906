"""Functions that a model defines for itself, expanded into plain operators."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx
from onnx import inliner

from compression.errors import ModelRejected
from compression.graph import walk
from compression.graph.limits import Limits

_Key = tuple[str, str]


def check_expansion(model: onnx.ModelProto, limits: Limits) -> None:
    """Refuse functions that call themselves, or that a few lines of calls blow up beyond the node limit.

    Raises:
        ModelRejected: `invalid_model` or `too_many_nodes`.
    """
    bodies = {(function.domain, function.name): [*_with_subgraphs(function.node)] for function in model.functions}
    sizes: dict[_Key, int] = {}
    remaining = dict(bodies)
    while remaining:
        # A function can be sized once all that it calls is; when none can, they call each other in a circle.
        ready = [key for key, body in remaining.items() if all(_key(node) not in remaining for node in body)]
        if not ready:
            name = next(iter(remaining))[1]
            raise ModelRejected("invalid_model", f"Function '{name}' calls itself, directly or through others.")
        for key in ready:
            sizes[key] = sum(sizes.get(_key(node), 1) for node in remaining.pop(key))
    if sum(sizes.get(_key(node), 1) for graph, _ in walk.graphs(model) for node in graph.node) > limits.max_nodes:
        raise ModelRejected("too_many_nodes", f"Its functions expand to more than {limits.max_nodes} nodes.")


def inline(model: onnx.ModelProto) -> None:
    """Replace every call of a function of the model by the function's body, in place."""
    try:
        expanded = inliner.inline_local_functions(model)
    except (RuntimeError, ValueError, TypeError) as error:
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
