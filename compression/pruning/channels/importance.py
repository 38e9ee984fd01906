"""How much each channel matters. Pure functions on arrays, then a score for each unit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import numpy_helper

from compression.errors import StepFailed
from compression.pruning.channels.engine import Engine
from compression.pruning.channels.groups import Group
from compression.pruning.channels.identities import Labels

Array = npt.NDArray[Any]
Scores = npt.NDArray[np.float64]


def norms(rows: Array, order: int) -> Scores:
    """The l1 or l2 norm of each row (Li et al. 2017, "Pruning Filters for Efficient ConvNets", section 3.1).

    Args:
        rows: (channels, elements).
        order: 1 or 2.
    """
    wide = rows.astype(np.float64)
    found: Scores = np.abs(wide).sum(axis=1) if order == 1 else np.sqrt((wide * wide).sum(axis=1))
    return found


def distances(rows: Array) -> Scores:
    """The sum of each row's distances to all rows (He et al. 2019, "Filter Pruning via Geometric Median", section 3.3).

    Rows near the geometric median are the ones that others can stand in for.

    >>> distances(np.array([[0.0], [1.0], [3.0]])).tolist()
    [4.0, 3.0, 5.0]
    """
    wide = rows.astype(np.float64)
    squares = (wide * wide).sum(axis=1)
    apart = squares[:, None] + squares[None, :] - 2 * wide @ wide.T
    np.fill_diagonal(apart, 0.0)
    summed: Scores = np.sqrt(np.maximum(apart, 0.0)).sum(axis=1)
    return summed


def lamp(scores: Scores) -> Scores:
    """Each squared score over the sum of those not below it (Lee et al. 2021, "Layer-adaptive Sparsity", equation 1).

    >>> lamp(np.array([1.0, 2.0, 1.0])).round(3).tolist()
    [0.167, 1.0, 0.2]
    """
    squares = scores * scores
    order = np.argsort(squares, kind="stable")
    remaining = np.cumsum(squares[order][::-1])[::-1]
    result = np.zeros_like(squares)
    result[order] = np.divide(squares[order], remaining, out=np.zeros_like(squares), where=remaining > 0)
    return result


class Scorer:
    """Scores for the units of a group: the mean over the tensors in which they lie of each tensor's normalized scores.

    Args:
        criterion: `l1`, `l2`, `lamp`, `fpgm`, `bn_scale`, `taylor` or `random`.
        seed: Of `random`.
        gates: For `taylor`, by weight and axis what `compression.pruning.channels.sensitivity` has measured.
    """

    def __init__(
        self, engine: Engine, criterion: str, seed: int, gates: Mapping[tuple[str, int], Array] | None = None
    ) -> None:
        self._engine, self._criterion, self._gates = engine, criterion, gates or {}
        self._random = np.random.default_rng(seed)
        self._axes: dict[int, list[tuple[str, int, Labels]]] = {}
        for (weight, axis), labels in engine.axes.items():
            self._remember(weight, axis, engine.ids.find(labels))
        self._scales = {
            node.input[1]
            for node in engine.model.graph.node
            if node.op_type in ("BatchNormalization", "InstanceNormalization", "GroupNormalization")
            and len(node.input) > 1
        }
        for name in self._scales & engine.constants.keys():
            self._remember(name, 0, engine.ids.find(engine.labels(name)))

    def _remember(self, weight: str, axis: int, labels: Labels) -> None:
        for unit in np.unique(labels):
            self._axes.setdefault(int(unit), []).append((weight, axis, labels))

    def scores(self, group: Group) -> Scores:
        """One score for each unit, low for what matters least; 1 is the group's average."""
        units = np.array(group.units)
        if self._criterion == "random":
            return self._random.random(len(units))
        if self._criterion == "taylor":
            return self._by_gates(group, units)
        found = list(self._of_tensors(units))
        if not found:
            return np.ones(len(units))
        total: Scores = np.nanmean(np.stack(found), axis=0)
        return lamp(total) if self._criterion == "lamp" else total

    def _tensors(self, units: Labels) -> dict[tuple[str, int], Labels]:
        """Weights and their axes along which the units lie, with what lies there."""
        return {(weight, axis): labels for unit in units.tolist() for weight, axis, labels in self._axes.get(unit, ())}

    def _by_gates(self, group: Group, units: Labels) -> Scores:
        """The mean square of what the loss changes by, to first order, when a unit goes, for each of its channels.

        All that reads a unit together sees it go. Where nothing reads it by a weight, as with queries and keys, each
        layer that makes it says the same, and the mean is taken.
        """
        makers = {(producer.weight, producer.axis) for producer in group.producers}
        read, made = _Gates(units), _Gates(units)
        for key, labels in self._tensors(units).items():
            if key in self._gates:
                (made if key in makers else read).add(self._gates[key], labels)
        changes = np.where(read.counts > 0, read.sums, made.sums / max(made.tensors, 1))
        # A wide unit costs as many channels as it has.
        scores: Scores = np.mean(np.square(changes), axis=0) / group.width
        return scores

    def _of_tensors(self, units: Labels) -> Iterator[Scores]:
        seen = self._tensors(units)
        scales = {key: labels for key, labels in seen.items() if key[0] in self._scales}
        others = {key: labels for key, labels in seen.items() if key[0] not in self._scales}
        # Without a norm there is no scale to judge by, and the weights' own size decides.
        chosen = scales if self._criterion == "bn_scale" and scales else others
        for (weight, axis), labels in chosen.items():
            values = numpy_helper.to_array(self._engine.constants[weight])
            if not np.isfinite(values).all():
                raise StepFailed("non_finite_weights", f"Weight '{weight}' holds NaN or infinity.")
            rows = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
            yield _by_unit(rows, labels, units, self._measure())

    def _measure(self) -> Callable[[Array], Scores]:
        if self._criterion == "fpgm":
            return distances
        order = 1 if self._criterion in ("l1", "bn_scale") else 2
        return lambda rows: norms(rows, order)


class _Gates:
    """Derivatives of gates on units, summed over the tensors in which they lie.

    Attributes:
        sums: (batches, units), or (units,) zeros while there are none.
        counts: (units,) rows that belong to each.
    """

    def __init__(self, units: Labels) -> None:
        self._units = units
        self.sums: Scores = np.zeros(len(units))
        self.counts = np.zeros(len(units), np.int64)
        self.tensors = 0

    def add(self, gates: Scores, labels: Labels) -> None:
        """Take in those of one tensor, (batches, rows)."""
        of_batches = [_sums(batch, labels, self._units) for batch in gates]
        self.sums = self.sums + np.stack([sums for sums, _ in of_batches])
        self.counts += of_batches[0][1]
        self.tensors += 1


def _sums(of_rows: Scores, labels: Labels, units: Labels) -> tuple[Scores, Labels]:
    """Sums over the rows of each unit, and how many rows it has."""
    places = np.searchsorted(units, labels).clip(max=len(units) - 1)
    inside = units[places] == labels
    counts = np.bincount(places[inside], minlength=len(units)).astype(np.int64)
    sums = np.bincount(places[inside], of_rows[inside], minlength=len(units)).astype(np.float64)
    return sums, counts


def _by_unit(rows: Array, labels: Labels, units: Labels, measure: Callable[[Array], Scores]) -> Scores:
    """Scores of units of which each may hold several rows, divided by their mean; NaN for those that hold none."""
    sums, counts = _sums(measure(rows), labels, units)
    means = np.divide(sums, counts, out=np.full(len(units), np.nan), where=counts > 0)
    average = np.nanmean(means)
    return means / average if average > 0 else np.where(np.isnan(means), np.nan, 1.0)
