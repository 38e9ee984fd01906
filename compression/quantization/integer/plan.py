"""Where a float graph is computed in integers, and where its values are quantized for that.

Pairs stand where runtimes look for them to fuse integer operators, and nowhere else: around layers with weights, behind
the activation function that follows a layer, and around the operators between layers that have integer kernels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import onnx

from compression.graph import walk
from compression.graph.weights import Weight
from compression.quantization.integer.codes import Layout

# Layers whose kernel gives integers, and those that give floats as well (or, as ConvTranspose, have no such kernel).
_ROUNDED = frozenset({"Conv"})
_FREE = frozenset({"Gemm", "MatMul", "ConvTranspose"})
# What runtimes compute along with a layer, as long as the pair behind it cuts at the same places.
_CUTS = frozenset({"Relu", "Clip"})
# Operators with integer kernels that make new values. Those that reduce are worth it even when floats follow: what
# they read is much larger than what they give.
_COMPUTED = frozenset({"Add", "Mul", "Concat", "Sigmoid", "HardSigmoid", "LeakyRelu"})
_REDUCING = frozenset({"AveragePool", "GlobalAveragePool"})
# Operators that only move values, which stay on the grid of their input.
_MOVED = frozenset(
    {"MaxPool", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Expand", "Tile"}
)  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """A node with weights that computes in integers.

    Attributes:
        node: Its name.
        operator: `Conv`, `ConvTranspose`, `Gemm` or `MatMul`.
        activation: The value that it computes on.
        weight: The stored weight.
        shape: The weight's.
        layout: What the weight's axes mean.
        per_channel: Whether kernels take a scale for each output channel.
        bias: The stored bias that the kernel adds to its sums, or None.
        output: What it gives out.
        groups: Groups of a convolution, otherwise 1.
        channel_axis: Axis of the input channels in the activation: 1, or -1 for the last.
    """

    node: str
    operator: str
    activation: str
    weight: str
    shape: tuple[int, ...]
    layout: Layout
    per_channel: bool
    bias: str | None
    output: str
    groups: int
    channel_axis: int

    @property
    def is_depthwise(self) -> bool:
        """One input channel a group, and one output channel: such kernels sum in 32 bits everywhere."""
        return self.operator == "Conv" and self.groups == self.shape[0] and self.shape[1] == 1


@dataclass(frozen=True)
class Plan:
    """Everything that is quantized, in the order of the graph.

    Attributes:
        layers: By node name.
        owners: Every quantized value, with the value whose scale it has: itself, or what it was moved from.
        integer: Names of all nodes that compute in integers, layers and moves included.
        exact: Quantized values that are computed in float: what computes in float reads them unrounded.
        cuts: For a value behind a Relu or Clip, the name of that node: it may go where the pair's range stands for it.
    """

    layers: Mapping[str, Layer]
    owners: Mapping[str, str]
    integer: frozenset[str]
    exact: frozenset[str]
    cuts: Mapping[str, str]


@dataclass(frozen=True)
class Anatomy:
    """What a graph offers to a plan, whatever stays float; found once, for many plans.

    Attributes:
        model: The float model, each node named, in topological order.
        layers: Nodes that could be integer layers, by name.
        tails: The value at the end of what is computed along with a node, by the node's name.
        cuts: Nodes in tails that cut, by the value that they give.
        sources: For a moved value, what it was moved from.
    """

    model: onnx.ModelProto
    layers: Mapping[str, Layer]
    tails: Mapping[str, str]
    cuts: Mapping[str, str]
    sources: Mapping[str, str]
    stored: frozenset[str]
    readers: Mapping[str, tuple[onnx.NodeProto, ...]] = field(repr=False)

    def measured(self) -> list[str]:
        """All values whose range some plan may need, in the order of the graph; moved ones have their source's."""
        wanted: set[str] = set()
        for node in self.model.graph.node:
            if node.name in self.layers:
                wanted |= {self.layers[node.name].activation, self.tails[node.name]}
            elif _is_plain(node) and node.op_type in _COMPUTED | _REDUCING and not self.reads_stored(node):
                wanted |= {*_inputs(node), self.tails[node.name]}
        wanted = {self.origin(name) for name in wanted}
        order = [value.name for value in self.model.graph.input]
        order += [name for node in self.model.graph.node for name in node.output]
        return [name for name in order if name in wanted]

    def origin(self, value: str) -> str:
        """What a value was moved from, however many moves ago; itself where it was computed."""
        while value in self.sources:
            value = self.sources[value]
        return value

    def reads_stored(self, node: onnx.NodeProto) -> bool:
        return any(name in self.stored for name in _inputs(node))


def examine(model: onnx.ModelProto, weights: Iterable[Weight], unfit: Collection[str]) -> Anatomy:
    """Find the layers of a graph and what belongs to them.

    Args:
        model: A float model whose nodes have names of their own, in topological order.
        weights: Weights that may be quantized.
        unfit: Names of nodes that are no layers.
    """
    graph = model.graph
    stored = frozenset(tensor.name for tensor in graph.initializer)
    found = {weight.name: weight for weight in weights}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in dict.fromkeys(node.input):
            readers.setdefault(name, []).append(node)
    uses = Counter(name for node in walk.nodes(model) for name in node.input)
    uses.update(value.name for value in graph.output)
    layers = {
        node.name: layer
        for node in graph.node
        if node.name not in unfit and (layer := _layer(node, found, stored)) is not None
    }
    tails: dict[str, str] = {}
    cuts: dict[str, str] = {}
    sources: dict[str, str] = {}
    for node in graph.node:
        if not _is_plain(node):
            continue
        if node.op_type in _MOVED:
            outputs = node.output[:1] if node.op_type == "MaxPool" else node.output
            sources.update({name: node.input[0] for name in outputs if name})
        if node.name in layers or node.op_type in _COMPUTED | _REDUCING:
            tails[node.name] = _tail(node, readers, uses, stored, cuts)
    return Anatomy(model, layers, tails, cuts, sources, stored, {name: tuple(nodes) for name, nodes in readers.items()})


def _layer(node: onnx.NodeProto, weights: Mapping[str, Weight], stored: Collection[str]) -> Layer | None:
    """The node as a layer; None for what is none."""
    if node.op_type not in _ROUNDED | _FREE or not _is_plain(node):
        return None
    if node.op_type == "Gemm" and (walk.integer(node, "transA") or walk.real(node, "alpha", 1.0) != 1.0):
        return None
    if node.input[1] not in weights or node.input[0] in stored:
        return None
    weight = weights[node.input[1]]
    rank = len(weight.shape)
    match node.op_type:
        case "Conv":
            layout = Layout(0, 1)
        case "ConvTranspose":
            layout = Layout(1, 0)
        case "Gemm":
            layout = Layout(0, 1) if walk.integer(node, "transB") else Layout(1, 0)
        case _:
            layout = Layout(rank - 1, rank - 2)
    bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
    if bias is not None and (bias not in stored or walk.real(node, "beta", 1.0) != 1.0):
        return None
    return Layer(
        node=node.name,
        operator=node.op_type,
        activation=node.input[0],
        weight=weight.name,
        shape=weight.shape,
        layout=layout,
        per_channel=rank == 2 or node.op_type != "MatMul",
        bias=bias,
        output=node.output[0],
        groups=walk.integer(node, "group", 1),
        channel_axis=1 if node.op_type in ("Conv", "ConvTranspose") else -1,
    )


def _tail(
    node: onnx.NodeProto,
    readers: Mapping[str, list[onnx.NodeProto]],
    uses: Mapping[str, int],
    stored: Collection[str],
    cuts: dict[str, str],
) -> str:
    """The value at the end of what is computed along with a node; what cuts on the way is noted."""
    value: str = node.output[0]
    last = node
    while uses[value] == 1 and value in readers:
        (reader,) = readers[value]
        is_sum = last.op_type == "MatMul" and reader.op_type == "Add" and any(name in stored for name in reader.input)
        is_cut = reader.op_type in _CUTS and reader.input[0] == value and last.op_type not in _CUTS
        if not _is_plain(reader) or not (is_sum or is_cut):
            break
        value, last = reader.output[0], reader
        if is_cut:
            cuts[value] = reader.name
    return value


def make_plan(anatomy: Anatomy, float_nodes: Collection[str]) -> Plan:
    """Decide what computes in integers.

    All layers do that are not named. Other operators do where what they read is in integers anyway and something in
    integers reads what they give; so nothing is rounded that would be rounded for no kernel.

    Args:
        anatomy: The graph.
        float_nodes: Names of nodes that compute in float.
    """
    return _Planner(anatomy, frozenset(float_nodes)).plan()


class _Planner:
    def __init__(self, anatomy: Anatomy, float_nodes: frozenset[str]) -> None:
        self._anatomy = anatomy
        graph = anatomy.model.graph
        self._layers = {name: layer for name, layer in anatomy.layers.items() if name not in float_nodes}
        self._others = {
            node.name: node
            for node in graph.node
            if node.name not in float_nodes and node.name not in anatomy.layers and self._could_be_integer(node)
        }
        self._producers = {name: node for node in graph.node for name in node.output}
        # What is computed along with a node counts as the node's.
        self._producers |= {anatomy.tails[node.name]: node for node in graph.node if node.name in anatomy.tails}

    def _could_be_integer(self, node: onnx.NodeProto) -> bool:
        if not _is_plain(node) or not node.input:
            return False
        if node.op_type in _MOVED:
            return node.input[0] not in self._anatomy.stored
        return node.op_type in _COMPUTED | _REDUCING and not self._anatomy.reads_stored(node)

    def plan(self) -> Plan:
        self._settle()
        owners: dict[str, str] = {}
        exact: set[str] = set()
        for value in self._quantized():
            producer = self._producers.get(value)
            if producer is not None and producer.name in self._others and producer.op_type in _MOVED:
                owners[value] = owners[producer.input[0]]
                continue
            owners[value] = value
            if not self._comes_as_integers(value):
                exact.add(value)
        integer = frozenset({*self._layers, *self._others})
        cuts = {value: node for value, node in self._anatomy.cuts.items() if value in owners and value not in exact}
        return Plan(self._layers, owners, integer, frozenset(exact), cuts)

    def _settle(self) -> None:
        """Drop operators that would have to round something for themselves alone, until none is left."""
        for_layers = frozenset(layer.activation for layer in self._layers.values())
        while True:
            read = set(for_layers)
            for node in self._others.values():
                read.update(_inputs(node) if node.op_type not in _MOVED else node.input[:1])
            gone = [name for name, node in self._others.items() if not self._is_worth_it(node, for_layers, read)]
            if not gone:
                return
            for name in gone:
                del self._others[name]

    def _is_worth_it(self, node: onnx.NodeProto, for_layers: Collection[str], read: Collection[str]) -> bool:
        if node.op_type in _MOVED:
            outputs = node.output[:1] if node.op_type == "MaxPool" else node.output
            is_read = any(name in read for name in outputs) or node.op_type == "MaxPool"
            return is_read and self._can_come_as_integers(node.input[0])
        if not all(name in for_layers or self._can_come_as_integers(name) for name in _inputs(node)):
            return False
        return node.op_type in _REDUCING or self._anatomy.tails[node.name] in read

    def _can_come_as_integers(self, value: str) -> bool:
        producer = self._producers.get(value)
        return producer is not None and (producer.name in self._layers or producer.name in self._others)

    def _comes_as_integers(self, value: str) -> bool:
        """Whether the kernel that makes a value gives integers: all do but the free ones whose floats are read too."""
        producer = self._producers.get(value)
        if producer is None or not self._can_come_as_integers(value):
            return False
        if producer.op_type not in _FREE:
            return True
        return all(
            node.name in self._layers or node.name in self._others for node in self._anatomy.readers.get(value, ())
        ) and all(output.name != value for output in self._anatomy.model.graph.output)

    def _quantized(self) -> Iterator[str]:
        """Every value that is quantized, in the order of the graph."""
        wanted: set[str] = set()
        for layer in self._layers.values():
            wanted.add(layer.activation)
            if layer.operator in _ROUNDED:
                wanted.add(self._anatomy.tails[layer.node])
        for node in self._others.values():
            if node.op_type in _MOVED:
                wanted.add(node.input[0])
                wanted.update(node.output[:1] if node.op_type == "MaxPool" else node.output)
            else:
                wanted |= {*_inputs(node), self._anatomy.tails[node.name]}
        for value in self._anatomy.model.graph.input:
            if value.name in wanted:
                yield value.name
        for node in self._anatomy.model.graph.node:
            yield from (name for name in node.output if name in wanted)


def _inputs(node: onnx.NodeProto) -> list[str]:
    return [name for name in node.input if name]


def _is_plain(node: onnx.NodeProto) -> bool:
    return node.domain in ("", "ai.onnx")
