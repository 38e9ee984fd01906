"""Activations inside two networks: where they are, which belong together, and how to get them in every batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import fx, nn
from torch.nn import functional

from compression.distillation.students.network import Student
from compression.graph.to_torch import as_tuple

Tensors = tuple[torch.Tensor, ...]

# A table of vectors is a layer like any other: what comes out of it is no longer the input.
_MULTIPLYING = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.Linear, nn.Embedding)
_CONVOLVING = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d)
# What ends a stage: the activation before it is the last one with all its positions.
_GATHERING = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.MaxPool2d, nn.Flatten)
_GATHERING_OPERATORS = frozenset(
    {"GlobalAveragePool", "GlobalMaxPool", "AveragePool", "MaxPool", "Flatten", "Reshape", "ReduceMean"}
)
_CONVOLVING_OPERATORS = frozenset(
    {"Conv", "ConvTranspose", "GlobalAveragePool", "GlobalMaxPool", "AveragePool", "MaxPool"}
)


@dataclass(frozen=True)
class Activation:
    """A value inside a network: what a layer that multiplies reads, or what is pooled or flattened.

    Attributes:
        name: Of the fx node, or of the module that reads it.
        depth: Share of the layers that multiply which lie before it, from 0 to 1; 1 before the last one.
        channels: Its channels.
        positions: Lengths of its other axes, without the batch; empty for a vector.
        channel_axis: Where the network has its channels, counted with the batch axis.
    """

    name: str
    depth: float
    channels: int
    positions: tuple[int, ...]
    channel_axis: int

    def channels_first(self, value: torch.Tensor) -> torch.Tensor:
        """The value as (n, channels, *positions)."""
        return value.movedim(self.channel_axis, 1)


@dataclass(frozen=True)
class _Reading:
    """A place where an activation is read, in the order of computation."""

    name: str
    layers_before: int
    multiplies: bool
    convolves: bool


class Tap(Protocol):
    """A network that gives chosen activations beside its outputs."""

    def run(self, inputs: Tensors) -> tuple[Tensors, Tensors]:
        """The outputs, and the activations as (n, channels, *positions)."""


# A graph of fx nodes


def graph_activations(module: fx.GraphModule, inputs: Tensors) -> list[Activation]:
    """All activations of an imported network in the order of computation.

    Args:
        module: As `to_torch` makes it.
        inputs: A few samples, at least 2, to see the shapes.
    """
    readings: dict[str, _Reading] = {}
    layers = 0
    for node in module.graph.nodes:
        origin = node.meta.get("onnx")
        multiplies = _multiplies(module, node)
        if multiplies or (origin is not None and origin.operator in _GATHERING_OPERATORS):
            source = _source(node)
            if source is not None and source.name not in readings:
                convolves = origin is not None and origin.operator in _CONVOLVING_OPERATORS
                readings[source.name] = _Reading(source.name, layers, multiplies, convolves)
        layers += multiplies
    with torch.no_grad():
        found = _extended(module, list(readings))(*inputs)[1]
    return _described(list(readings.values()), found, layers, len(inputs[0]))


def _multiplies(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(module.get_submodule(str(node.target)), _MULTIPLYING)
    if node.op != "call_function":
        return False
    return any(one.op == "get_attr" and _is_matrix(module, str(one.target)) for one in node.all_input_nodes) and (
        "onnx" in node.meta and node.meta["onnx"].operator in ("MatMul", "Gemm", "Conv", "ConvTranspose", "Gather")
    )


def _is_matrix(module: fx.GraphModule, path: str) -> bool:
    owner, _, name = path.rpartition(".")
    value = getattr(module.get_submodule(owner), name, None)
    return isinstance(value, nn.Parameter) and value.dim() > 1


def _source(node: fx.Node) -> fx.Node | None:
    """What the node works on, where that is computed rather than an input or a weight."""
    return next((one for one in node.all_input_nodes if one.op in ("call_module", "call_function")), None)


def _extended(module: fx.GraphModule, names: Sequence[str]) -> fx.GraphModule:
    """The same network, its parameters shared, with a tuple (outputs, values of the named nodes) as its result."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    result = graph.graph_copy(module.graph, copies)
    named = {node.name: copy for node, copy in copies.items()}
    graph.output((result, tuple(named[name] for name in names)))
    return fx.GraphModule(module, graph)


class GraphTap:
    """Activations of an imported network; its graph is extended once.

    Args:
        module: As `to_torch` makes it; its parameters are shared.
        wanted: What to give.
    """

    def __init__(self, module: fx.GraphModule, wanted: Sequence[Activation]) -> None:
        self._module = _extended(module, [one.name for one in wanted])
        self._module.train(module.training)
        self._wanted = tuple(wanted)

    def run(self, inputs: Tensors) -> tuple[Tensors, Tensors]:
        outputs, found = self._module(*inputs)
        return as_tuple(outputs), tuple(
            one.channels_first(value) for one, value in zip(self._wanted, found, strict=True)
        )


# Modules


def student_activations(student: Student, inputs: Tensors) -> list[Activation]:
    """All activations of a student in the order of computation; like `graph_activations`."""
    readings: list[_Reading] = []
    values: list[torch.Tensor] = []
    layers = 0

    def note(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            nonlocal layers
            multiplies = isinstance(module, _MULTIPLYING)
            if not any(args[0] is value for value in (*values, *inputs)):
                values.append(args[0])
                convolves = isinstance(module, (*_CONVOLVING, *_GATHERING))
                readings.append(_Reading(name, layers, multiplies, convolves))
            layers += multiplies

        return hook

    hooks = [
        module.register_forward_pre_hook(note(name))
        for name, module in student.named_modules()
        if isinstance(module, (*_MULTIPLYING, *_GATHERING))
    ]
    was_training = student.training
    try:
        with torch.no_grad():
            student.eval().scores(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
        student.train(was_training)
    # The heads read one vector: they are one layer, however many outputs there are.
    return _described(readings, values, layers - len(student.heads) + 1, len(inputs[0]))


class StudentTap:
    """Activations of a student, noted by hooks; `close` takes them away again.

    Args:
        student: Gives its scores as outputs.
        wanted: What to give.
    """

    def __init__(self, student: Student, wanted: Sequence[Activation]) -> None:
        self._student = student
        self._wanted = tuple(wanted)
        self._values: dict[str, torch.Tensor] = {}
        self._hooks = [
            student.get_submodule(name).register_forward_pre_hook(self._note(name))
            for name in {one.name: None for one in wanted}
        ]

    def run(self, inputs: Tensors) -> tuple[Tensors, Tensors]:
        outputs = self._student.scores(*inputs)
        found = tuple(one.channels_first(self._values[one.name]) for one in self._wanted)
        self._values.clear()
        return outputs, found

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _note(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            self._values[name] = args[0]

        return hook


def _described(
    readings: Sequence[_Reading], values: Sequence[torch.Tensor], layers: int, samples: int
) -> list[Activation]:
    found = []
    for reading, value in zip(readings, values, strict=True):
        if not (2 <= value.dim() <= 4 and len(value) == samples and value.is_floating_point()):
            continue
        if reading.layers_before == 0:
            continue  # nothing but the input in another form
        if value.dim() > 2 and value.numel() == samples * max(value.shape[1:]):
            continue  # a vector that has kept its axes
        # Dense layers have their channels last, whatever the rank; so has what is reshaped or averaged as a sequence.
        last = not reading.convolves and (reading.multiplies or value.dim() == 3)
        axis = value.dim() - 1 if last else 1
        positions = tuple(length for other, length in enumerate(value.shape) if other not in (0, axis))
        depth = min(reading.layers_before / max(layers - 1, 1), 1.0)
        found.append(Activation(reading.name, depth, value.shape[axis], positions, axis))
    return found


# Matching


@dataclass(frozen=True)
class Pair:
    """Two activations that are compared."""

    student: Activation
    teacher: Activation


def matched(
    student: Sequence[Activation], teacher: Sequence[Activation], count: int, *, with_positions: bool = False
) -> list[Pair]:
    """Pairs of activations by relative depth and size, spread evenly over the depth, the deepest one first chosen.

    Both sides of the pairs are in the order of computation. A pair costs the distance of both depths from the wanted
    one, half the binary logarithm of the ratio of their positions, and 1 where one has other axes than the other.

    Args:
        student: In the order of computation.
        teacher: Likewise.
        count: At most so many pairs.
        with_positions: Leave out vectors, and pairs with other axes.

    Returns:
        From the shallowest to the deepest; fewer than `count` where there is nothing left to match.
    """
    pairs: list[Pair] = []
    ours, theirs = len(student), len(teacher)
    for step in range(count, 0, -1):
        wanted = step / count
        options = [
            (_cost(student[mine], teacher[other], wanted), -mine, -other)
            for mine in range(ours)
            for other in range(theirs)
            if not with_positions
            or (student[mine].positions and len(student[mine].positions) == len(teacher[other].positions))
        ]
        if not options:
            break
        _, mine, other = min(options)
        ours, theirs = -mine, -other
        pairs.append(Pair(student[ours], teacher[theirs]))
    return pairs[::-1]


def _cost(student: Activation, teacher: Activation, depth: float) -> float:
    far = abs(student.depth - depth) + abs(teacher.depth - depth)
    if len(student.positions) != len(teacher.positions):
        return far + 1
    return far + abs(math.log2(math.prod(student.positions) / math.prod(teacher.positions))) / 2


def aligned(student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both activations with the same positions: the larger ones averaged down, all of them where axes differ.

    Args:
        student: (n, channels, *positions).
        teacher: (n, other channels, *other positions).
    """
    if student.dim() != teacher.dim():
        return pooled(student), pooled(teacher)
    sides = [min(pair) for pair in zip(student.shape[2:], teacher.shape[2:], strict=True)]
    return _averaged(student, sides), _averaged(teacher, sides)


def pooled(value: torch.Tensor) -> torch.Tensor:
    """Mean over all positions: (n, channels)."""
    return value.flatten(2).mean(2) if value.dim() > 2 else value


def _averaged(value: torch.Tensor, sides: Sequence[int]) -> torch.Tensor:
    if list(value.shape[2:]) == list(sides):
        return value
    if len(sides) == 1:
        return functional.adaptive_avg_pool1d(value, sides[0])
    return functional.adaptive_avg_pool2d(value, (sides[0], sides[1]))
