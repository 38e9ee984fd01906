"""How long a call takes, of two models side by side.

The calls of the two alternate in one process, in random order within each pair: machines change their speed from
second to second, and only what was timed in the same second can be compared.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from compression.benchmarking import paired, statistics
from compression.benchmarking.paired import Samples, SpeedUp
from compression.benchmarking.spec import BenchmarkSpec
from compression.result import Metric

Call = Callable[[], object]
Clock = Callable[[], float]

_LOADING_SHARE = 0.25
# Of each load where there are several: the median of fewer is not worth much.
_LEAST_ROUNDS = 20
_ROOM_FOR_ANOTHER = 0.75


@dataclass(frozen=True)
class Timings:
    """Seconds of each call, without those of warming up.

    Attributes:
        original: (rounds,) calls of the original.
        result: (rounds,) calls of the result; those at the same index were neighbours.
        load: (rounds,) how often both models had been loaded anew before.
        warm_up: Pairs that were timed and dropped, because calls were not yet as they are later.
    """

    original: Samples
    result: Samples
    load: npt.NDArray[np.int64]
    warm_up: int

    @property
    def loads(self) -> list[tuple[Samples, Samples]]:
        """Calls of the original and of the result, load by load."""
        return [(self.original[self.load == load], self.result[self.load == load]) for load in np.unique(self.load)]

    def speed_up(self, seed: int) -> SpeedUp:
        """How many times faster the result is, and how sure that is."""
        return paired.speed_up(self.loads, seed)


def time_calls(
    original: Call,
    result: Call,
    spec: BenchmarkSpec,
    seed: int,
    *,
    between_rounds: Callable[[], None] = lambda: None,
    clock: Clock = time.perf_counter,
) -> Timings:
    """`time_loads` for two calls that are there already, as a single load."""
    return time_loads(lambda _: (original, result), 1, spec, seed, between_rounds=between_rounds, clock=clock)


def time_loads(
    load: Callable[[int], tuple[Call, Call]],
    loads: int,
    spec: BenchmarkSpec,
    seed: int,
    *,
    between_rounds: Callable[[], None] = lambda: None,
    clock: Clock = time.perf_counter,
) -> Timings:
    """Time two calls in turns, until `spec.max_seconds` are over, within `spec.min_rounds` and `spec.max_rounds`.

    Loading anew and warming up are part of those seconds, and all loads get equal shares of them; where calls are so
    slow that a share has less than 20 pairs there are fewer loads.

    Args:
        load: Called with 0, 1, … for a call of the original and one of the result, loaded anew; nothing here holds the
            calls of earlier loads by then.
        loads: How often to load at most.
        spec: When to stop.
        seed: Of the order within pairs.
        between_rounds: Called before every round; may raise to stop.
        clock: Seconds on a clock that only moves forward.
    """
    order = random.Random(seed)  # noqa: S311 - a coin, not a secret
    schedule = _Schedule(spec, loads, clock)
    kept: list[Samples] = []
    dropped = 0
    while not schedule.over:
        schedule.begin()
        pair = load(len(kept))
        timed = np.array(_time_pairs(pair, schedule, order, between_rounds, clock), np.float64)
        del pair
        start = paired.warm_up(timed.sum(axis=1))
        kept.append(timed[start:])
        dropped += start
    samples = np.concatenate(kept)
    numbers = np.repeat(np.arange(len(kept)), [len(part) for part in kept])
    return Timings(original=samples[:, 0], result=samples[:, 1], load=numbers, warm_up=dropped)


class _Schedule:
    """When a load has had its share of time and rounds, and when all have had theirs.

    Args:
        spec: How long in all.
        loads: How many there are at most.
        clock: As of `time_loads`.
    """

    def __init__(self, spec: BenchmarkSpec, loads: int, clock: Clock) -> None:
        self._spec = spec
        self._left = loads
        self._clock = clock
        self._end = clock() + spec.max_seconds
        self._most = math.ceil(spec.max_rounds / loads)
        self._timed = self._rounds = self._needed = 0
        self._begun = self._share_ends = 0.0

    @property
    def over(self) -> bool:
        """Whether no further load is to begin."""
        return self._left == 0 or (self._clock() >= self._end and self._timed >= self._spec.min_rounds)

    def begin(self) -> None:
        """A load begins."""
        self._begun = self._clock()
        self._share_ends = self._begun + (self._end - self._begun) / self._left
        self._left -= 1
        self._needed = _LEAST_ROUNDS if self._timed else self._spec.min_rounds
        self._rounds = 0

    def enough(self) -> bool:
        """Whether the load is to end before its next pair."""
        now = self._clock()
        if self._rounds >= self._most:
            return True
        if self._rounds < self._needed:
            return False
        if now >= self._end:
            return True
        if self._left == 0 or self._rounds < _LEAST_ROUNDS or now < self._share_ends:
            return False
        # What is left after the last whole load is better spent on that one.
        return self._end - now >= _ROOM_FOR_ANOTHER * (now - self._begun)

    def count(self) -> None:
        """A pair was timed."""
        self._rounds += 1
        self._timed += 1


def affordable_loads(spec: BenchmarkSpec, seconds: float) -> int:
    """How often to load where once takes `seconds`: loading again may take a quarter of the time for timing."""
    again = math.floor(_LOADING_SHARE * spec.max_seconds / max(seconds, 1e-9))
    return max(1, min(spec.loads, 1 + again))


def latency_metrics(timings: Timings, speed_up: SpeedUp, batch_size: int, spec: BenchmarkSpec) -> list[Metric]:
    """p50, p90 and p99 of a call, and throughput; the median comes with the speed-up, its interval and a verdict.

    With a deadline also the longest call and the share of calls that missed it; where it is known how long a sample
    lasts, the real-time factor.
    """
    compared = {
        "ratio": speed_up.ratio,
        "interval": speed_up.interval,
        "interval_of": "ratio",
        "verdict": statistics.verdict(speed_up.ratio, speed_up.interval),
    }
    p50, p90, p99 = (_of_calls(f"latency_p{percent}", timings, _percentile(percent)) for percent in (50, 90, 99))
    found = [p50.model_copy(update=compared), p90, p99]
    if spec.deadline_seconds is not None:
        deadline = spec.deadline_seconds
        found.append(_of_calls("latency_max", timings, lambda side: float(side.max())))
        misses = _of_calls("deadline_misses", timings, lambda side: float((side > deadline).mean()), unit="fraction")
        found.append(misses)
    found.append(
        _of_calls(
            "throughput",
            timings,
            lambda side: batch_size * len(side) / float(side.sum()),
            unit="samples/second",
            direction="higher_is_better",
        )
    )
    if spec.sample_seconds is not None:
        lasts = batch_size * spec.sample_seconds
        factor = _of_calls("real_time_factor", timings, lambda side: float(np.median(side)) / lasts, unit="ratio")
        found.append(factor.model_copy(update=compared))
    return found


def _percentile(percent: int) -> Callable[[Samples], float]:
    return lambda side: float(np.percentile(side, percent))


def _of_calls(
    name: str,
    timings: Timings,
    value: Callable[[Samples], float],
    *,
    unit: str = "seconds",
    direction: Literal["lower_is_better", "higher_is_better"] = "lower_is_better",
) -> Metric:
    before, after = value(timings.original), value(timings.result)
    better, worse = (after, before) if direction == "higher_is_better" else (before, after)
    return Metric(
        name=name,
        unit=unit,
        direction=direction,
        original=before,
        result=after,
        ratio=better / worse if worse else None,
        samples=len(timings.original),
    )


def _time_pairs(
    calls: tuple[Call, Call],
    schedule: _Schedule,
    order: random.Random,
    between_rounds: Callable[[], None],
    clock: Clock,
) -> list[tuple[float, float]]:
    timed: list[tuple[float, float]] = []
    with _no_garbage_collection():
        while not schedule.enough():
            between_rounds()
            timed.append(_time_pair(calls, order.random() < 0.5, clock))
            schedule.count()
    return timed


def _time_pair(calls: tuple[Call, Call], original_first: bool, clock: Clock) -> tuple[float, float]:
    first, second = calls if original_first else reversed(calls)
    begin = clock()
    first()
    middle = clock()
    second()
    end = clock()
    return (middle - begin, end - middle) if original_first else (end - middle, middle - begin)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
