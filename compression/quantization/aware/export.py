"""The trained module's whole numbers and scales in the graph's pairs."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import helper, numpy_helper

from compression.graph import walk
from compression.quantization.aware.fake_quant import bias_levels, quantize
from compression.quantization.aware.insert import Quantizers
from compression.quantization.aware.pairs import scale_name, zero_point_name
from compression.quantization.aware.placement import Plan


@torch.no_grad()
def filled(model: onnx.ModelProto, plan: Plan, quantizers: Quantizers) -> onnx.ModelProto:
    """A copy of a graph with pairs in which weights are int8, biases int32, and all scales are the module's.

    Whole numbers of fewer than 8 bits lie in bytes, weights in int8 and activations in uint8, so that integer kernels
    of 8 bits run them. An activation's numbers are bounded by an integer Clip inside its pair, which leaves the pair's
    two halves where runtimes look for them.

    Args:
        model: With pairs, and with the values of the module.
        plan: The plan of both.
        quantizers: The module's.
    """
    return _Filling(model, plan, quantizers).result()


class _Filling:
    def __init__(self, model: onnx.ModelProto, plan: Plan, quantizers: Quantizers) -> None:
        self._model = onnx.ModelProto()
        self._model.CopyFrom(model)
        self._plan = plan
        self._quantizers = quantizers
        self._new: dict[str, npt.NDArray[np.generic]] = {}

    def result(self) -> onnx.ModelProto:
        graph = self._model.graph
        nodes = {node.name: node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")}
        gone: set[str] = set()
        for name, weight in self._plan.weights.items():
            self._weight(name, weight.axis)
            gone.add(self._unquantized(nodes, name))
        for node, bias in self._plan.biases.items():
            self._bias(node, bias.prefix, bias.weight)
            gone.add(self._unquantized(nodes, bias.prefix))
        kept = [node for node in graph.node if node.name not in gone]
        clips = []
        for name, activation in self._plan.activations.items():
            if not activation.is_own:
                continue
            scale, zero = self._quantizers.activations[name].parameters_now()
            self._new[scale_name(name)] = scale.cpu().numpy().astype(np.float32)
            self._new[zero_point_name(name)] = zero.cpu().numpy().astype(np.uint8)
            if activation.bits < 8:
                clips.append(self._clip(name, activation.bits, nodes[f"{name}_DequantizeLinear"]))
        walk.set_nodes(graph, (*kept, *clips))
        self._store()
        self._without_idle_clips()
        return self._model

    def _weight(self, name: str, axis: int | None) -> None:
        quantizer, tensor = self._quantizers.weights[name], self._quantizers.tensors[name]
        scale = quantizer.scale(tensor)
        numbers = quantize(tensor.float(), scale, 0.0, quantizer.grid).cpu().numpy().astype(np.int8)
        flat = scale.cpu().numpy().astype(np.float32).reshape(() if axis is None else (-1,))
        self._new[f"{name}_quantized"] = numbers
        self._new[scale_name(name)] = flat
        self._new[zero_point_name(name)] = np.zeros(flat.shape, np.int8)

    def _bias(self, node: str, prefix: str, weight: str) -> None:
        scale = self._quantizers.biases[node].scale(self._quantizers.tensors[weight])
        numbers = bias_levels(self._quantizers.tensors[node], scale).cpu().numpy().astype(np.int32)
        self._new[f"{prefix}_quantized"] = numbers
        self._new[scale_name(prefix)] = scale.cpu().numpy().astype(np.float32)
        self._new[zero_point_name(prefix)] = np.zeros(scale.shape, np.int32)

    def _unquantized(self, nodes: dict[str, onnx.NodeProto], name: str) -> str:
        """Let the second half of a pair read stored whole numbers; the name of the first, which has nothing to do."""
        nodes[f"{name}_DequantizeLinear"].input[0] = f"{name}_quantized"
        return f"{name}_QuantizeLinear"

    def _clip(self, name: str, bits: int, second: onnx.NodeProto) -> onnx.NodeProto:
        low, high = f"{name}_Clip_lowest", f"{name}_Clip_highest"
        self._new[low] = np.array(0, np.uint8)
        self._new[high] = np.array(2**bits - 1, np.uint8)
        clip = helper.make_node("Clip", [second.input[0], low, high], [f"{name}_quantized"], f"{name}_Clip")
        second.input[0] = clip.output[0]
        return clip

    def _store(self) -> None:
        graph = self._model.graph
        stays = [tensor for tensor in graph.initializer if tensor.name not in self._new]
        made = [numpy_helper.from_array(np.asarray(values), name) for name, values in self._new.items()]
        del graph.initializer[:]
        graph.initializer.extend([*stays, *made])

    def _without_idle_clips(self) -> None:
        """Take out each float Clip whose bounds lie beyond what the pair behind it can hold.

        Nothing changes in the numbers, and the layer before it then meets its pair, as integer kernels need it.
        """
        graph = self._model.graph
        stored = {tensor.name: tensor for tensor in graph.initializer}
        uses = Counter(name for node in walk.nodes(self._model) for name in node.input)
        uses.update(value.name for value in graph.output)
        producers = {name: node for node in graph.node for name in node.output}
        idle = []
        for name, activation in self._plan.activations.items():
            clip = producers.get(name)
            if clip is None or clip.op_type != "Clip" or not activation.is_own or uses[name] != 1:
                continue
            bounds = [stored.get(bound) if bound else None for bound in (*clip.input[1:], "", "")][:2]
            if clip.input[0] in producers and uses[clip.input[0]] == 1 and self._holds(name, clip, bounds):
                idle.append(clip)
                producers[clip.input[0]].output[:] = [
                    name if output == clip.input[0] else output for output in producers[clip.input[0]].output
                ]
        for node in idle:
            graph.node.remove(node)

    def _holds(self, name: str, clip: onnx.NodeProto, bounds: list[onnx.TensorProto | None]) -> bool:
        if any(tensor is None for tensor, given in zip(bounds, clip.input[1:], strict=False) if given):
            return False
        grid = self._quantizers.activations[name].grid
        scale, zero = (float(tensor) for tensor in self._quantizers.activations[name].parameters_now())
        low, high = (None if tensor is None else float(numpy_helper.to_array(tensor)) for tensor in bounds)
        reaches_low = low is None or round(low / scale) + zero <= grid.low
        return reaches_low and (high is None or round(high / scale) + zero >= grid.high)


def layers_of(plan: Plan) -> list[dict[str, object]]:
    """What the plan does to each weight, for the report."""
    return [
        {
            "name": name,
            "shape": list(weight.weight.shape),
            "nodes": list(weight.weight.nodes),
            "bits": weight.bits,
            "scales": 1 if weight.axis is None else weight.weight.shape[weight.axis],
        }
        for name, weight in plan.weights.items()
    ]
