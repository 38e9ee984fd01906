"""Pairs of QuantizeLinear and DequantizeLinear written into a float graph, by a plan."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from compression.quantization.aware.placement import Plan


def dequantized(name: str) -> str:
    """What a pair gives out, by the name of what it takes; graph outputs keep their own name instead."""
    return f"{name}_DequantizeLinear_Output"


def scale_name(name: str) -> str:
    return f"{name}_scale"


def zero_point_name(name: str) -> str:
    return f"{name}_zero_point"


def with_pairs(model: onnx.ModelProto, plan: Plan) -> onnx.ModelProto:
    """A copy of the model with a pair at every place of the plan, all with scale 1 and zero point 0.

    Weights and biases stay float initializers in front of their pairs, so that a module can be imported whose
    parameters they are. Names are those that ONNX Runtime's quantizers give.

    Args:
        model: A float model; nodes in topological order.
        plan: Where pairs go.
    """
    return _Writer(model, plan).write()


class _Writer:
    def __init__(self, model: onnx.ModelProto, plan: Plan) -> None:
        self._model = onnx.ModelProto()
        self._model.CopyFrom(model)
        self._plan = plan
        self._outputs = {value.name for value in model.graph.output}
        self._done: set[str] = set()

    def write(self) -> onnx.ModelProto:
        graph, plan = self._model.graph, self._plan
        nodes: list[onnx.NodeProto] = []
        for value in graph.input:
            nodes.extend(self._behind(value.name))
        for old in graph.node:
            node = onnx.NodeProto()
            node.CopyFrom(old)
            for position, name in enumerate(node.input):
                if name in plan.activations:
                    node.input[position] = name if name in self._outputs else dequantized(name)
            nodes.extend(self._before(node))
            for position, name in enumerate(node.output):
                if name in plan.activations and name in self._outputs:
                    node.output[position] = f"{name}_QuantizeLinear_Input"
            nodes.append(node)
            for name in old.output:
                nodes.extend(self._behind(name))
        del graph.node[:]
        graph.node.extend(nodes)
        return self._model

    def _before(self, layer: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """The pairs of a layer's weight and bias, which the layer is made to read."""
        plan = self._plan
        weight = plan.layers.get(layer.output[0])
        if weight is None:
            return
        if weight not in self._done:
            self._done.add(weight)
            axis = plan.weights[weight].axis
            yield from self._pair(weight, weight, dequantized(weight), np.int8(0), owner=weight, axis=axis)
        layer.input[:] = [dequantized(weight) if name == weight else name for name in layer.input]
        bias = plan.biases.get(layer.output[0])
        if bias is not None:
            yield from self._pair(
                bias.prefix, bias.initializer, dequantized(bias.prefix), np.int8(0), owner=bias.prefix, axis=0
            )
            layer.input[2] = dequantized(bias.prefix)

    def _behind(self, name: str) -> Iterator[onnx.NodeProto]:
        """The pair of an activation."""
        activation = self._plan.activations.get(name)
        if activation is None:
            return
        is_output = name in self._outputs
        source, result = (f"{name}_QuantizeLinear_Input", name) if is_output else (name, dequantized(name))
        yield from self._pair(name, source, result, np.uint8(0), owner=activation.owner)

    def _pair(
        self, name: str, source: str, result: str, zero: np.generic, *, owner: str, axis: int | None = None
    ) -> Iterator[onnx.NodeProto]:
        if owner == name:
            self._model.graph.initializer.extend(
                [
                    numpy_helper.from_array(np.array(1.0, np.float32), scale_name(name)),
                    numpy_helper.from_array(np.array(zero), zero_point_name(name)),
                ]
            )
        parameters = [scale_name(owner), zero_point_name(owner)]
        between = f"{name}_QuantizeLinear_Output"
        settings: dict[str, Any] = {} if axis is None else {"axis": axis}
        yield helper.make_node("QuantizeLinear", [source, *parameters], [between], f"{name}_QuantizeLinear", **settings)
        yield helper.make_node(
            "DequantizeLinear", [between, *parameters], [result], f"{name}_DequantizeLinear", **settings
        )
