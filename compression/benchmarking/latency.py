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

import numpy as np
import numpy.typing as npt

from compression.benchmarking import paired, statistics
from compression.benchmarking.paired import Samples, SpeedUp
from compression.benchmarking.spec import BenchmarkSpec
from compression.result import Metric

Call = Callable[[], object]
Clock = Callable[[], float]

_LOADING_SHARE = 0.25
# Of each load: half of them may be warming up.
_LEAST_ROUNDS = 5


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

    Loading anew and warming up are part of those seconds, and all loads get equal shares of them.

    Args:
        load: Called with 0, 1, … for a call of the original and one of the result, loaded anew; nothing here holds the
            calls of earlier loads by then.
        loads: How often to load, at least once.
        spec: When to stop.
        seed: Of the order within pairs.
        between_rounds: Called before every round; may raise to stop.
        clock: Seconds on a clock that only moves forward.
    """
    order = random.Random(seed)  # noqa: S311 - a coin, not a secret
    end = clock() + spec.max_seconds
    least = max(math.ceil(spec.min_rounds / loads), _LEAST_ROUNDS)
    most = max(math.ceil(spec.max_rounds / loads), _LEAST_ROUNDS)
    kept: list[Samples] = []
    dropped = 0
    for index in range(loads):
        deadline = clock() + (end - clock()) / (loads - index)
        pair = load(index)
        timed = np.array(_time_pairs(pair, deadline, least, most, order, between_rounds, clock), np.float64)
        del pair
        start = paired.warm_up(timed.sum(axis=1))
        kept.append(timed[start:])
        dropped += start
    samples = np.concatenate(kept)
    numbers = np.repeat(np.arange(loads), [len(part) for part in kept])
    return Timings(original=samples[:, 0], result=samples[:, 1], load=numbers, warm_up=dropped)


def affordable_loads(spec: BenchmarkSpec, seconds: float) -> int:
    """How often to load where once takes `seconds`: loading again may take a quarter of the time for timing."""
    again = math.floor(_LOADING_SHARE * spec.max_seconds / max(seconds, 1e-9))
    return max(1, min(spec.loads, 1 + again))


def latency_metrics(timings: Timings, speed_up: SpeedUp, batch_size: int) -> list[Metric]:
    """p50, p90 and p99 of a call, and throughput; the median comes with the speed-up, its interval and a verdict."""
    rounds = len(timings.original)
    metrics = []
    for percent in (50, 90, 99):
        before, after = (float(np.percentile(side, percent)) for side in (timings.original, timings.result))
        metrics.append(
            Metric(
                name=f"latency_p{percent}",
                unit="seconds",
                direction="lower_is_better",
                original=before,
                result=after,
                ratio=speed_up.ratio if percent == 50 else before / after,
                interval=speed_up.interval if percent == 50 else None,
                interval_of="ratio" if percent == 50 else None,
                samples=rounds,
                verdict=statistics.verdict(speed_up.ratio, speed_up.interval) if percent == 50 else "",
            )
        )
    before, after = (batch_size * rounds / float(side.sum()) for side in (timings.original, timings.result))
    metrics.append(
        Metric(
            name="throughput",
            unit="samples/second",
            direction="higher_is_better",
            original=before,
            result=after,
            ratio=after / before,
            samples=rounds,
        )
    )
    return metrics


def _time_pairs(  # noqa: PLR0917 - private, called once
    calls: tuple[Call, Call],
    deadline: float,
    least: int,
    most: int,
    order: random.Random,
    between_rounds: Callable[[], None],
    clock: Clock,
) -> list[tuple[float, float]]:
    timed: list[tuple[float, float]] = []
    with _no_garbage_collection():
        while len(timed) < most and (len(timed) < least or clock() < deadline):
            between_rounds()
            timed.append(_time_pair(calls, order.random() < 0.5, clock))
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
