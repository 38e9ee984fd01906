"""Integers where they make the model faster on this machine."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from compression.benchmarking.statistics import verdict
from compression.context import Context
from compression.data.feed import ModelFeed
from compression.graph import shapes
from compression.quantization import prepare
from compression.quantization.choice import conversions, partition
from compression.quantization.choice.partition import Value
from compression.quantization.choice.profile import KernelTimes, kernel_times
from compression.quantization.choice.race import Place, race
from compression.quantization.choice.spec import SelectByLatency
from compression.quantization.static import Calibrated, insert

_ORIGINAL, _ALL = "original", "all"
# Of the wall time for choosing: when to stop making candidates. The rest belongs to the race.
_CANDIDATES_SHARE = 0.5
_PROFILED_RUNS = 12
_ROUNDS = 3
# Conversions cost more than their kernels where they break up fused ones, and less where they are fused themselves.
_SCALES = (1.0, 2.0)


@dataclass(frozen=True)
class Choice:
    """What to compute in integers, and why.

    Attributes:
        model: The model with pairs, or None where nothing is faster than the original.
        left: Names of the nodes that were kept in float.
        details: `decisions`, a row for each group of nodes, and `candidates`, a row for each choice that was timed.
    """

    model: onnx.ModelProto | None
    left: tuple[str, ...]
    details: dict[str, object]


def choose_by_latency(
    calibrated: Calibrated, selection: SelectByLatency, context: Context, feed: ModelFeed, seed: int
) -> Choice:
    """Find the nodes whose computation in integers makes the model fastest on this machine.

    Raises:
        StepFailed: `unsupported_by_runtime`.
        Cancelled: The caller asked to stop.
    """
    deadline = time.perf_counter() + selection.max_seconds
    batch = next(feed.batches(selection.batch_size, selection.batch_size))
    search = _Search(calibrated, context, batch.inputs)
    for _ in search.candidates(time.perf_counter() + _CANDIDATES_SHARE * selection.max_seconds):
        context.progress("quantizing", 0.9, f"{len(search.found)} candidates for what to quantize")
    places = search.race(max(deadline - time.perf_counter(), 0.0), seed)
    best = min(places, key=lambda name: places[name].seconds)
    if places[best].interval[0] <= 1:
        best = _ORIGINAL
    return search.choice(best, places)


@dataclass(frozen=True)
class _Candidate:
    """Nodes that compute in integers, all others, and the model with pairs around the former."""

    integer: frozenset[str]
    left: tuple[str, ...]
    model: onnx.ModelProto


@dataclass
class _Search:
    """Candidates that were built so far, and what was measured on the way.

    Attributes:
        calibrated: The graph and its ranges.
        context: The surroundings of the run.
        inputs: One call's arrays.
        found: Candidates by name.
    """

    calibrated: Calibrated
    context: Context
    inputs: Mapping[str, Any]
    found: dict[str, _Candidate] = field(default_factory=dict)

    def __post_init__(self) -> None:
        graph = self.calibrated.graph
        self.able = self.calibrated.plan().integer
        known = shapes.infer(graph, inputs={name: np.shape(array) for name, array in self.inputs.items()})
        self.values: list[Value] = partition.values(graph, known)
        self.groups: list[list[str]] = []
        self.in_float: dict[str, float] = {}
        self.in_integers: dict[str, float] = {}

    def candidates(self, deadline: float) -> Iterator[str]:
        """Build candidates one after the other, each by what the ones before have shown."""
        costs = conversions.measure(self.context)
        graph = self.calibrated.graph
        everything = self._candidate(self.able)
        self.found[_ALL] = everything
        yield _ALL
        in_float, in_integers = self._profile(graph, everything.model)
        self.in_float.update(in_float.nodes)
        self.in_integers.update(in_integers.nodes)
        self.groups = partition.groups(self.calibrated.anatomy, self.able, self.values, in_float.nodes)
        for number in range(_ROUNDS):
            if time.perf_counter() > deadline:
                return
            new = []
            for scale in _SCALES:
                candidate = self._candidate(
                    partition.cheapest(self.values, self.groups, self.able, self._seconds(), costs, scale=scale)
                )
                known = {one.integer for one in self.found.values()}
                if candidate.integer and candidate.integer not in known:
                    name = f"cut {len(self.found)}"
                    self.found[name] = candidate
                    new.append(candidate)
                    yield name
            if not new:
                return
            if number + 1 < _ROUNDS:
                times = self._profile(*(candidate.model for candidate in new))
                for candidate, found in zip(new, times, strict=True):
                    self._learn(candidate.integer, found)

    def _seconds(self) -> dict[str, tuple[float, float]]:
        return {
            node.name: (self.in_float.get(node.name, 0.0), self.in_integers.get(node.name, 0.0))
            for node in self.calibrated.graph.graph.node
        }

    def _candidate(self, chosen: Collection[str]) -> _Candidate:
        self.context.check_cancelled()
        left = tuple(node.name for node in self.calibrated.graph.graph.node if node.name not in chosen)
        # Without their neighbours some nodes are not worth their pairs, and the plan leaves them in float too.
        return _Candidate(self.calibrated.plan(left).integer, left, insert(self.calibrated, left))

    def _profile(self, *models: onnx.ModelProto) -> list[KernelTimes]:
        return kernel_times(models, self.calibrated.graph, self.inputs, self.context, runs=_PROFILED_RUNS)

    def _learn(self, integer: frozenset[str], times: KernelTimes) -> None:
        """Take what groups took in a mixture in place of what they took among their like: what is fused differs."""
        for group in self.groups:
            if any(name in times.nodes for name in group):
                seconds = self.in_integers if integer.intersection(group) else self.in_float
                seconds.update({name: times.nodes.get(name, 0.0) for name in group})

    def race(self, max_seconds: float, seed: int) -> dict[str, Place]:
        """Time the original and every candidate."""
        models = {_ORIGINAL: self.calibrated.original} | {name: one.model for name, one in self.found.items()}
        with prepare.runtime_failures("timing"):
            calls = {name: self._call(model) for name, model in models.items()}
            return race(calls, max_seconds, seed, between_rounds=self.context.check_cancelled)

    def _call(self, model: onnx.ModelProto) -> Any:  # noqa: ANN401 - ONNX Runtime is untyped
        session = prepare.session(model.SerializeToString(), self.context, entries={"session.force_spinning_stop": "1"})
        feeds = dict(self.inputs)
        return lambda: session.run(None, feeds)

    def choice(self, best: str, places: Mapping[str, Place]) -> Choice:
        """The winner with the tables that explain it."""
        winner = self.found.get(best)
        return Choice(
            None if winner is None else winner.model,
            () if winner is None else winner.left,
            {
                "chosen": "float" if winner is None else best,
                "candidates": [self._row(name, place) for name, place in places.items()],
                "decisions": list(self._decisions(winner)),
            },
        )

    def _row(self, name: str, place: Place) -> dict[str, object]:
        nodes = len(self.found[name].integer) if name in self.found else 0
        row: dict[str, object] = {"candidate": name, "integer_nodes": nodes, "milliseconds": place.seconds * 1e3}
        if name != _ORIGINAL:
            row["beside_the_original"] = verdict(place.speed_up, place.interval)
        return row

    def _decisions(self, winner: _Candidate | None) -> Iterator[dict[str, object]]:
        kinds = {node.name: node.op_type for node in self.calibrated.graph.graph.node}
        for group in self.groups:
            row: dict[str, object] = {
                "nodes": group,
                "operators": [kinds[name] for name in group],
                "decision": "integers" if winner is not None and winner.integer.intersection(group) else "float",
                "reason": self._reason(group, winner),
            }
            for side, seconds in (("float", self.in_float), ("integer", self.in_integers)):
                known = [seconds[name] for name in group if name in seconds]
                if known:
                    row[f"{side}_microseconds"] = sum(known) * 1e6
            yield row

    def _reason(self, group: Sequence[str], winner: _Candidate | None) -> str:
        if not self.able.intersection(group):
            left_out = self.calibrated.float_nodes.intersection(group)
            return "left out by the spec, or not in a form to quantize" if left_out else "has no integer form here"
        if winner is None:
            return "no choice of nodes was faster than the original"
        chosen = winner.integer.intersection(group)
        return "faster with its neighbours" if chosen else "integers would cost more than they save"
