"""Cheapest assignment of two labels to things where neighbours with different labels cost extra."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable

_SOURCE, _SINK = object(), object()


class Labels:
    """A minimum cut over named things (Dinic 1970; labels as cuts: Greig et al. 1989).

    Each thing gets one of two labels. The sum of all costs of the labelling that `chosen` gives is the smallest there
    is. Costs are not negative; infinite ones forbid.

    >>> labels = Labels()
    >>> labels.cost("a", if_chosen=1.0, if_not=3.0)
    >>> labels.cost("b", if_chosen=2.0, if_not=1.5)
    >>> labels.separate("a", "b", 1.0)
    >>> sorted(labels.chosen())
    ['a', 'b']
    """

    def __init__(self) -> None:
        self._ids: dict[object, int] = {}
        self._arcs: list[list[int]] = []
        self._targets: list[int] = []
        self._capacities: list[float] = []
        self._source, self._sink = self._id(_SOURCE), self._id(_SINK)

    def cost(self, thing: Hashable, *, if_chosen: float, if_not: float) -> None:
        """What either label of a thing costs; called again, costs add up."""
        self._arc(self._id(thing), self._sink, if_chosen)
        self._arc(self._source, self._id(thing), if_not)

    def separate(self, chosen: Hashable, other: Hashable, cost: float) -> None:
        """What it costs when the first is chosen and the second is not."""
        self._arc(self._id(chosen), self._id(other), cost)

    def chosen(self) -> set[object]:
        """The things that are chosen; of several cheapest labellings the one that chooses least."""
        while (levels := self._levels())[self._sink] >= 0:
            places = [0] * len(self._arcs)
            while self._push(levels, places):
                pass
        return {thing for thing, number in self._ids.items() if levels[number] >= 0 and thing is not _SOURCE}

    def _id(self, thing: object) -> int:
        if thing not in self._ids:
            self._ids[thing] = len(self._arcs)
            self._arcs.append([])
        return self._ids[thing]

    def _arc(self, start: int, end: int, capacity: float) -> None:
        """An arc and its reverse, at neighbouring places."""
        if capacity > 0:
            for source, target, room in ((start, end, capacity), (end, start, 0.0)):
                self._arcs[source].append(len(self._targets))
                self._targets.append(target)
                self._capacities.append(room)

    def _levels(self) -> list[int]:
        """Arcs from the source to each node on the shortest way with room, -1 where there is none."""
        levels = [-1] * len(self._arcs)
        levels[self._source] = 0
        waiting = deque([self._source])
        while waiting:
            node = waiting.popleft()
            for arc in self._arcs[node]:
                target = self._targets[arc]
                if self._capacities[arc] > 0 and levels[target] < 0:
                    levels[target] = levels[node] + 1
                    waiting.append(target)
        return levels

    def _push(self, levels: list[int], places: list[int]) -> bool:
        """Send as much as fits along one way that climbs the levels; False when there is no such way.

        Without recursion: a graph of nodes in a chain has ways as long as it is deep.
        """
        way: list[int] = []
        node = self._source
        while node != self._sink:
            while places[node] < len(self._arcs[node]):
                arc = self._arcs[node][places[node]]
                if self._capacities[arc] > 0 and levels[self._targets[arc]] == levels[node] + 1:
                    break
                places[node] += 1
            else:
                if not way:
                    return False
                node = self._targets[way.pop() ^ 1]
                places[node] += 1
                continue
            way.append(arc)
            node = self._targets[arc]
        amount = min(self._capacities[arc] for arc in way)
        if math.isinf(amount):
            msg = "costs forbid every labelling"
            raise ValueError(msg)
        for arc in way:
            # Subtracting the smallest from itself gives zero exactly, so that every push fills at least one arc.
            self._capacities[arc] -= amount
            self._capacities[arc ^ 1] += amount
        return True
