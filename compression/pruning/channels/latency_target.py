"""The smallest amount whose result is fast enough on this machine, found by timing candidates."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np
import onnx

from compression import publishing
from compression.benchmarking.latency import Call, time_calls
from compression.benchmarking.paired import Interval, Samples, speed_up
from compression.context import Context
from compression.data import synthetic_batches
from compression.errors import DataRejected, StepFailed
from compression.graph.inspect import summarize
from compression.pruning.channel_spec import PruneChannels
from compression.pruning.channels.identities import Labels
from compression.pruning.channels.selection import Ranking
from compression.runtime import DoesNotRun, Model
from compression.spec import BenchmarkSpec

_MOST_CANDIDATES = 8
# A candidate this little below the target is taken; a closer one would differ by less than luck.
_CLOSE = 0.04
# Amounts closer together than this are one.
_RESOLUTION = 0.005
# Models are loaded anew this often for one candidate, since where weights lie in memory decides about some percent.
_LOADINGS = 3
_TIMING = BenchmarkSpec(max_seconds=1.5, min_rounds=8, max_rounds=400)


def fit(
    model: onnx.ModelProto,
    ranking: Ranking,
    spec: PruneChannels,
    context: Context,
    *,
    build: Callable[[Labels], onnx.ModelProto],
    cost: Callable[[Labels], float],
    seed: int,
) -> tuple[Labels, dict[str, object]]:
    """The units to remove so that a target of latency is met on this machine, at this hour.

    Args:
        model: As it was before the step.
        ranking: Of its units.
        spec: With a `target_latency`.
        context: Folder, threads, progress from 0 to 0.5, cancellation.
        build: What is left without some units.
        cost: What that costs as a share of all, which guides the search.
        seed: Of the sample and the order of calls.

    Returns:
        The units, and for the report what was timed.

    Raises:
        StepFailed: `target_unreachable`, `latency_unknown` or `benchmark_failed`.
    """
    target = spec.target_latency
    if target is None:
        raise ValueError("the spec has no target_latency")
    with Stopwatch(model, context, seed) as stopwatch:

        def measure(removed: Labels) -> Timed:
            share = len(search.candidates) / _MOST_CANDIDATES
            context.progress("pruning", share / 2, f"timing candidate {len(search.candidates) + 1}")
            return stopwatch.time(build(removed), target)

        build(ranking.remove(spec.max_amount))  # what cannot be built shows before time is spent
        search = Search(ranking, target, cost, measure, spec.latency_seconds)
        found = search.run()
    if found is None:
        timed = search.candidates[-1].timed
        raise StepFailed(
            "target_unreachable",
            f"A share of {target} of the latency cannot be reached on this machine: with max_amount {spec.max_amount} "
            f"and round_to {spec.round_to} it is {timed.ratio:.3f} [{timed.interval[0]:.3f}, {timed.interval[1]:.3f}], "
            f"so the smallest target is about {math.ceil(timed.ratio * 1000) / 1000}.",
        )
    return found.removed, {
        "amount": found.amount,
        "latency": {
            "target": target,
            "ratio": found.timed.ratio,
            "interval": list(found.timed.interval),
            "batch_size": stopwatch.batch_size,
            "threads": context.threads,
            "candidates": [candidate.details() for candidate in search.candidates],
        },
    }


@dataclass(frozen=True)
class Timed:
    """The latency of a candidate over that of the model before the step.

    Attributes:
        ratio: The median over neighbouring calls.
        interval: The ratio's 95 % interval.
        rounds: Pairs of calls.
    """

    ratio: float
    interval: Interval
    rounds: int

    def reaches(self, target: float) -> bool:
        """Whether the ratio itself does: on a busy machine a whole interval below would ask for far too much."""
        return self.ratio <= target


@dataclass(frozen=True)
class Candidate:
    """Units to remove for an amount, and how long what is left takes."""

    amount: float
    removed: Labels
    timed: Timed

    def details(self) -> dict[str, object]:
        return {
            "amount": self.amount,
            "ratio": self.timed.ratio,
            "interval": list(self.timed.interval),
            "rounds": self.timed.rounds,
        }


@dataclass(frozen=True)
class _End:
    """One end of the bracket.

    Attributes:
        cost: Of what is left, as a share of all.
        ratio: The latency, timed or, at the far end, at first only expected.
    """

    amount: float
    removed: Labels
    cost: float
    ratio: float


@dataclass
class Search:
    """Looks for the smallest amount that reaches a target.

    Where operations decide, latency follows what they cost, so the next candidate is the one whose cost lies where a
    line through the bracket's ends meets the target. From the fourth on, every second candidate halves the bracket
    instead, for latencies with jumps.

    Args:
        ranking: Gives the units to remove for an amount.
        target: Latency wanted, as a share.
        cost: Of what is left without some units, as a share of all.
        measure: Times what is left.
        seconds: When so many are over, the best candidate so far is taken.
        clock: Seconds on a clock that only moves forward.

    Attributes:
        candidates: All that were timed, in that order.
    """

    ranking: Ranking
    target: float
    cost: Callable[[Labels], float]
    measure: Callable[[Labels], Timed]
    seconds: float
    clock: Callable[[], float] = time.perf_counter
    candidates: list[Candidate] = field(default_factory=list)

    def run(self) -> Candidate | None:
        """The candidate found; None where even the largest amount does not reach the target."""
        started = self.clock()
        low = _End(0.0, np.zeros(0, np.int64), 1.0, 1.0)
        most = self.ranking.remove(self.ranking.max_amount)
        high = _End(self.ranking.max_amount, most, self.cost(most), self.cost(most))
        best: Candidate | None = None
        while len(self.candidates) < _MOST_CANDIDATES - (best is None):
            if best is not None and (
                best.timed.ratio >= (1 - _CLOSE) * self.target or self.clock() - started > self.seconds
            ):
                break
            end = self._next(low, high, expected=best is None)
            if end is None:
                break
            found = self._time(end)
            end = replace(end, ratio=found.timed.ratio)
            if found.timed.reaches(self.target):
                best, high = found, end
            elif np.array_equal(end.removed, high.removed):
                return None
            else:
                low = end
                if best is None and low.cost < 1:  # on a line from the original through this one
                    high = replace(high, ratio=1 - (1 - low.ratio) / (1 - low.cost) * (1 - high.cost))
        if best is None:
            found = self._time(high)
            return found if found.timed.reaches(self.target) else None
        return best

    def _time(self, end: _End) -> Candidate:
        self.candidates.append(Candidate(end.amount, end.removed, self.measure(end.removed)))
        return self.candidates[-1]

    def _next(self, low: _End, high: _End, *, expected: bool) -> _End | None:
        """What to time next; None where nothing lies between the ends.

        Args:
            low: Too slow.
            high: Fast enough, or the largest amount that there is.
            expected: Whether the latter was not timed yet.
        """
        wanted = (1 - _CLOSE / 2) * self.target
        if expected and high.ratio > wanted:
            return high
        fall = low.ratio - high.ratio
        share = (low.ratio - wanted) / fall if fall > 0 else 0.5
        if len(self.candidates) > 2 and len(self.candidates) % 2:
            share = 0.5
        enough = low.cost - min(max(share, 0.1), 0.9) * (low.cost - high.cost)
        slow, fast = low, high
        while fast.amount - slow.amount > _RESOLUTION:
            amount = (slow.amount + fast.amount) / 2
            removed = self.ranking.remove(amount)
            middle = _End(amount, removed, self.cost(removed), 0.0)
            slow, fast = (slow, middle) if middle.cost <= enough else (middle, fast)
        # Multiples leave few choices: where the fast end is the only one that costs so little, its neighbour is next.
        for end in (fast, slow):
            if not np.array_equal(end.removed, low.removed) and not np.array_equal(end.removed, high.removed):
                return end
        return high if expected else None


class Stopwatch:
    """Times models in turns with the one before the step, on one made-up sample, or a batch where that is fixed.

    Args:
        model: The one before the step.
        context: Its folder holds files while this is open; its threads compute.
        seed: Of the sample, the order of calls and the resampling.

    Raises:
        StepFailed: `latency_unknown` where no input can be made up on which the model runs.
    """

    def __init__(self, model: onnx.ModelProto, context: Context, seed: int) -> None:
        self._context, self._seed = context, seed
        self._folder = tempfile.TemporaryDirectory(prefix="latency-", dir=context.workdir)
        self._original = self._written("original", model)
        try:
            self._sample = next(synthetic_batches(summarize(model, 0, 0), 1, seed)).inputs
            self._ready(self._original)
        except (DataRejected, DoesNotRun) as error:
            self._folder.cleanup()
            raise StepFailed(
                "latency_unknown",
                f"The latency of this model cannot be measured on made-up inputs: {error} "
                "Use 'amount', 'target_macs' or 'target_parameters'.",
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    @property
    def batch_size(self) -> int:
        """Samples in a timed call."""
        return max((len(array) for array in self._sample.values() if array.ndim), default=1)

    def time(self, candidate: onnx.ModelProto, target: float) -> Timed:
        """How long a candidate takes as a share of the original's time; measured longer where that is near a target.

        Raises:
            StepFailed: `benchmark_failed` where the candidate does not run.
            Cancelled: the caller asked to stop.
        """
        path = self._written("candidate", candidate)
        loads: list[tuple[Samples, Samples]] = []
        for loading in range(_LOADINGS):
            try:
                calls = self._ready(self._original), self._ready(path)
            except DoesNotRun as error:
                raise StepFailed("benchmark_failed", f"The pruned model does not run: {error}") from None
            seed = self._seed + loading
            timings = time_calls(*calls, _TIMING, seed, between_rounds=self._context.check_cancelled)
            loads.append((timings.result, timings.original))
            found = speed_up(loads, self._seed)  # of the original over the candidate: its share of the time
            # Luck of loading is part of the interval: what lies clear of the target does so after more loads too.
            if not found.interval[0] <= target <= found.interval[1]:
                break
        return Timed(found.ratio, found.interval, sum(len(first) for first, _ in loads))

    def _written(self, name: str, model: onnx.ModelProto) -> Path:
        path = Path(self._folder.name) / f"{name}.onnx"
        publishing.write_any_size(path, model)
        return path

    def _ready(self, path: Path) -> Call:
        """A call of a model that is loaded now and has run once."""
        self._context.check_cancelled()
        model = Model(path, self._context.threads)
        model.run(self._sample)
        return model.bind(self._sample)
