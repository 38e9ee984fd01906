"""Constants that spell out shapes, sizes and places, changed to what a smaller graph needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from compression.graph.weights import Array
from compression.pruning.channels.engine import attribute
from compression.pruning.channels.folding import Folding


class CannotPatch(Exception):
    """No constant can be found that would give the value wanted."""


class Patcher:
    """Gives values other contents by changing the constants behind them, in copies where others use them too.

    Args:
        folding: What is known of the smaller graph, up to the node that is looked at.
        made_by: The node behind each value.
        constants: The stored tensors.
        settled: Tells whether a value is the same whatever the batch, and so can become a constant itself.
    """

    def __init__(
        self,
        folding: Folding,
        made_by: Mapping[str, onnx.NodeProto],
        constants: Mapping[str, onnx.TensorProto],
        settled: Callable[[str], bool],
    ) -> None:
        self._folding, self._made_by, self._constants, self._settled = folding, made_by, constants, settled
        self._taken = {*made_by, *constants}
        self._done: dict[tuple[str, bytes], str] = {}
        self.new_constants: list[onnx.TensorProto] = []
        self.new_nodes: list[onnx.NodeProto] = []

    def constant(self, like: str, value: Array) -> str:
        """A new stored tensor, named after what it stands for."""
        name = self._name(like)
        tensor = numpy_helper.from_array(np.asarray(value, order="C"), name)
        self.new_constants.append(tensor)
        self._folding.put(tensor)
        return name

    def patched(self, name: str, wanted: Array) -> str:
        """The name of a value with the wanted contents.

        Raises:
            CannotPatch: when they do not follow from constants in a way that is understood.
        """
        wanted = np.asarray(wanted)
        present = self._folding.values.get(name)
        if present is not None and present.shape == wanted.shape and np.array_equal(present, wanted):
            return name
        key = name, wanted.tobytes()
        if key not in self._done:
            self._done[key] = self._changed(name, wanted)
        return self._done[key]

    def _changed(self, name: str, wanted: Array) -> str:
        node = self._made_by.get(name)
        if name in self._constants or (node is not None and node.op_type == "Constant") or self._settled(name):
            kind = self._folding.values[name].dtype if name in self._folding.values else np.dtype(np.int64)
            return self.constant(name, wanted.astype(kind))
        if node is None or node.op_type not in _INVERSES:
            raise CannotPatch
        inputs = list(node.input)
        _INVERSES[node.op_type](self, node, inputs, wanted)
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        del copy.input[:]
        copy.input.extend(inputs)
        copy.output[0] = self._name(name)
        copy.name = self._name(node.name) if node.name else ""
        self.new_nodes.append(copy)
        self._folding.visit(copy)
        value = self._folding.values.get(copy.output[0])
        if value is None or not np.array_equal(value, wanted):
            raise CannotPatch
        return str(copy.output[0])

    def _name(self, like: str) -> str:
        number = 0
        while f"{like}.pruned{number or ''}" in self._taken:
            number += 1
        self._taken.add(f"{like}.pruned{number or ''}")
        return f"{like}.pruned{number or ''}"

    def value(self, name: str) -> Array:
        """What a value is in the smaller graph."""
        found = self._folding.values.get(name)
        if found is None:
            raise CannotPatch
        return found


_Inverse = Callable[[Patcher, onnx.NodeProto, list[str], Array], None]


def _same(patcher: Patcher, _: onnx.NodeProto, inputs: list[str], wanted: Array) -> None:
    before = patcher.value(inputs[0])
    inputs[0] = patcher.patched(inputs[0], wanted.reshape(before.shape).astype(before.dtype))


def _concat(patcher: Patcher, _: onnx.NodeProto, inputs: list[str], wanted: Array) -> None:
    start = 0
    for position, name in enumerate(inputs):
        length = math.prod(patcher.value(name).shape)
        inputs[position] = patcher.patched(name, wanted[start : start + length])
        start += length


def _gather(patcher: Patcher, node: onnx.NodeProto, inputs: list[str], wanted: Array) -> None:
    before = patcher.value(inputs[0]).copy()
    if before.ndim != 1 or attribute(node, "axis", 0) != 0:
        raise CannotPatch
    before[patcher.value(inputs[1])] = wanted
    inputs[0] = patcher.patched(inputs[0], before)


def _arithmetic(solve: Callable[[Array, Array], Array], other: Callable[[Array, Array], Array]) -> _Inverse:
    """Change the right operand by `solve(left, wanted)`, or the left one by `other(right, wanted)`."""

    def inverse(patcher: Patcher, _: onnx.NodeProto, inputs: list[str], wanted: Array) -> None:
        left, right = (patcher.value(name) for name in inputs)
        if not (wanted.all() and left.all() and right.all()):
            raise CannotPatch
        try:
            solution = np.asarray(solve(left, wanted), right.dtype).reshape(right.shape)
            inputs[1] = patcher.patched(inputs[1], solution)
        except (CannotPatch, ValueError):
            try:
                solution = np.asarray(other(right, wanted), left.dtype).reshape(left.shape)
                inputs[0] = patcher.patched(inputs[0], solution)
            except ValueError:
                raise CannotPatch from None

    return inverse


_INVERSES: dict[str, _Inverse] = {
    "Identity": _same,
    "Cast": _same,
    "Unsqueeze": _same,
    "Squeeze": _same,
    "Reshape": _same,
    "Concat": _concat,
    "Gather": _gather,
    "Mul": _arithmetic(lambda left, wanted: wanted // left, lambda right, wanted: wanted // right),
    "Div": _arithmetic(lambda left, wanted: left // wanted, lambda right, wanted: right * wanted),
    "Add": _arithmetic(lambda left, wanted: wanted - left, lambda right, wanted: wanted - right),
    "Sub": _arithmetic(lambda left, wanted: left - wanted, lambda right, wanted: wanted + right),
}
