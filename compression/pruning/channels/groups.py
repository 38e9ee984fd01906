"""From settled labels to units that can be removed, the groups they compete in, and what depends on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from compression.pruning.channels import label_arrays, rectangles
from compression.pruning.channels.engine import Engine, Producer
from compression.pruning.channels.identities import FROZEN, Identities, Labels

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Group:
    """Channels that lie along the same axes; some of them can be removed, down to a few.

    Attributes:
        units: Representatives of what can be removed, each with all that goes with it, in order.
        producers: Axes of weights along which they lie.
        width: Channels of the first producer that one unit stands for.
        fixed: Channels of the first producer that stay in any case.
    """

    units: tuple[int, ...]
    producers: tuple[Producer, ...]
    width: int
    fixed: int


@dataclass
class Plan:
    """What can be removed and what follows from it.

    Attributes:
        groups: In the order of the graph.
        lines: Every different row of units that lies along an axis of some tensor; each has to keep one.
        along: For each value that has channels, its axis and the index of its line.
        weights: For each stored tensor, its axes with the index of their lines.
        size: More than the number of any unit.
    """

    size: int
    groups: list[Group] = field(default_factory=list)
    lines: list[Labels] = field(default_factory=list)
    along: dict[str, tuple[int, int]] = field(default_factory=dict)
    weights: dict[str, dict[int, int]] = field(default_factory=dict)
    _known: dict[bytes, int] = field(default_factory=dict)

    def line(self, labels: Labels) -> int:
        """The index of a row of units, which is added where it is new."""
        key = labels.tobytes()
        if key not in self._known:
            self._known[key] = len(self.lines)
            self.lines.append(labels)
        return self._known[key]

    def kept(self, removed: npt.NDArray[np.int64]) -> list[Mask]:
        """For each line, which of its entries are left."""
        gone = np.zeros(self.size, np.bool_)
        gone[removed] = True
        return [~gone[line] for line in self.lines]


def plan(engine: Engine, chosen: Mapping[str, bool]) -> Plan:
    """Find what can be removed.

    Args:
        engine: After the propagation; labels are joined further here.
        chosen: For each weight that makes channels whether it may lose some; a weight that is absent has no say, for
            example a norm's. A unit can be removed when some of its weights may lose channels and none may not.
    """
    rectangles.settle(engine)
    rectangles.connect_grouped_weights(engine)
    rectangles.settle(engine)
    ids = engine.ids
    for producer in engine.producers:
        if chosen.get(producer.weight) is False:
            ids.freeze(producer.labels)
    rectangles.settle(engine)
    open_units = [ids.find(p.labels) for p in engine.producers if chosen.get(p.weight)]
    made = np.unique(np.concatenate(open_units)) if open_units else np.zeros(0, np.int64)
    made = made[made != FROZEN]
    is_made = ids.among(made)
    result = Plan(len(is_made))
    result.groups = _groups(engine, made)
    for name, found in engine.labelled():
        _note(result, engine, name, np.where(is_made[found], found, FROZEN))
    for (weight, axis), row in engine.axes.items():
        found = ids.find(row)
        found = np.where(is_made[found], found, FROZEN)
        if found.any():
            result.weights.setdefault(weight, {})[axis] = result.line(found)
    return result


def _note(result: Plan, engine: Engine, name: str, labels: Labels) -> None:
    labels = label_arrays.compress(labels)
    axes = label_arrays.varying(labels)
    if not axes:
        return
    (axis,) = axes
    index = result.line(np.ascontiguousarray(labels.reshape(-1)))
    if name in engine.constants:
        result.weights.setdefault(name, {})[axis] = index
    result.along[name] = (axis, index)


def _groups(engine: Engine, made: Labels) -> list[Group]:
    together = Identities()
    together.fresh(len(made))
    rows = []
    for producer in engine.producers:
        found = engine.ids.find(producer.labels)
        places = np.searchsorted(made, found[np.isin(found, made)]) + 1
        rows.append(places)
        if len(places):
            together.union(places, places[:1])
    groups: dict[int, list[int]] = {}
    for index, places in enumerate(rows):
        if len(places):
            groups.setdefault(int(together.find(places[:1])[0]), []).append(index)
    roots = together.find(np.arange(1, len(made) + 1))
    result = []
    for root, members in groups.items():
        units = made[roots == root]
        producers = tuple(engine.producers[index] for index in members)
        row = engine.ids.find(producers[0].labels)
        inside = np.isin(row, units)
        _, counts = np.unique(row[inside], return_counts=True)
        result.append(Group(tuple(units.tolist()), producers, int(counts.max()), int(np.count_nonzero(~inside))))
    return result
