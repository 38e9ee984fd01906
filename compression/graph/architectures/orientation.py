"""Matrices as ONNX multiplies by them: stored transposed, instead of transposed on the way to every product.

`torch.nn.Linear` keeps (out, in) and its export multiplies by a `Transpose` of that. Quantization looks for stored
matrices, so the transposition is done once, under the same name, and undone where a `state_dict` is written.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

import numpy as np
import onnx
from onnx import numpy_helper

from compression.graph import walk


def store_transposed(model: onnx.ModelProto, names: Collection[str]) -> dict[str, tuple[int, ...]]:
    """Fold the `Transpose` nodes of weights that are used in no other way, in place.

    Args:
        model: A graph whose weights are initializers.
        names: The initializers that may change.

    Returns:
        For each initializer that changed, the permutation that was applied to its axes.
    """
    users = defaultdict[str, list[onnx.NodeProto]](list)
    for node in walk.nodes(model):
        for name in node.input:
            users[name].append(node)
    outputs = {value.name for value in model.graph.output}
    top = {node.output[0] for node in model.graph.node if node.op_type == "Transpose"}
    changed: dict[str, tuple[int, ...]] = {}
    replaced: dict[str, str] = {}
    for tensor in model.graph.initializer:
        nodes = users[tensor.name]
        if tensor.name not in names or not nodes or not all(node.op_type == "Transpose" for node in nodes):
            continue
        permutations = {_permutation(node, len(tensor.dims)) for node in nodes}
        results = [node.output[0] for node in nodes]
        if len(permutations) > 1 or not top.issuperset(results) or not outputs.isdisjoint(results):
            continue
        changed[tensor.name] = permutations.pop()
        array = numpy_helper.to_array(tensor).transpose(changed[tensor.name])
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
        replaced |= dict.fromkeys(results, tensor.name)
    _replace(model, replaced)
    return changed


def _permutation(node: onnx.NodeProto, rank: int) -> tuple[int, ...]:
    given = next((tuple(attribute.ints) for attribute in node.attribute if attribute.name == "perm"), None)
    return tuple(reversed(range(rank))) if given is None else given


def _replace(model: onnx.ModelProto, replaced: dict[str, str]) -> None:
    for node in walk.nodes(model):
        for position, name in enumerate(node.input):
            if name in replaced:
                node.input[position] = replaced[name]
    nodes = model.graph.node
    for index in reversed(range(len(nodes))):
        if nodes[index].op_type == "Transpose" and nodes[index].output[0] in replaced:
            del nodes[index]
