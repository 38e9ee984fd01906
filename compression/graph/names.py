"""Names that a model gives to its parts, which end up in messages, reports and databases."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from compression.errors import ModelRejected
from compression.graph import walk

_LONGEST = 10_000


def check_names(model: onnx.ModelProto) -> None:
    """Refuse names that cannot be told, stored or shown.

    Raises:
        ModelRejected: `invalid_model` for a name with U+0000, of no valid UTF-8, or of more than 10,000 characters.
    """
    for name in _names(model):
        if isinstance(name, bytes):  # so protobuf gives what is no text
            raise ModelRejected("invalid_model", f"The name {name[:100]!r} in the model is no valid UTF-8.")
        if "\0" in name:
            raise ModelRejected("invalid_model", f"The name {name[:100]!r} in the model holds the character U+0000.")
        if len(name) > _LONGEST:
            raise ModelRejected(
                "invalid_model", f"A name in the model has more than {_LONGEST} characters: '{name[:100]}…'."
            )


def _names(model: onnx.ModelProto) -> Iterator[str | bytes]:
    yield from (model.producer_name, model.producer_version, model.domain)
    for opset in model.opset_import:
        yield opset.domain
    for entry in model.metadata_props:
        yield entry.key
    for function in model.functions:
        yield from (function.name, function.domain, *function.input, *function.output, *function.attribute)
        for node in function.node:
            yield from _of_node(node)
    for graph, _ in walk.graphs(model):
        yield graph.name
        for node in graph.node:
            yield from _of_node(node)
        for value in (*graph.input, *graph.output, *graph.value_info):
            yield value.name
            for axis in value.type.tensor_type.shape.dim:
                yield axis.dim_param
    for tensor in walk.tensors(model):
        yield tensor.name


def _of_node(node: onnx.NodeProto) -> Iterator[str | bytes]:
    yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
    for attribute in node.attribute:
        yield attribute.name
        yield attribute.ref_attr_name
