"""Goes over one ONNX graph, and the graphs inside its nodes, and imports node by node.

Every value of the ONNX graph is either known at import (a tensor) or an fx node. What the nodes become is the
emitter's matter; this file knows names: initializers, computed values, and which graph holds them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx
import torch
from torch import fx

from compression.graph import walk
from compression.graph.operators.bindings import Use
from compression.graph.operators.call import OperatorCall, Rejected, Value
from compression.graph.operators.emitter import Emitter, OnnxOrigin
from compression.graph.operators.registry import find
from compression.graph.operators.scopes import Scope, first_output, identities, inner_scope
from compression.graph.operators.weight_store import StoredWeight, WeightStore, is_learnable


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
        types: Inferred tensor types by scope and value name.
        weights: The module's parameters.
        constants: Initializers of the main graph that are no weights, see `compression.graph.operators.constants`.
        problems: Nodes that could not be imported, so far.
    """

    opsets: Mapping[str, int]
    types: Mapping[tuple[Scope, str], onnx.TypeProto.Tensor]
    weights: WeightStore
    constants: frozenset[str] = frozenset()
    problems: list[Problem] = field(default_factory=list)


class GraphBuilder:
    """One graph under construction.

    Args:
        graph: The ONNX graph.
        state: Shared with the graphs around and inside it.
        scope: Where the graph is in the model.
        parent: The builder of the graph that this one is nested in.

    Attributes:
        emitter: Makes the fx graph.
        weights: The module's parameters.
        captures: Values of the surrounding graphs that this one reads; they become its last inputs.
    """

    def __init__(
        self, graph: onnx.GraphProto, state: ImportState, scope: Scope = (), parent: GraphBuilder | None = None
    ) -> None:
        self._proto = graph
        self._state = state
        self.scope = scope
        self.parent = parent
        self.weights = state.weights
        self.emitter = Emitter(state.weights)
        self.captures: list[str] = []
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.aliases = identities(graph)
        self.values: dict[str, Value | None] = {}
        self._failed: set[str] = set()
        self._claimed: set[int] = set()
        self._readers = _readers(graph)

    def build(self) -> fx.GraphModule:
        """Import all nodes. Those that cannot be are added to the state's problems; the module is complete without any.

        The module takes the graph's inputs (initializers excepted), then the captures, and returns its only output or a
        tuple of them.
        """
        for value in self._proto.input:
            if value.name not in self.initializers:
                self.values[value.name] = self.emitter.placeholder(value.name)
        for index, node in enumerate(self._proto.node):
            if index not in self._claimed:
                self._import(node)
        return self.emitter.finish([self._output(value.name) for value in self._proto.output])

    def nested(self, node: onnx.NodeProto, attribute: str) -> GraphBuilder:
        """A builder for a graph that a node of this one holds."""
        graph = next(found.g for found in node.attribute if found.name == attribute)
        return GraphBuilder(graph, self._state, inner_scope(self.scope, node, attribute), self)

    def _output(self, name: str) -> Any:
        if name in self._failed:
            return None
        value = self.value(name)
        return self.emitter.lift(value) if isinstance(value, torch.Tensor) else value

    def _import(self, node: onnx.NodeProto) -> None:
        if self._stored(node.output[0]):
            return  # an Identity of an initializer is another name for it
        domain = "" if node.domain == "ai.onnx" else node.domain
        opset = self._state.opsets.get(domain, 1)
        convert = find(domain, node.op_type, opset)
        origin = self.emitter.origin = OnnxOrigin(walk.display_name(node), node.op_type, tuple(node.output))
        reason = "" if convert else "the operator is not known"
        reads = {*node.input, *(name for subgraph in walk.subgraphs(node) for name in _reads(subgraph))}
        if convert and self._failed.isdisjoint(reads):
            call = OperatorCall(node, opset, self)
            try:
                results = convert(call)
            except Rejected as rejected:
                reason = str(rejected)
            else:
                for position in call.taken_as_constants():
                    self._note_constant(node, position)
                self._store(node, results)
                return
        if reason:
            self._state.problems.append(Problem(origin.name, node.op_type, domain, opset, reason))
        self._failed.update(name for name in node.output if name)

    def _note_constant(self, node: onnx.NodeProto, position: int) -> None:
        weight = self.weight(node, position)
        if weight is not None:
            self.weights.keep_constant(weight)

    def _store(self, node: onnx.NodeProto, results: Any) -> None:
        values = list(results) if isinstance(results, (tuple, list)) else [results]
        for name, value in zip(node.output, values, strict=False):
            if name:
                self.values[name] = value

    # Values

    def read(self, node: onnx.NodeProto, position: int) -> Value:
        """An input of a node: a tensor known at import or an fx node; a learnable initializer is a parameter's node."""
        weight = self.weight(node, position)
        return self.emitter.parameter(weight) if weight is not None else self.value(node.input[position])

    def value(self, name: str) -> Value:
        """The value of a name, whoever reads it."""
        known = self.values.get(name)
        if known is not None:
            return known
        holder = self._stored(name)
        if holder is not None:
            tensor = self._load(*holder)
            if self._is_learnable(*holder):
                return self.emitter.parameter(StoredWeight(name, holder[1], holder[0].scope, tensor))
            value: Value = tensor
        elif self.parent is None:
            sparse = any(tensor.values.name == name for tensor in self._proto.sparse_initializer)
            msg = f"value '{name}' is {'stored as a sparse tensor' if sparse else 'used before it is computed'}"
            raise Rejected(msg)
        else:
            outer = self.parent.value(name)
            value = outer if isinstance(outer, torch.Tensor) else self.emitter.placeholder(name)
            if isinstance(value, fx.Node):
                self.captures.append(name)
        self.values[name] = value
        return value

    def constant(self, name: str) -> torch.Tensor | None:
        """The value of a name where it is known at import, stored weights included."""
        known = self.values.get(name)
        if isinstance(known, torch.Tensor):
            return known
        holder = self._stored(name)
        if holder is not None:
            return self._load(*holder)
        if known is None and self.parent is not None:
            return self.parent.constant(name)
        return None

    def weight(self, node: onnx.NodeProto, position: int) -> StoredWeight | None:
        """The initializer at an input of a node, if it is a weight; None otherwise."""
        name = node.input[position]
        holder = self._stored(name)
        if holder is None:
            return None
        if not self._is_learnable(*holder):
            return None
        use = Use(first_output(node), position, self.scope)
        return StoredWeight(name, holder[1], holder[0].scope, self._load(*holder), use)

    def _is_learnable(self, holder: GraphBuilder, name: str) -> bool:
        fixed = holder.scope == () and name in self._state.constants
        return not fixed and is_learnable(self._load(holder, name))

    def _load(self, holder: GraphBuilder, name: str) -> torch.Tensor:
        try:
            return self.weights.load(holder.scope, holder.initializers[name])
        except TypeError as error:
            raise Rejected(str(error)) from None

    def _stored(self, name: str) -> tuple[GraphBuilder, str] | None:
        """The innermost graph that stores the tensor, and its name; None where one further in computes that value.

        Identity nodes are looked through.
        """
        builder: GraphBuilder | None = self
        while builder is not None:
            for _ in range(len(builder.aliases)):
                if name not in builder.aliases:
                    break
                name = builder.aliases[name]
            if name in builder.initializers:
                return builder, name
            if name in builder.values and name not in builder.captures:
                return None
            builder = builder.parent
        return None

    def element_type(self, name: str) -> int | None:
        holder = self._stored(name)
        if holder is not None:
            return int(holder[0].initializers[holder[1]].data_type)
        known = self._type(name)
        return int(known.elem_type) if known is not None and known.elem_type else None

    def shape(self, name: str) -> list[int | None] | None:
        holder = self._stored(name)
        if holder is not None:
            return [int(length) for length in holder[0].initializers[holder[1]].dims]
        value = self.values.get(name)
        if isinstance(value, torch.Tensor):
            return list(value.shape)
        known = self._type(name)
        if known is None or not known.HasField("shape"):
            return None
        return [int(axis.dim_value) if axis.HasField("dim_value") else None for axis in known.shape.dim]

    def rank(self, name: str) -> int | None:
        shape = self.shape(name)
        return None if shape is None else len(shape)

    def output_types(self) -> list[tuple[int | None, list[int | None] | None]]:
        """Element type and shape of each of the graph's outputs, as far as they are known."""
        return [(self.element_type(value.name), self.shape(value.name)) for value in self._proto.output]

    def _type(self, name: str) -> onnx.TypeProto.Tensor | None:
        lengths = range(len(self.scope), -1, -1)
        found = (self._state.types.get((self.scope[:length], name)) for length in lengths)
        return next((known for known in found if known is not None), None)

    def sole_reader(self, name: str) -> tuple[int, onnx.NodeProto] | None:
        """The only node that reads a value, with its index; None when there are others or it is an output."""
        readers = self._readers.get(name, [])
        return (readers[0], self._proto.node[readers[0]]) if len(readers) == 1 and readers[0] >= 0 else None

    def claim(self, index: int, value: Value) -> None:
        """Take over a later node: its output is the given value."""
        self._claimed.add(index)
        self.values[self._proto.node[index].output[0]] = value


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
