"""Turns one ONNX graph, and the graphs inside its nodes, into fx graphs.

Every value of the ONNX graph is either known at import (a tensor) or an fx node. Nodes live in one of three places:
`device`, where the module's inputs and weights are; `host`, small integer tensors that come from shapes and stay on
the CPU whatever the device; and `python`, lists and numbers. Where host and device values meet, a transfer is inserted.
"""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx
import torch
from torch import fx, nn

from compression.graph import walk
from compression.graph.operators.call import OperatorCall, Rejected, Value
from compression.graph.operators.dtypes import tensor_from_proto
from compression.graph.operators.registry import find
from compression.graph.operators.weight_store import WeightStore, is_learnable

_DEVICE, _HOST, _PYTHON = "device", "host", "python"
_PLACE = "place"
# Constants up to this many elements are written into the code of host computations.
_LITERAL_ELEMENTS = 64
_ATOM = re.compile(r"[A-Za-z0-9_]+")
_RESERVED = frozenset(dir(nn.Module())) | frozenset(dir(fx.GraphModule(nn.Module(), fx.Graph())))
_LAYER_TENSOR = re.compile(r"(.+)\.(weight|bias)")


@dataclass(frozen=True)
class OnnxOrigin:
    """The ONNX node that an fx node came from; stored as `node.meta["onnx"]`.

    Attributes:
        name: The node's name, or its operator and first output where it has none.
        operator: Its operator.
        outputs: Names of its outputs.
    """

    name: str
    operator: str
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Problem:
    """A node that cannot be imported, and why."""

    node: str
    operator: str
    domain: str
    opset: int
    reason: str


@dataclass
class ImportState:
    """What all graphs of one model share.

    Attributes:
        opsets: Version by domain; the standard domain is the empty string.
        types: Inferred tensor types by value name.
        weights: The module's parameters.
        problems: Nodes that could not be imported, so far.
    """

    opsets: Mapping[str, int]
    types: Mapping[str, onnx.TypeProto.Tensor]
    weights: WeightStore
    problems: list[Problem] = field(default_factory=list)


def on_device_of(tensor: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """A value that was computed from shapes, moved to where it is needed."""
    return tensor.to(reference.device)


class GraphBuilder:
    """One graph under construction.

    Args:
        graph: The ONNX graph.
        state: Shared with the graphs around and inside it.
        parent: The builder of the graph that this one is nested in.

    Attributes:
        weights: The module's parameters.
        captures: Values of the surrounding graphs that this one reads; they become its last inputs.
    """

    def __init__(self, graph: onnx.GraphProto, state: ImportState, parent: GraphBuilder | None = None) -> None:
        self._proto = graph
        self.state = state
        self._parent = parent
        self.weights = state.weights
        self.captures: list[str] = []
        self._root = nn.Module()
        self._graph = fx.Graph()
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        self._loaded: dict[str, torch.Tensor] = {}
        self._values: dict[str, Value | None] = {}
        self._constants: dict[int, tuple[torch.Tensor, fx.Node]] = {}
        self._failed: set[str] = set()
        self._claimed: set[int] = set()
        self._readers = _readers(graph)
        self._origin: OnnxOrigin | None = None
        self._last_placeholder: fx.Node | None = None

    # Construction

    def build(self) -> fx.GraphModule:
        """Import all nodes. Those that cannot be are added to the state's problems; the module is complete without any.

        The module takes the graph's inputs (initializers excepted), then the captures, and returns its only output or a
        tuple of them.
        """
        for value in self._proto.input:
            if value.name not in self._initializers:
                self._values[value.name] = self._placeholder(value.name)
        for index, node in enumerate(self._proto.node):
            if index not in self._claimed:
                self._import(node)
        outputs = [self._output(value.name) for value in self._proto.output]
        self._graph.output(outputs[0] if len(outputs) == 1 else tuple(outputs))
        self._graph.eliminate_dead_code(_is_boundary)
        return fx.GraphModule(self._root, self._graph)

    def nested(self, graph: onnx.GraphProto) -> GraphBuilder:
        """A builder for a graph that a node of this one holds."""
        return GraphBuilder(graph, self.state, self)

    def _placeholder(self, name: str) -> fx.Node:
        # Captures are found late and still have to stand before all code.
        if self._last_placeholder is None:
            first = next(iter(self._graph.nodes), None)
            scope = self._graph.inserting_before(first)
        else:
            scope = self._graph.inserting_after(self._last_placeholder)
        with scope:
            node = self._graph.placeholder(_identifier(name))
        node.meta[_PLACE] = _DEVICE
        node.meta["onnx"] = OnnxOrigin(name, "Input", (name,))
        self._last_placeholder = node
        return node

    def _output(self, name: str) -> Any:
        if name in self._failed:
            return None
        value = self.value(name)
        return self._lift(value) if isinstance(value, torch.Tensor) else value

    def _import(self, node: onnx.NodeProto) -> None:
        domain = "" if node.domain == "ai.onnx" else node.domain
        opset = self.state.opsets.get(domain, 1)
        convert = find(domain, node.op_type, opset)
        self._origin = OnnxOrigin(walk.display_name(node), node.op_type, tuple(node.output))
        reason = "" if convert else "the operator is not known"
        reads = {*node.input, *(name for subgraph in walk.subgraphs(node) for name in _reads(subgraph))}
        if convert and self._failed.isdisjoint(reads):
            try:
                results = convert(OperatorCall(node, opset, self))
            except Rejected as rejected:
                reason = str(rejected)
            else:
                self._store(node, results)
                return
        if reason:
            self.state.problems.append(Problem(self._origin.name, node.op_type, domain, opset, reason))
        self._failed.update(name for name in node.output if name)

    def _store(self, node: onnx.NodeProto, results: Any) -> None:
        values = list(results) if isinstance(results, (tuple, list)) else [results]
        for name, value in zip(node.output, values, strict=False):
            if name:
                self._values[name] = value

    # Values

    def value(self, name: str) -> Value:
        """The value of a name: a tensor known at import or a node; a learnable initializer is a parameter's node."""
        known = self._values.get(name)
        if known is not None:
            return known
        if self._holder(name) is not None:
            tensor = self.initializer(name)
            value: Value = self._parameter(name) if is_learnable(tensor) else tensor
        elif self._parent is None:
            msg = f"value '{name}' is used before it is computed"
            raise Rejected(msg)
        else:
            outer = self._parent.value(name)
            value = outer if isinstance(outer, torch.Tensor) else self._placeholder(name)
            if isinstance(value, fx.Node):
                self.captures.append(name)
        self._values[name] = value
        return value

    def constant(self, name: str) -> torch.Tensor | None:
        """The value of a name where it is known at import, stored weights included."""
        known = self._values.get(name)
        if isinstance(known, torch.Tensor):
            return known
        if self._holder(name) is not None:
            return self.initializer(name)
        if known is None and self._parent is not None:
            return self._parent.constant(name)
        return None

    def initializer(self, name: str) -> torch.Tensor:
        """A stored tensor of this graph or of one around it."""
        holder = self._holder(name)
        if holder is None:
            raise KeyError(name)
        if name not in holder._loaded:  # noqa: SLF001  # another object of this class
            try:
                holder._loaded[name] = tensor_from_proto(holder._initializers[name])  # noqa: SLF001
            except TypeError as error:
                raise Rejected(str(error)) from None
        return holder._loaded[name]  # noqa: SLF001

    def is_weight(self, name: str) -> bool:
        return self._holder(name) is not None and is_learnable(self.initializer(name))

    def parameter_of(self, value: Any) -> str | None:
        """The initializer behind a node that reads a parameter."""
        return value.meta.get("initializer") if isinstance(value, fx.Node) else None

    def _holder(self, name: str) -> GraphBuilder | None:
        """The innermost graph that stores the tensor, unless a graph further in computes a value of that name."""
        builder: GraphBuilder | None = self
        while builder is not None:
            if name in builder._initializers:
                return builder
            if name in builder._values and name not in builder.captures:
                return None
            builder = builder._parent
        return None

    def element_type(self, name: str) -> int | None:
        holder = self._holder(name)
        if holder is not None:
            return int(holder._initializers[name].data_type)
        known = self.state.types.get(name)
        return int(known.elem_type) if known is not None and known.elem_type else None

    def shape(self, name: str) -> list[int | None] | None:
        holder = self._holder(name)
        if holder is not None:
            return [int(length) for length in holder._initializers[name].dims]
        value = self._values.get(name)
        if isinstance(value, torch.Tensor):
            return list(value.shape)
        known = self.state.types.get(name)
        if known is None or not known.HasField("shape"):
            return None
        return [int(axis.dim_value) if axis.HasField("dim_value") else None for axis in known.shape.dim]

    def rank(self, name: str) -> int | None:
        shape = self.shape(name)
        return None if shape is None else len(shape)

    def sole_reader(self, name: str) -> tuple[int, onnx.NodeProto] | None:
        """The only node that reads a value, with its index; None when there are others or it is an output."""
        readers = self._readers.get(name, [])
        return (readers[0], self._proto.node[readers[0]]) if len(readers) == 1 and readers[0] >= 0 else None

    def claim(self, index: int, value: Value) -> None:
        """Take over a later node: its output is the given value."""
        self._claimed.add(index)
        self._values[self._proto.node[index].output[0]] = value

    # Emission

    def call(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        python: bool = False,
    ) -> Any:
        """Apply a function now, when all arguments are known, else as an fx node."""
        leaves = _leaves((args, dict(kwargs)))
        nodes = [leaf for leaf in leaves if isinstance(leaf, fx.Node)]
        if not nodes:
            with torch.no_grad():
                return function(*args, **kwargs)
        anchors = [node for node in nodes if node.meta[_PLACE] == _DEVICE and "initializer" not in node.meta]
        hosts = [node for node in nodes if node.meta[_PLACE] == _HOST]
        weights = [node for node in nodes if "initializer" in node.meta]
        large = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.numel() > _LITERAL_ELEMENTS]
        small_weights = all(self._weight_elements(node) <= _LITERAL_ELEMENTS for node in weights)
        on_host = not anchors and not large and (bool(hosts) or not weights) and small_weights
        lifted_large = [self._lift(leaf) for leaf in large]
        reference = next(iter((*anchors, *weights, *lifted_large)), None)

        def place(leaf: Any) -> Any:
            if isinstance(leaf, torch.Tensor):
                return self._literal(leaf) if on_host else self._lift(leaf)
            if isinstance(leaf, fx.Node) and on_host and "initializer" in leaf.meta:
                return self._literal(self.initializer(leaf.meta["initializer"]))
            if isinstance(leaf, fx.Node) and not on_host and leaf.meta[_PLACE] == _HOST and not python:
                return self._emit(on_device_of, (leaf, reference), {}, _DEVICE)
            return leaf

        placed_args, placed_kwargs = fx.node.map_aggregate((args, dict(kwargs)), place)
        where = _PYTHON if python else _HOST if on_host else _DEVICE
        return self._emit(function, placed_args, placed_kwargs, where)

    def item(self, values: fx.Node, position: int) -> fx.Node:
        """One of several results of a node."""
        return self._emit(operator.getitem, (values, position), {}, values.meta[_PLACE])

    def from_shape(self, function: Callable[..., Any], *args: Any) -> fx.Node:
        """A node whose small integer result is computed from a shape, on the CPU."""
        return self._emit(function, args, {}, _HOST)

    def layer(self, module: nn.Module, args: tuple[Any, ...], named_after: Sequence[str | None]) -> fx.Node:
        """Let the module own a layer and apply it."""
        path = self.own(module, named_after)
        anchor = next((leaf for leaf in _leaves(args) if isinstance(leaf, fx.Node) and self._on_device(leaf)), None)

        def place(leaf: Any) -> Any:
            if isinstance(leaf, torch.Tensor):
                return self._lift(leaf)
            if anchor is not None and isinstance(leaf, fx.Node) and leaf.meta[_PLACE] == _HOST:
                return self._emit(on_device_of, (leaf, anchor), {}, _DEVICE)
            return leaf

        placed = fx.node.map_aggregate(args, place)
        node = self._graph.create_node("call_module", path, placed, {}, self._hint())
        return self._mark(node, _DEVICE)

    def own(self, module: nn.Module, named_after: Sequence[str | None] = ()) -> str:
        """Put a layer into the module and give its path."""
        found = (_LAYER_TENSOR.fullmatch(name) for name in named_after if name)
        preferred = next((match[1] for match in found if match), self._origin.name if self._origin else "layer")
        return _assign(self._root, preferred, module)

    def _on_device(self, node: fx.Node) -> bool:
        return bool(node.meta[_PLACE] == _DEVICE)

    def _emit(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], where: str) -> fx.Node:
        node = self._graph.create_node("call_function", function, args, kwargs, self._hint())
        return self._mark(node, where)

    def _hint(self) -> str | None:
        return _identifier(self._origin.name) if self._origin else None

    def _mark(self, node: fx.Node, where: str) -> fx.Node:
        node.meta[_PLACE] = where
        if self._origin is not None:
            node.meta["onnx"] = self._origin
        return node

    def _parameter(self, name: str) -> fx.Node:
        (parameter,) = self.weights.parameters(name, self.initializer(name))
        node = self._graph.create_node("get_attr", _assign(self._root, name, parameter), (), {})
        node.meta.update({_PLACE: _DEVICE, "initializer": name})
        return node

    def _weight_elements(self, node: fx.Node) -> int:
        return int(self.initializer(node.meta["initializer"]).numel())

    def _lift(self, tensor: torch.Tensor) -> fx.Node:
        """A constant as a buffer."""
        known = self._constants.get(id(tensor))
        if known is None:
            name = next((name for name, loaded in self._loaded.items() if loaded is tensor), "constant")
            path = _assign(self._root, name, nn.Buffer(tensor))
            node = self._graph.create_node("get_attr", path, (), {})
            node.meta[_PLACE] = _DEVICE
            known = self._constants[id(tensor)] = (tensor, node)
        return known[1]

    def _literal(self, tensor: torch.Tensor) -> fx.Node:
        return self._emit(torch.tensor, (tensor.tolist(),), {"dtype": tensor.dtype}, _HOST)


def _is_boundary(node: fx.Node) -> bool:
    """Nothing but inputs and outputs is kept without readers: ONNX nodes have no side effects."""
    return node.op in ("placeholder", "output")


def _readers(graph: onnx.GraphProto) -> dict[str, list[int]]:
    """Indices of the nodes that read each value, those of nested graphs as their outer node; -1 for an output."""
    readers: dict[str, list[int]] = {}
    for index, node in enumerate(graph.node):
        inner = (name for subgraph in walk.subgraphs(node) for name in _reads(subgraph))
        for name in (*node.input, *inner):
            readers.setdefault(name, []).append(index)
    for value in graph.output:
        readers.setdefault(value.name, []).append(-1)
    return readers


def _reads(graph: onnx.GraphProto) -> Iterable[str]:
    for node in graph.node:
        yield from node.input
        for subgraph in walk.subgraphs(node):
            yield from _reads(subgraph)
    yield from (value.name for value in graph.output)


def count_uses(model: onnx.ModelProto) -> Counter[str]:
    """How many times nodes and graph outputs read each value."""
    return Counter(_reads(model.graph))


def _leaves(tree: Any) -> list[Any]:
    found: list[Any] = []

    def visit(leaf: Any) -> Any:
        found.append(leaf)
        return leaf

    fx.node.map_aggregate(tree, visit)
    return found


def _identifier(name: str) -> str:
    cleaned = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_").lower()
    return f"_{cleaned}" if not cleaned or cleaned[0].isdigit() else cleaned


def _assign(root: nn.Module, name: str, item: nn.Module | torch.Tensor) -> str:
    """Store a layer, parameter or buffer under its name where that is a free and legal path, else under a like one."""
    if not _is_free(root, name):
        flat = _identifier(name)
        count = 0
        name = flat
        while not _is_free(root, name):
            count += 1
            name = f"{flat}_{count}"
    *parents, last = name.split(".")
    owner = root
    for parent in parents:
        if parent not in owner._modules:  # noqa: SLF001  # hasattr would also find methods
            owner.add_module(parent, nn.Module())
        owner = owner.get_submodule(parent)
    setattr(owner, last, item)
    return name


def _is_free(root: nn.Module, path: str) -> bool:
    """Whether something may be stored under a path: every part a plain word, nothing but a bare container there."""
    *parents, last = path.split(".")
    if any(not _ATOM.fullmatch(atom) or atom in _RESERVED for atom in (*parents, last)):
        return False
    owner: Any = root
    for parent in parents:
        if parent in owner._parameters or parent in owner._buffers:  # noqa: SLF001
            return False
        owner = owner._modules.get(parent)  # noqa: SLF001
        if owner is None:
            return True
    return not hasattr(owner, last)
