"""Vectors that nodes share only because they are equal, as exporters store them, told apart and joined again."""

from __future__ import annotations

import math
from collections import Counter

import onnx

from compression.graph import walk
from compression.graph.load import FLOAT_TYPES


def told_apart(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The model with a vector of its own for each use, and the first name of each copy.

    Exporters store equal biases and scales once. Layers that share one would have to lose the same channels.
    """
    inside = {name for graph, depth in walk.graphs(model) if depth for node in graph.node for name in node.input}
    uses = Counter(name for node in model.graph.node for name in node.input)
    taken = {tensor.name for tensor in model.graph.initializer} | {o for n in model.graph.node for o in n.output}
    overridable = {value.name for value in model.graph.input} if model.ir_version >= 4 else set()
    shared = {
        tensor.name: tensor
        for tensor in model.graph.initializer
        if uses[tensor.name] > 1
        and tensor.name not in inside | overridable
        and tensor.data_type in FLOAT_TYPES
        and 1 < math.prod(tensor.dims) == max(tensor.dims)
    }
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    first_names: dict[str, str] = {}
    seen: Counter[str] = Counter()
    for node in copy.graph.node:
        for position, name in enumerate(node.input):
            if name not in shared:
                continue
            seen[name] += 1
            if seen[name] > 1:
                own = _free(f"{name}.{seen[name]}", taken)
                first_names[own] = name
                node.input[position] = own
                copy.graph.initializer.append(_renamed(shared[name], own))
                if model.ir_version < 4:
                    copy.graph.input.append(
                        onnx.helper.make_tensor_value_info(own, shared[name].data_type, shared[name].dims)
                    )
    return copy, first_names


def _renamed(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    copy = onnx.TensorProto()
    copy.CopyFrom(tensor)
    copy.name = name
    return copy


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def joined(model: onnx.ModelProto, first_names: dict[str, str]) -> None:
    """Store copies that are equal once again, in place."""
    contents: dict[tuple[str, bytes], str] = {}
    renamed: dict[str, str] = {}
    for tensor in model.graph.initializer:
        first = first_names.get(tensor.name, tensor.name)
        if first in first_names.values():
            renamed[tensor.name] = contents.setdefault((first, _renamed(tensor, "").SerializeToString()), tensor.name)
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = renamed.get(name, name)
    for things in (model.graph.initializer, model.graph.input):
        for index in reversed(range(len(things))):
            if renamed.get(things[index].name, things[index].name) != things[index].name:
                del things[index]
