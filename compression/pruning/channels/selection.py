"""Which units to remove: by rank, by amount, in multiples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from compression.pruning.channels.groups import Group, Plan
from compression.pruning.channels.identities import Labels
from compression.pruning.channels.importance import Scores

_BISECTIONS = 24


@dataclass(frozen=True)
class Ranking:
    """Groups with a score for each of their units, and how far they may shrink.

    Attributes:
        scope: `layer` or `global`.
        round_to: Layers keep a multiple of so many channels.
        max_amount: Largest share of a group's units that goes.
    """

    plan: Plan
    scores: Sequence[Scores]
    scope: str
    round_to: int
    max_amount: float

    def remove(self, amount: float) -> Labels:
        """The units to remove for a share of all, such that no axis of any tensor becomes empty."""
        protected: set[int] = set()
        while True:
            removed = self._remove(amount, protected)
            empty = [
                line for line, kept in zip(self.plan.lines, self.plan.kept(removed), strict=True) if not kept.any()
            ]
            if not empty:
                return removed
            rank = {
                unit: score
                for group, scores in zip(self.plan.groups, self.scores, strict=True)
                for unit, score in zip(group.units, scores.tolist(), strict=True)
            }
            protected.update(max(np.unique(line).tolist(), key=lambda unit: rank.get(unit, 0.0)) for line in empty)

    def _remove(self, amount: float, protected: set[int]) -> Labels:
        candidates = []  # of each group the units that may go, worst first
        for group, scores in zip(self.plan.groups, self.scores, strict=True):
            order = [index for index in np.argsort(scores, kind="stable") if group.units[index] not in protected]
            most = int(len(group.units) * self.max_amount + 1e-9)
            candidates.append(order[:most])
        if self.scope == "layer":
            counts = [
                min(int(len(group.units) * amount + 1e-9), len(order))
                for group, order in zip(self.plan.groups, candidates, strict=True)
            ]
        else:
            counts = self._by_rank(amount, candidates)
        removed = []
        for group, order, count in zip(self.plan.groups, candidates, counts, strict=True):
            removed += [group.units[index] for index in order[: round_down(group, count, self.round_to)]]
        return np.array(sorted(removed), np.int64)

    def _by_rank(self, amount: float, candidates: Sequence[Sequence[int]]) -> list[int]:
        """How many units of each group go when all are ranked together."""
        scores = np.concatenate([s[order] for s, order in zip(self.scores, candidates, strict=True)])
        owners = np.repeat(np.arange(len(candidates)), [len(order) for order in candidates])
        widths = np.array([group.width for group in self.plan.groups])
        total = sum(group.width * len(group.units) for group in self.plan.groups)
        order = np.argsort(scores, kind="stable")
        gone = np.cumsum(widths[owners[order]])
        taken = order[gone <= amount * total + 1e-9]
        counts: list[int] = np.bincount(owners[taken], minlength=len(candidates)).tolist()
        return counts

    def smallest_sufficient(self, sufficient: Callable[[Labels], bool]) -> Labels | None:
        """The units to remove for the smallest amount that suffices; None where the largest does not."""
        best = self.remove(self.max_amount)
        if not sufficient(best):
            return None
        low, high = 0.0, self.max_amount
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            removed = self.remove(middle)
            if sufficient(removed):
                best, high = removed, middle
            else:
                low = middle
        return best


def round_down(group: Group, count: int, multiple: int) -> int:
    """The largest number of units up to `count` whose removal leaves a multiple of channels, and at least that many."""
    for removed in range(count, 0, -1):
        left = group.fixed + group.width * (len(group.units) - removed)
        if left >= multiple and left % multiple == 0 and left > 0:
            return removed
    return 0
