"""Which nodes to compute in integers, from what each takes either way and what lies between them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx

from compression.graph.shapes import KnownShape
from compression.quantization.choice.conversions import Conversions
from compression.quantization.choice.cut import Labels
from compression.quantization.integer.plan import Anatomy

_FORBIDDEN = float("inf")


@dataclass(frozen=True)
class Value:
    """A value that flows between nodes of the graph.

    Attributes:
        name: Its name.
        producer: The node that computes it, None for an input of the graph.
        consumers: The nodes that read it, without repetition.
        elements: How many numbers it holds, 0 where that is not known.
        rank: Number of its axes.
        is_output: Whether the graph gives it out.
    """

    name: str
    producer: str | None
    consumers: tuple[str, ...]
    elements: int
    rank: int
    is_output: bool


def values(graph: onnx.ModelProto, shapes: Mapping[str, KnownShape]) -> list[Value]:
    """All values of the main graph but stored ones, inputs first."""
    stored = {tensor.name for tensor in graph.graph.initializer}
    readers: dict[str, list[str]] = {}
    for node in graph.graph.node:
        for name in dict.fromkeys(node.input):
            if name and name not in stored:
                readers.setdefault(name, []).append(node.name)
    outputs = {value.name for value in graph.graph.output}
    origins: list[tuple[str, str | None]] = [(value.name, None) for value in graph.graph.input]
    origins += [(name, node.name) for node in graph.graph.node for name in node.output if name]
    found = []
    for name, producer in origins:
        shape = shapes.get(name)
        elements, rank = (0, 0) if shape is None else (shape.elements or 0, len(shape.axes))
        found.append(Value(name, producer, tuple(readers.get(name, ())), elements, rank, name in outputs))
    return found


def groups(
    anatomy: Anatomy, integer: Collection[str], flows: Sequence[Value], timed: Collection[str]
) -> list[list[str]]:
    """All nodes in the groups in which they are decided about, in the order of the graph.

    Together are an integer layer and what its kernel computes along with it; and nodes that one float kernel computes:
    one without a kernel of its own belongs to the only reader of what it gives, else to the last of the nodes whose
    values it reads. So activations go with their layer, and sums with the convolution into which they are fused.

    Args:
        anatomy: The float graph.
        integer: Nodes that can compute in integers.
        flows: Its values.
        timed: Nodes that have a float kernel of their own.
    """
    order = {node.name: place for place, node in enumerate(anatomy.model.graph.node)}
    sets = _Sets(order)
    tails = _tails(anatomy, integer)
    for first, others in tails.items():
        for other in others:
            sets.join(other, first)
    able = set(integer).union(*tails.values())
    reads, read_by = _neighbours(order, flows)
    with_kernel = {sets.leader(name) for name in timed}
    for name in order:
        if name not in able or sets.leader(name) in with_kernel:
            continue
        # A layer's kernel computes what comes behind it, and nothing before.
        behind = {reader for reader in read_by[name] if sets.leader(reader) != sets.leader(name)}
        before = [other for other in reads[name] if sets.leader(other) != sets.leader(name)]
        partners = behind if len(behind) == 1 and not behind & anatomy.layers.keys() else set()
        partner = next(iter(partners), max(before, key=order.__getitem__, default=None))
        if partner in able:
            sets.join(name, partner)
            with_kernel = {sets.leader(one) for one in timed}
    found: dict[str, list[str]] = {}
    for name in order:
        found.setdefault(sets.leader(name), []).append(name)
    return list(found.values())


class _Sets:
    """Disjoint sets of names, each at first alone."""

    def __init__(self, names: Iterable[str]) -> None:
        self._above = {name: name for name in names}

    def leader(self, name: str) -> str:
        while self._above[name] != name:
            name = self._above[name]
        return name

    def join(self, one: str, other: str) -> None:
        self._above[self.leader(one)] = self.leader(other)


def _neighbours(names: Iterable[str], flows: Iterable[Value]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """For each node those whose values it reads, and those that read its values."""
    reads: dict[str, list[str]] = {name: [] for name in names}
    read_by: dict[str, list[str]] = {name: [] for name in names}
    for flow in flows:
        if flow.producer is not None:
            read_by[flow.producer] += flow.consumers
            for consumer in flow.consumers:
                reads[consumer].append(flow.producer)
    return reads, read_by


def _tails(anatomy: Anatomy, integer: Collection[str]) -> dict[str, list[str]]:
    """For each integer node the nodes that its kernel computes along with it."""
    producers = {name: node for node in anatomy.model.graph.node for name in node.output}
    found = {}
    for first in integer:
        node = producers.get(anatomy.tails.get(first, ""))
        others = []
        while node is not None and node.name != first:
            others.append(node.name)
            # Of what a node of a tail reads, one value is computed and the others are stored.
            node = next((producers[name] for name in node.input if name in producers), None)
        found[first] = others
    return found


def cheapest(
    flows: Sequence[Value],
    grouped: Iterable[Sequence[str]],
    integer: Collection[str],
    seconds: Mapping[str, tuple[float, float]],
    conversions: Conversions,
    *,
    scale: float = 1.0,
) -> frozenset[str]:
    """The nodes to compute in integers so that the sum of kernels and conversions is the smallest.

    A value that goes from float to integers is converted once, whoever reads it; one that goes the other way, by each
    reader.

    Args:
        flows: The values of the graph.
        grouped: Nodes that share a decision; every node is in one group.
        integer: Nodes that can compute in integers; a group with none of them cannot.
        seconds: For each node what its kernels take in float and in integers.
        conversions: What it takes to carry a value over.
        scale: Factor on the latter.
    """
    labels = Labels()
    members: dict[str, str] = {}
    for group in grouped:
        members.update(dict.fromkeys(group, group[0]))
        able = any(name in integer for name in group)
        in_float, in_integers = (sum(seconds.get(name, (0.0, 0.0))[side] for name in group) for side in (0, 1))
        labels.cost(group[0], if_chosen=in_integers if able else _FORBIDDEN, if_not=in_float)
    outside = ("outside",)
    labels.cost(outside, if_chosen=_FORBIDDEN, if_not=0.0)
    for flow in flows:
        producer = outside if flow.producer is None else members[flow.producer]
        into_integers = ("into integers", flow.name)
        labels.separate(into_integers, producer, scale * conversions.into_integers(flow.elements, flow.rank))
        for consumer in {members[name] for name in flow.consumers} - {producer}:
            labels.separate(consumer, into_integers, _FORBIDDEN)
            labels.separate(producer, consumer, scale * conversions.into_float(flow.elements, flow.rank))
        if flow.is_output:
            labels.separate(producer, outside, scale * conversions.into_float(flow.elements, flow.rank))
    chosen = labels.chosen()
    return frozenset(name for name, leader in members.items() if leader in chosen)
