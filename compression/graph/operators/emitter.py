"""The fx side of the import: nodes, the places where they compute, and the layers and tensors that the module owns.

Nodes live in one of three places: `device`, where the module's inputs and weights are; `host`, small integer tensors
that come from shapes and stay on the CPU whatever the device; and `python`, lists and numbers. Where host and device
values meet, a transfer is inserted.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from compression.graph.operators.weight_store import StoredWeight, WeightStore

_DEVICE, _HOST, _PYTHON = "device", "host", "python"
_PLACE, _WEIGHT = "place", "weight"
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


def on_device_of(tensor: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """A value that was computed from shapes, moved to where it is needed."""
    return tensor.to(reference.device)


def weight_of(value: Any) -> StoredWeight | None:
    """The initializer behind a node that reads a parameter."""
    return value.meta.get(_WEIGHT) if isinstance(value, fx.Node) else None


class Emitter:
    """One fx graph under construction, and the module that it will run on.

    Args:
        weights: The parameters of the whole model.

    Attributes:
        origin: The ONNX node that is being imported.
    """

    def __init__(self, weights: WeightStore) -> None:
        self.origin: OnnxOrigin | None = None
        self._weights = weights
        self._root = nn.Module()
        self._graph = fx.Graph()
        self._parameters: dict[int, fx.Node] = {}
        self._constants: dict[int, tuple[torch.Tensor, fx.Node]] = {}
        self._last_placeholder: fx.Node | None = None
        self._containers: set[str] = set()
        self._owned: set[str] = set()

    def finish(self, outputs: Sequence[Any]) -> fx.GraphModule:
        """The module; it gives its only output, or a tuple of them."""
        self._graph.output(outputs[0] if len(outputs) == 1 else tuple(outputs))
        self._graph.eliminate_dead_code(_is_boundary)
        for node in self._graph.nodes:
            node.meta.pop(_WEIGHT, None)  # it holds the stored values, which would live on beside the parameter
        return fx.GraphModule(self._root, self._graph)

    def placeholder(self, name: str) -> fx.Node:
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
        anchors = [node for node in nodes if _on_device(node) and _WEIGHT not in node.meta]
        hosts = [node for node in nodes if node.meta[_PLACE] == _HOST]
        weights = [node for node in nodes if _WEIGHT in node.meta]
        large = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.numel() > _LITERAL_ELEMENTS]
        small_weights = all(node.meta[_WEIGHT].values.numel() <= _LITERAL_ELEMENTS for node in weights)
        on_host = not anchors and not large and (bool(hosts) or not weights) and small_weights
        lifted_large = [self.lift(leaf) for leaf in large]
        reference = next(iter((*anchors, *weights, *lifted_large)), None)

        def place(leaf: Any) -> Any:
            if isinstance(leaf, torch.Tensor):
                return self._literal(leaf) if on_host else self.lift(leaf)
            if isinstance(leaf, fx.Node) and on_host and _WEIGHT in leaf.meta:
                self._weights.keep_constant(leaf.meta[_WEIGHT])
                return self._literal(leaf.meta[_WEIGHT].values)
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

    def layer(self, module: nn.Module, args: tuple[Any, ...], named_after: Sequence[str]) -> fx.Node:
        """Let the module own a layer and apply it."""
        found = (_LAYER_TENSOR.fullmatch(name) for name in named_after)
        preferred = next((match[1] for match in found if match), self.origin.name if self.origin else "layer")
        path = self._own(preferred, module)
        nodes = [leaf for leaf in _leaves(args) if isinstance(leaf, fx.Node)]
        anchor = next((node for node in nodes if _on_device(node)), None)
        own = next((name for name, _ in (*module.named_parameters(), *module.named_buffers())), None)
        if anchor is None and nodes and own is not None:
            # All that the layer takes comes from shapes: it is moved to where the layer's weights are.
            anchor = self._mark(self._graph.create_node("get_attr", f"{path}.{own}", (), {}), _DEVICE)

        def place(leaf: Any) -> Any:
            if isinstance(leaf, torch.Tensor):
                return self.lift(leaf)
            if anchor is not None and isinstance(leaf, fx.Node) and leaf.meta[_PLACE] == _HOST:
                return self._emit(on_device_of, (leaf, anchor), {}, _DEVICE)
            return leaf

        placed = fx.node.map_aggregate(args, place)
        node = self._graph.create_node("call_module", path, placed, {}, self._hint())
        return self._mark(node, _DEVICE)

    def parameter(self, weight: StoredWeight) -> fx.Node:
        """A node that reads the parameter of an initializer, as the file stores it."""
        (parameter,) = self._weights.parameters(weight)
        node = self._parameters.get(id(parameter))
        if node is None:
            node = self._graph.create_node("get_attr", self._own(weight.name, parameter), (), {})
            node.meta.update({_PLACE: _DEVICE, _WEIGHT: weight})
            self._parameters[id(parameter)] = node
        return node

    def lift(self, tensor: torch.Tensor) -> fx.Node:
        """A constant as a buffer."""
        known = self._constants.get(id(tensor))
        if known is None:
            # A copy: the same stored tensor may be the memory of a parameter elsewhere.
            path = self._own(self._weights.name_of(tensor), nn.Buffer(tensor.clone()))
            node = self._graph.create_node("get_attr", path, (), {})
            node.meta[_PLACE] = _DEVICE
            known = self._constants[id(tensor)] = (tensor, node)
        return known[1]

    def _own(self, name: str, item: nn.Module | torch.Tensor) -> str:
        """Put a layer, parameter or buffer into the module, under its name where that is a free and legal path.

        Otherwise under a like one. Gives the path.
        """
        if not self._is_free(name):
            flat, count = _identifier(name), 0
            name = flat
            while not self._is_free(name):
                count += 1
                name = f"{flat}_{count}"
        *parents, last = name.split(".")
        owner = self._root
        for depth, parent in enumerate(parents, 1):
            path = ".".join(parents[:depth])
            if path not in self._containers:
                owner.add_module(parent, nn.Module())
                self._containers.add(path)
            owner = owner.get_submodule(parent)
        setattr(owner, last, item)
        self._owned.add(name)
        return name

    def _is_free(self, path: str) -> bool:
        """Whether something may be stored under a path: every part a plain word, nothing but containers above it."""
        atoms = path.split(".")
        legal = all(_ATOM.fullmatch(atom) and atom not in _RESERVED for atom in atoms)
        above = (".".join(atoms[:depth]) for depth in range(1, len(atoms)))
        return legal and path not in self._owned and path not in self._containers and self._owned.isdisjoint(above)

    def _literal(self, tensor: torch.Tensor) -> fx.Node:
        return self._emit(torch.tensor, (tensor.tolist(),), {"dtype": tensor.dtype}, _HOST)

    def _emit(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], where: str) -> fx.Node:
        node = self._graph.create_node("call_function", function, args, kwargs, self._hint())
        return self._mark(node, where)

    def _hint(self) -> str | None:
        return _identifier(self.origin.name) if self.origin else None

    def _mark(self, node: fx.Node, where: str) -> fx.Node:
        node.meta[_PLACE] = where
        if self.origin is not None:
            node.meta["onnx"] = self.origin
        return node


def _on_device(node: fx.Node) -> bool:
    return bool(node.meta[_PLACE] == _DEVICE)


def _is_boundary(node: fx.Node) -> bool:
    """Nothing but inputs and outputs is kept without readers: ONNX nodes have no side effects."""
    return node.op in ("placeholder", "output")


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
