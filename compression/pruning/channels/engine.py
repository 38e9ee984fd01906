"""Which elements of which tensors are one channel: labels go through the graph from where channels are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import helper

from compression.graph import walk
from compression.pruning.channels import label_arrays
from compression.pruning.channels.folding import Folding, settled_values
from compression.pruning.channels.identities import FROZEN, Identities, Labels

# Labels of a stored tensor are per element; beyond this many it keeps its shape.
_LARGEST_LABELLED = 1 << 22


@dataclass(frozen=True)
class Producer:
    """An axis of a weight along which lie the channels that its layer makes.

    Attributes:
        weight: Name of the initializer.
        axis: Axis of the initializer.
        labels: Identities of its channels: those along the axis, or for recurrent layers those of one gate.
        node: Name of the layer.
    """

    weight: str
    axis: int
    labels: Labels
    node: str


@dataclass
class GroupedLayer:
    """A convolution or norm in groups: whole groups go, or as many channels of each.

    Attributes:
        inputs: Identities (groups, input channels of a group).
        outputs: Identities (groups, output channels of a group); for norms the same as `inputs`.
        weight: Name and axis of the initializer whose axis holds one group's input channels, None for norms.
        by_group: Whether whole groups go; None until it is decided.
    """

    node: onnx.NodeProto
    inputs: Labels
    outputs: Labels
    weight: tuple[str, int] | None
    by_group: bool | None = None


class Unknown(Exception):
    """A rule cannot say what happens to labels here."""


@dataclass
class Engine:
    """The state of the propagation; rules read and change it.

    Attributes:
        ids: Which identities belong together.
        axes: Identities along the axes of weights, by initializer and axis.
    """

    model: onnx.ModelProto
    folding: Folding
    ids: Identities = field(default_factory=Identities)
    axes: dict[tuple[str, int], Labels] = field(default_factory=dict)
    producers: list[Producer] = field(default_factory=list)
    grouped: list[GroupedLayer] = field(default_factory=list)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)
    made_by: dict[str, onnx.NodeProto] = field(default_factory=dict)
    used_by: dict[str, list[onnx.NodeProto]] = field(default_factory=dict)
    _labels: dict[str, Labels] = field(default_factory=dict)

    @cached_property
    def settled(self) -> frozenset[str]:
        """Names of small values that are the same whatever the batch."""
        return settled_values(self.model, self.folding)

    def shape(self, name: str) -> tuple[int, ...]:
        """Lengths of the axes of a value; raises `Unknown` where they are not known."""
        shape = self.folding.shape(name)
        if shape is None:
            raise Unknown
        return shape

    def labels(self, name: str) -> Labels:
        """Labels of a value as they are now.

        A value of which nothing can be removed but all of it gets no labels: what is left would be empty.
        """
        found = self._labels.get(name)
        if found is None:
            found = self._of_constant(name)
        elif not found.any():
            return label_arrays.none(found.ndim)
        labels = label_arrays.compress(self.ids.find(found))
        if labels.size == 1:
            self.ids.freeze(labels)
            labels = label_arrays.none(labels.ndim)
        self._labels[name] = labels
        return labels

    def _of_constant(self, name: str) -> Labels:
        shape = self.shape(name)
        if any(weight == name for weight, _ in self.axes):  # see `weight_axis`
            self.freeze(name)
            return label_arrays.none(len(shape))
        if name not in self.constants or not 1 < np.prod(shape, dtype=np.int64) <= _LARGEST_LABELLED:
            return label_arrays.none(len(shape))
        return self.ids.fresh(int(np.prod(shape))).reshape(shape)

    def set(self, name: str, labels: Labels) -> None:
        """Say which labels a node's output has."""
        if name:
            if labels.ndim != len(self.shape(name)):
                raise Unknown
            self._labels[name] = labels

    def set_none(self, name: str) -> None:
        if name:
            self._labels[name] = label_arrays.none(len(self.shape(name)))

    def labelled(self) -> Iterator[tuple[str, Labels]]:
        """All values that have labels, with what they are now."""
        for name in list(self._labels):
            yield name, self.labels(name)

    def freeze(self, name: str) -> None:
        """Let all channels of a value stay."""
        if not name:
            return
        if name in self._labels:
            self.ids.freeze(self._labels[name])
        elif name in self.constants:
            self._labels[name] = label_arrays.none(len(self.constants[name].dims))
        for (weight, _), ids in self.axes.items():
            if weight == name:
                self.ids.freeze(ids)

    def vector(self, name: str, axis: int) -> Labels:
        """Identities along one axis of a value, which then vary along no other; zeros where nothing can go."""
        shape, labels = self.shape(name), self.labels(name)
        axis %= len(shape)
        others = [other for other in label_arrays.varying(labels) if other != axis]
        labels = label_arrays.unify(self.ids, labels, others)
        if others:
            self._labels[name] = labels
            labels = self.labels(name)
        return label_arrays.expand(labels, shape, [axis]).reshape(-1)

    def weight(self, name: str) -> tuple[str, list[int]] | None:
        """The stored tensor behind a value, and for each axis of the value the stored axis that it is."""
        order: list[int] | None = None
        while name not in self.constants:
            node = self.made_by.get(name)
            if node is None or node.op_type not in ("Identity", "Cast", "Transpose"):
                return None
            if node.op_type == "Transpose":
                permutation = attribute(node, "perm", list(reversed(range(len(self.shape(name))))))
                order = permutation if order is None else [permutation[axis] for axis in order]
            name = node.input[0]
        rank = len(self.constants[name].dims)
        return name, list(range(rank)) if order is None else order

    def weight_axis(self, weight: str, axis: int) -> Labels:
        """Identities along an axis of a stored weight."""
        length = int(self.constants[weight].dims[axis])
        if (weight, axis) not in self.axes:
            if weight in self._labels:  # also used element by element, where its labels are kept in another form
                self.axes[weight, axis] = np.full(length, FROZEN, np.int64)
                self.freeze(weight)
            else:
                self.axes[weight, axis] = self.ids.fresh(length)
        return self.axes[weight, axis]

    def join_axis(self, weight: str, axis: int, labels: Labels) -> None:
        """An axis of a stored weight meets these channels."""
        self.ids.union(self.weight_axis(weight, axis), labels)

    def produce(self, node: onnx.NodeProto, weight: str, axis: int, labels: Labels | None = None) -> Labels:
        """The channels that a layer makes, one for each entry along an axis of its weight, or as given."""
        labels = self.weight_axis(weight, axis) if labels is None else labels
        if len(labels) == 1:
            self.ids.freeze(labels)
        self.producers.append(Producer(weight, axis, labels, walk.display_name(node)))
        return labels

    def join_vector(self, name: str, labels: Labels) -> None:
        """A vector of one entry a channel, stored or computed: a bias, a scale, a mean."""
        if name:
            if len(self.shape(name)) != 1:
                raise Unknown
            self.broadcast([name], (labels,), (len(labels),))

    def broadcast(self, names: list[str], more: tuple[Labels, ...], shape: tuple[int, ...]) -> Labels:
        """Join the channels of operands that are combined element by element; the labels of the result.

        Args:
            names: Operands by name.
            more: Labels of further operands, of the result's shape.
            shape: Of the result.
        """
        rank = len(shape)
        operands = [label_arrays.aligned(self.labels(name), rank) for name in names]
        shapes = [(1,) * (rank - len(self.shape(name))) + self.shape(name) for name in names]
        return self.combine([*operands, *more], [*shapes, *[shape] * len(more)])

    def combine(self, operands: Sequence[Labels], shapes: Sequence[Sequence[int]]) -> Labels:
        """Join the channels of operands of equal rank that broadcast to each other; the labels of the result."""
        rank = len(shapes[0])
        for axis in range(rank):
            # An operand that has this axis and no channels along it cannot follow one that loses some.
            if any(own[axis] > 1 and labels.shape[axis] == 1 for own, labels in zip(shapes, operands, strict=True)):
                operands = [label_arrays.unify(self.ids, labels, [axis]) for labels in operands]
        return self.meet(operands, rank)

    def meet(self, operands: Sequence[Labels], rank: int) -> Labels:
        """Join what meets when labels are broadcast; an operand of one label has to stay as a whole."""
        result = label_arrays.none(rank)
        for labels in operands:
            if labels.size == 1:
                self.ids.freeze(labels)
            elif result.size == 1:
                result = labels
            else:
                self.ids.union(result, labels)
                result = np.broadcast_to(result, np.broadcast_shapes(result.shape, labels.shape))
        return label_arrays.compress(self.ids.find(result))


Rule = Callable[[Engine, onnx.NodeProto], None]


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:  # noqa: ANN401 - of the type of the default
    """The value of an attribute."""
    for found in node.attribute:
        if found.name == name:
            value = helper.get_attribute_value(found)
            return value.decode() if isinstance(value, bytes) else value
    return default


def analyse(model: onnx.ModelProto, rules: dict[str, Rule]) -> Engine:
    """Send labels through the graph.

    Args:
        model: A canonical model with float weights; it is not changed.
        rules: What each operator does, by its name.
    """
    engine = Engine(model, Folding(model))
    graph = model.graph
    engine.constants.update({tensor.name: tensor for tensor in graph.initializer})
    for node in graph.node:
        engine.made_by.update(dict.fromkeys(node.output, node))
        for name in node.input:
            engine.used_by.setdefault(name, []).append(node)
    for node in graph.node:
        engine.folding.visit(node)
        _apply(engine, node, rules)
    for value in graph.output:
        engine.freeze(value.name)
    return engine


def _apply(engine: Engine, node: onnx.NodeProto, rules: dict[str, Rule]) -> None:
    rule = rules.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if rule is not None:
        try:
            rule(engine, node)
        except (Unknown, IndexError, ValueError):
            # ValueError: lengths that do not go together, since an open axis was taken for another length than it has.
            pass
        else:
            return
    # What an unknown operator does to its operands is not known, so they keep their shapes.
    for name in (*node.input, *_captured(node), *node.output):
        engine.freeze(name)
    for name in node.output:
        shape = engine.folding.shape(name) if name else None
        if shape is not None:
            engine.set(name, label_arrays.none(len(shape)))


def _captured(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node's subgraphs use, those of their own values included."""
    for graph in walk.subgraphs(node):
        yield from (value.name for value in graph.output)
        for inner in graph.node:
            yield from inner.input
            yield from _captured(inner)
