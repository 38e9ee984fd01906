"""Where an ONNX graph is quantized: one plan for the module that is trained and for the graph that comes out.

Pairs stand where runtimes look for them to fuse integer operators: before and behind each layer with weights, behind
the activation that follows it, and around the operators between layers that compute in integers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import onnx

from compression.graph import walk
from compression.graph.weights import Weight
from compression.quantization.spec import QuantizeAware

# Kernels of 8 bits: nothing is gained by fewer where no layer multiplies by the value any more.
_OUTPUT_BITS = 8
_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# What runtimes compute with a layer: the layer's own output is not rounded in between.
_TAILS = frozenset({"Relu", "Clip", "BatchNormalization"})
# Operators with integer kernels that make new values of quantized ones.
_COMPUTED = frozenset(
    {"Add", "Mul", "MatMul", "Concat", "AveragePool", "GlobalAveragePool", "Sigmoid", "LeakyRelu"}
)  # fmt: skip
# Operators that only move values, which stay on the grid of their input.
_MOVED = frozenset(
    {
        "MaxPool",
        "Flatten",
        "Reshape",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Slice",
        "Split",
        "DepthToSpace",
        "SpaceToDepth",
    }
)


@dataclass(frozen=True)
class Activation:
    """A value that is quantized.

    Attributes:
        value: Its name.
        owner: The value whose scale it has: its own name, or another's that it was only moved from.
        bits: Bits of the whole numbers.
    """

    value: str
    owner: str
    bits: int

    @property
    def is_own(self) -> bool:
        return self.owner == self.value


@dataclass(frozen=True)
class LayerWeight:
    """A weight that is quantized.

    Attributes:
        weight: What it is in the graph.
        axis: Axis along which each slice has a scale; None for one scale.
        bits: Bits of the whole numbers.
    """

    weight: Weight
    axis: int | None
    bits: int


@dataclass(frozen=True)
class LayerBias:
    """A bias that is quantized to the scale of its layer's accumulator.

    Attributes:
        initializer: Its name.
        prefix: Start of the names of what replaces it; the initializer's name, unless another layer took that.
        node: First output of the layer.
        owner: The value whose scale the layer's input has.
        weight: Name of the layer's weight.
    """

    initializer: str
    prefix: str
    node: str
    owner: str
    weight: str


@dataclass(frozen=True)
class Plan:
    """Everything that is quantized, each kind in the order of the graph.

    Attributes:
        activations: By value.
        weights: By initializer.
        biases: By the first output of their layers.
        layers: For each layer that computes in integers the name of its weight, by first output.
    """

    activations: Mapping[str, Activation]
    weights: Mapping[str, LayerWeight]
    biases: Mapping[str, LayerBias]
    layers: Mapping[str, str]


def make_plan(
    model: onnx.ModelProto,
    weights: Collection[Weight],
    unfit: Collection[str],
    spec: QuantizeAware,
    *,
    reduce_range: bool,
) -> Plan:
    """Decide what is quantized.

    Args:
        model: A float model whose nodes have names, in topological order.
        weights: Those that may be quantized.
        unfit: Names of nodes that stay float.
        spec: Bits, and whether weights have a scale for each channel.
        reduce_range: Weights of 8 bits that meet activations of 8 bits get 7.
    """
    return _Planner(model, weights, unfit, spec).plan(reduce_range=reduce_range)


class _Planner:
    def __init__(
        self, model: onnx.ModelProto, weights: Collection[Weight], unfit: Collection[str], spec: QuantizeAware
    ) -> None:
        self._graph = model.graph
        self._spec = spec
        self._weights = {weight.name: weight for weight in weights}
        self._stored = {tensor.name for tensor in model.graph.initializer}
        self._outputs = {value.name for value in model.graph.output}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self._uses = Counter(name for node in walk.nodes(model) for name in node.input)
        self._uses.update(self._outputs)
        # First output of each layer that is quantized -> input positions of its activation and its weight.
        self._layers = {
            node.output[0]: found
            for node in model.graph.node
            if node.name not in unfit and (found := self._positions(node)) is not None
        }

    def plan(self, *, reduce_range: bool) -> Plan:
        owners = self._owners() if self._spec.activation_bits is not None else {}
        bits = self._activation_bits(owners)
        layers, weight_bits = self._weight_bits(owners, bits, reduce_range=reduce_range)
        weights = {}
        for name, wanted in weight_bits.items():
            readers = [node for node in self._readers[name] if node.output[0] in layers]
            weights[name] = LayerWeight(self._weights[name], self._axis(self._weights[name], readers), wanted)
        return Plan(
            activations={value: Activation(value, owner, bits[owner]) for value, owner in owners.items()},
            weights=weights,
            biases=self._biases(owners),
            layers=layers,
        )

    def _positions(self, node: onnx.NodeProto) -> tuple[int, int] | None:
        """Where a layer has its activation and its weight; None for what is no layer."""
        if node.op_type not in _LAYERS or node.domain not in ("", "ai.onnx"):
            return None
        if node.op_type == "Gemm" and not _is_plain(node):
            return None
        found = [position for position in (1, 0) if node.input[position] in self._weights]
        if len(found) != 1 or node.input[1 - found[0]] in self._stored or (found == [0] and node.op_type != "MatMul"):
            return None
        return 1 - found[0], found[0]

    def _owners(self) -> dict[str, str]:
        """Every value that is quantized, with the value whose scale it has."""
        around = set()
        for node in self._graph.node:
            if node.output[0] in self._layers:
                around |= {node.input[self._layers[node.output[0]][0]], self._behind(node)}
        owners: dict[str, str] = {}
        values = [value.name for value in self._graph.input if value.name in around]
        owners.update(dict(zip(values, values, strict=True)))
        for node in self._graph.node:
            inputs = [name for name in node.input if name]
            quantized = node.domain in ("", "ai.onnx") and bool(inputs)
            if quantized and node.op_type in _MOVED and inputs[0] in owners:
                moved = node.output[:1] if node.op_type == "MaxPool" else node.output
                owners.update({name: owners[inputs[0]] for name in moved if name})
            elif quantized and node.op_type in _COMPUTED and all(name in owners for name in inputs):
                around.add(self._behind(node))
            for name in node.output:
                if name in around:
                    owners.setdefault(name, name)
        return self._without_idle(owners)

    def _behind(self, node: onnx.NodeProto) -> str:
        """The value at the end of what is computed along with a node."""
        value: str = node.output[0]
        while self._uses[value] == 1 and value in self._readers:
            (reader,) = self._readers[value]
            is_sum = node.op_type == "MatMul" and reader.op_type == "Add"
            is_sum = is_sum and any(name in self._stored for name in reader.input)
            if not is_sum and (reader.op_type not in _TAILS or reader.input[0] != value):
                break
            value = reader.output[0]
        return value

    def _without_idle(self, owners: dict[str, str]) -> dict[str, str]:
        """Leave out moved values that nothing takes as whole numbers."""
        needed: set[str] = set()
        for node in reversed(self._graph.node):
            is_layer = node.output[0] in self._layers
            is_computed = node.op_type in _COMPUTED and all(name in owners for name in node.input if name)
            is_moved = node.op_type in _MOVED and any(name in needed for name in node.output)
            if is_layer or is_computed or is_moved:
                needed.update(node.input)
        return {value: owner for value, owner in owners.items() if value == owner or value in needed}

    def _activation_bits(self, owners: Mapping[str, str]) -> dict[str, int]:
        """Bits of each owner; 8 behind the last layers, and where `keep_first_last_8bit` wants them."""
        wanted = self._spec.activation_bits or _OUTPUT_BITS
        ahead = self._leading_to_layers()
        bits = {
            owner: wanted if any(value in ahead for value, its in owners.items() if its == owner) else _OUTPUT_BITS
            for owner in dict.fromkeys(owners.values())
        }
        if self._spec.keep_first_last_8bit:
            for node in self._outer_layers():
                owner = owners.get(node.input[self._layers[node.output[0]][0]])
                if owner is not None:
                    bits[owner] = _OUTPUT_BITS
        return bits

    def _leading_to_layers(self) -> set[str]:
        """Values that some layer computes on, at once or later."""
        found: set[str] = set()
        for node in reversed(self._graph.node):
            if node.output[0] in self._layers or any(name in found for name in node.output):
                found.update(node.input)
        return found

    def _outer_layers(self) -> list[onnx.NodeProto]:
        """Layers with no layer before them, and those with none behind them."""
        ahead = self._leading_to_layers()
        behind: set[str] = set()
        found = []
        for node in self._graph.node:
            is_layer = node.output[0] in self._layers
            if is_layer and (not any(name in behind for name in node.input) or node.output[0] not in ahead):
                found.append(node)
            if is_layer or any(name in behind for name in node.input):
                behind.update(node.output)
        return found

    def _weight_bits(
        self, owners: Mapping[str, str], activation_bits: Mapping[str, int], *, reduce_range: bool
    ) -> tuple[dict[str, str], dict[str, int]]:
        """The weight of each layer, and the bits of each weight: the most that a layer wants for it."""
        outer = {node.output[0] for node in self._outer_layers()} if self._spec.keep_first_last_8bit else set()
        layers: dict[str, str] = {}
        bits: dict[str, int] = {}
        capped: set[str] = set()
        for node in self._graph.node:
            if node.output[0] not in self._layers:
                continue
            activation, weight = (node.input[position] for position in self._layers[node.output[0]])
            layers[node.output[0]] = weight
            bits[weight] = max(bits.get(weight, 0), 8 if node.output[0] in outer else self._spec.weight_bits)
            if reduce_range and activation in owners and activation_bits[owners[activation]] == 8:
                capped.add(weight)
        return layers, {name: min(wanted, 7) if name in capped else wanted for name, wanted in bits.items()}

    def _axis(self, weight: Weight, readers: Iterable[onnx.NodeProto]) -> int | None:
        """Axis of the scales: that of the output channels, where all layers agree about it and kernels take it."""
        readers = list(readers)
        positions = {self._layers[node.output[0]][1] for node in readers}
        kinds = {(node.op_type, _flag(node, "transB")) for node in readers}
        if not self._spec.per_channel or len(kinds) > 1 or 0 in positions:
            return None
        return weight.output_axis

    def _biases(self, owners: Mapping[str, str]) -> dict[str, LayerBias]:
        found: dict[str, LayerBias] = {}
        count: Counter[str] = Counter()
        for node in self._graph.node:
            positions = self._layers.get(node.output[0])
            if positions is None or len(node.input) < 3 or node.input[2] not in self._stored:
                continue
            owner = owners.get(node.input[positions[0]])
            if owner is None:
                continue
            name = node.input[2]
            count[name] += 1
            prefix = name if count[name] == 1 else f"{name}#{count[name]}"
            found[node.output[0]] = LayerBias(name, prefix, node.output[0], owner, node.input[positions[1]])
        return found


def _is_plain(node: onnx.NodeProto) -> bool:
    """Whether a Gemm computes A @ B' + C: kernels of integers know no factors, and activations come by rows."""
    factors = {attribute.name: attribute.f for attribute in node.attribute if attribute.name in ("alpha", "beta")}
    return not _flag(node, "transA") and all(factor == 1.0 for factor in factors.values())


def _flag(node: onnx.NodeProto, name: str) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), 0)
