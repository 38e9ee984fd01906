"""A float graph rewritten by a plan: pairs of QuantizeLinear and DequantizeLinear, and weights as whole numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from compression.graph import walk
from compression.quantization.integer.codes import Codes
from compression.quantization.integer.gates import Cut
from compression.quantization.integer.plan import Anatomy, Plan
from compression.quantization.integer.ranges import Parameters

Array = npt.NDArray[Any]

# From this operator set on, ONNX's own pairs hold 16 bits; before it, those of ONNX Runtime's domain do.
_OPSET_OF_16_BITS = 21
_DOMAIN = "com.microsoft"


@dataclass(frozen=True)
class Quantizer:
    """How one activation becomes whole numbers.

    Attributes:
        parameters: Scale and zero point.
        dtype: `uint8`, `int8`, `uint16` or `int16`.
    """

    parameters: Parameters
    dtype: str

    @property
    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest value that the whole numbers stand for."""
        info = np.iinfo(self.dtype)
        low, high = (
            (bound - self.parameters.zero_point) * self.parameters.scale for bound in (int(info.min), int(info.max))
        )
        return low, high


@dataclass(frozen=True)
class Bias:
    """A bias as kernels add it: multiples of the activation's scale times the weight's.

    Attributes:
        numbers: (channels,) int32.
        scales: (channels,) or (), float32.
    """

    numbers: npt.NDArray[np.int32]
    scales: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Contents:
    """What fills a plan's places.

    Attributes:
        activations: By the value that owns the scale.
        weights: By initializer; those of layers and of tables.
        biases: By the node name of the layer.
        tables: Names of the nodes that look rows up in a weight.
        cuts: What hard sigmoids do to the numbers of their inputs, by node name.
        unsigned_weights: Store weights as uint8 around 128 instead of int8.
    """

    activations: Mapping[str, Quantizer]
    weights: Mapping[str, Codes]
    biases: Mapping[str, Bias]
    tables: frozenset[str]
    cuts: Mapping[str, Cut]
    unsigned_weights: bool = False


def write(anatomy: Anatomy, plan: Plan, contents: Contents) -> onnx.ModelProto:
    """The graph in integers. Names of new tensors and nodes are those that ONNX Runtime's quantizer gives."""
    return _Writer(anatomy, plan, contents).model()


def is_idle(cut: onnx.NodeProto, constants: Mapping[str, Array], quantizer: Quantizer) -> bool:
    """Whether a Relu or Clip changes nothing that the pair behind it would not change in the same way."""
    scale, zero_point = quantizer.parameters.scale, quantizer.parameters.zero_point
    info = np.iinfo(quantizer.dtype)
    bounds: list[Array | float | None]
    if cut.op_type == "Relu":
        bounds = [0.0, None]
    else:
        named = [*cut.input[1:], "", ""][:2]
        if any(name and name not in constants for name in named):
            return False
        bounds = [constants[name] if name else None for name in named]
    low, high = (None if bound is None else np.rint(float(bound) / scale) + zero_point for bound in bounds)
    return (low is None or low <= info.min) and (high is None or high >= info.max)


class _Writer:
    def __init__(self, anatomy: Anatomy, plan: Plan, contents: Contents) -> None:
        self._source = anatomy.model
        self._plan = plan
        self._contents = contents
        self._outputs = {value.name for value in self._source.graph.output}
        self._nodes: list[onnx.NodeProto] = []
        self._stored: list[onnx.TensorProto] = []
        self._done: set[str] = set()
        self._biases: dict[str, int] = {}
        self._opset = next((one.version for one in self._source.opset_import if one.domain in ("", "ai.onnx")), 13)
        self._uses_domain = False
        self._removed, self._renamed = self._idle_cuts()

    def _idle_cuts(self) -> tuple[set[str], dict[str, str]]:
        """Names of the nodes that go, and what their inputs are called from then on."""
        if not self._plan.cuts:
            return set(), {}
        nodes = {node.name: node for node in self._source.graph.node}
        wanted = {name for cut in self._plan.cuts.values() for name in nodes[cut].input[1:] if name}
        constants = {
            tensor.name: numpy_helper.to_array(tensor)
            for tensor in self._source.graph.initializer
            if tensor.name in wanted
        }
        removed, renamed = set(), {}
        for value, name in self._plan.cuts.items():
            quantizer = self._contents.activations[self._plan.owners[value]]
            if is_idle(nodes[name], constants, quantizer):
                removed.add(name)
                renamed[nodes[name].input[0]] = value
        return removed, renamed

    def model(self) -> onnx.ModelProto:
        source = self._source.graph
        for value in source.input:
            self._pair_behind(value.name)
        for old in source.node:
            if old.name in self._removed:
                continue
            if old.name in self._contents.cuts:
                self._cut(old, self._contents.cuts[old.name])
                continue
            node = onnx.NodeProto()
            node.CopyFrom(old)
            layer = self._plan.layers.get(old.name)
            for position, name in enumerate(old.input):
                node.input[position] = self._read(old, name)
            if layer is not None:
                node.input[list(old.input).index(layer.weight)] = self._weight(layer.weight)
                if old.name in self._contents.biases:
                    node.input[2:] = [self._bias(old.name, layer.bias or f"{layer.output}_bias")]
            elif old.name in self._contents.tables:
                self._lookup(node)
                continue
            self._emit(node)
        return self._finish()

    def _emit(self, node: onnx.NodeProto) -> None:
        """Put a node, under the names that its outputs have from now on, and the pairs of these."""
        outputs = [self._renamed.get(name, name) for name in node.output]
        node.output[:] = [f"{name}_QuantizeLinear_Input" if self._is_rounded_output(name) else name for name in outputs]
        self._nodes.append(node)
        for name in outputs:
            self._pair_behind(name)

    def _cut(self, gate: onnx.NodeProto, cut: Cut) -> None:
        """A hard sigmoid: the numbers of its input, cut off and read with another scale."""
        value = gate.output[0]
        self._store(f"{value}_scale", np.float32(cut.parameters.scale))
        self._store(f"{value}_zero_point", np.uint8(cut.parameters.zero_point))
        self._store(f"{value}_lowest", np.uint8(cut.low))
        self._store(f"{value}_highest", np.uint8(cut.high))
        numbers = f"{value}_numbers"
        inputs = [f"{gate.input[0]}_QuantizeLinear_Output", f"{value}_lowest", f"{value}_highest"]
        self._nodes.append(helper.make_node("Clip", inputs, [numbers], gate.name))
        parts = [numbers, f"{value}_scale", f"{value}_zero_point"]
        self._nodes.append(self._dequantize(value, parts, self._dequantized(value), None))

    def _is_rounded_output(self, value: str) -> bool:
        return value in self._outputs and value in self._plan.owners and value not in self._plan.exact

    def _read(self, node: onnx.NodeProto, name: str) -> str:
        """What a node reads in the place of a value."""
        if name not in self._plan.owners:
            return name
        layer = self._plan.layers.get(node.name)
        in_integers = name == layer.activation if layer is not None else node.name in self._plan.integer
        if name in self._plan.exact and not in_integers:
            return name
        return self._dequantized(name)

    def _dequantized(self, value: str) -> str:
        return value if self._is_rounded_output(value) else f"{value}_DequantizeLinear_Output"

    def _pair_behind(self, value: str) -> None:
        owner = self._plan.owners.get(value)
        if owner is None:
            return
        quantizer = self._contents.activations[owner]
        if owner == value:
            self._store(f"{value}_scale", np.float32(quantizer.parameters.scale))
            self._store(f"{value}_zero_point", np.dtype(quantizer.dtype).type(quantizer.parameters.zero_point))
        source = f"{value}_QuantizeLinear_Input" if self._is_rounded_output(value) else value
        between = f"{value}_QuantizeLinear_Output"
        settings: dict[str, Any] = {}
        if quantizer.dtype.endswith("16") and self._opset < _OPSET_OF_16_BITS:
            settings["domain"] = _DOMAIN
            self._uses_domain = True
        scale = [f"{owner}_scale", f"{owner}_zero_point"]
        self._nodes += [
            helper.make_node("QuantizeLinear", [source, *scale], [between], f"{value}_QuantizeLinear", **settings),
            helper.make_node(
                "DequantizeLinear",
                [between, *scale],
                [self._dequantized(value)],
                f"{value}_DequantizeLinear",
                **settings,
            ),
        ]

    def _weight(self, name: str) -> str:
        """The value that a weight's numbers stand for, computed from the first layer's place on."""
        result = f"{name}_DequantizeLinear_Output"
        if name not in self._done:
            parameters = self._weight_parameters(name)
            codes = self._contents.weights[name]
            self._nodes.append(self._dequantize(name, [f"{name}_quantized", *parameters], result, codes.axis))
        return result

    def _weight_parameters(self, name: str) -> list[str]:
        codes = self._contents.weights[name]
        if name not in self._done:
            self._done.add(name)
            numbers: Array = codes.numbers
            zero = np.zeros(codes.scales.shape, np.int8)
            if self._contents.unsigned_weights:
                numbers = (numbers.astype(np.int16) + 128).astype(np.uint8)
                zero = np.full(codes.scales.shape, 128, np.uint8)
            self._store(f"{name}_quantized", numbers)
            self._store(f"{name}_scale", codes.scales)
            self._store(f"{name}_zero_point", zero)
        return [f"{name}_scale", f"{name}_zero_point"]

    def _bias(self, node: str, name: str) -> str:
        count = self._biases[name] = self._biases.get(name, 0) + 1
        prefix = name if count == 1 else f"{name}#{count}"
        bias = self._contents.biases[node]
        self._store(f"{prefix}_quantized", bias.numbers)
        self._store(f"{prefix}_scale", bias.scales)
        self._store(f"{prefix}_zero_point", np.zeros(bias.scales.shape, np.int32))
        result = f"{prefix}_DequantizeLinear_Output"
        parts = [f"{prefix}_quantized", f"{prefix}_scale", f"{prefix}_zero_point"]
        self._nodes.append(self._dequantize(prefix, parts, result, 0 if bias.scales.ndim else None))
        return result

    def _lookup(self, node: onnx.NodeProto) -> None:
        """Look up whole numbers, and multiply those that were found by their scale."""
        table, value = node.input[0], node.output[0]
        codes = self._contents.weights[table]
        parameters = self._weight_parameters(table)
        node.input[0] = f"{table}_quantized"
        node.output[0] = f"{value}_quantized"
        self._nodes.append(node)
        self._emit(self._dequantize(value, [node.output[0], *parameters], value, None if codes.axis is None else -1))

    @staticmethod
    def _dequantize(name: str, inputs: Sequence[str], result: str, axis: int | None) -> onnx.NodeProto:
        settings: dict[str, Any] = {} if axis is None else {"axis": axis}
        return helper.make_node("DequantizeLinear", inputs, [result], f"{name}_DequantizeLinear", **settings)

    def _store(self, name: str, values: Array | np.generic) -> None:
        self._stored.append(numpy_helper.from_array(np.asarray(values), name))

    def _finish(self) -> onnx.ModelProto:
        source = self._source
        result = onnx.ModelProto(ir_version=source.ir_version)
        result.opset_import.extend(source.opset_import)
        if self._uses_domain and all(entry.domain != _DOMAIN for entry in source.opset_import):
            result.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
        result.functions.extend(source.functions)
        graph = result.graph
        graph.name = source.graph.name
        graph.input.extend(source.graph.input)
        graph.output.extend(source.graph.output)
        graph.node.extend(self._nodes)
        self._drop_unread_floats(graph, set(self._all_read(result)) | self._outputs)
        used = set(self._all_read(result)) | self._outputs
        defined = set(walk.defined(graph))
        graph.initializer.extend(tensor for tensor in source.graph.initializer if tensor.name in used)
        graph.initializer.extend(self._stored)
        graph.value_info.extend(value for value in source.graph.value_info if value.name in defined)
        return result

    @staticmethod
    def _drop_unread_floats(graph: onnx.GraphProto, used: set[str]) -> None:
        """Take out what dequantizes values of which only the numbers are read: the runtime would compute it."""
        unread = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.output[0] not in used]
        for node in unread:
            graph.node.remove(node)

    @staticmethod
    def _all_read(model: onnx.ModelProto) -> Iterator[str]:
        for node in walk.nodes(model):
            yield from node.input
