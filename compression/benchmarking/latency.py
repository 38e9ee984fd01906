"""How long a call takes, of two models side by side.

The calls of the two alternate in one process, in random order within each pair: machines change their speed from
second to second, and only what was timed in the same second can be compared.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from compression.benchmarking import statistics
from compression.benchmarking.statistics import Samples
from compression.result import Metric
from compression.spec import BenchmarkSpec

Call = Callable[[], object]

_WARM_UP_SHARE = 0.2
_MIN_WARM_UP_ROUNDS = 3
_STABLE_ROUNDS = 5
_STABLE_WITHIN = 0.95


@dataclass(frozen=True)
class Timings:
    """Seconds of each call.

    Attributes:
        original: (rounds,) calls of the original.
        result: (rounds,) calls of the result; those at the same index were neighbours.
    """

    original: Samples
    result: Samples


def time_calls(
    original: Call,
    result: Call,
    spec: BenchmarkSpec,
    seed: int,
    *,
    between_rounds: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Timings:
    """Time two calls in turns, until `spec.max_seconds` are over, within `spec.min_rounds` and `spec.max_rounds`.

    Warming up is part of those seconds and takes at most a fifth of them, beyond three rounds.

    Args:
        original: One call of the original.
        result: One call of the result.
        spec: When to stop.
        seed: Of the order within pairs.
        between_rounds: Called before every round; may raise to stop.
        clock: Seconds on a clock that only moves forward.
    """
    order = random.Random(seed)  # noqa: S311 - a coin, not a secret
    calls = (original, result)
    started = clock()
    with _no_garbage_collection():
        _warm_up(calls, started + _WARM_UP_SHARE * spec.max_seconds, between_rounds, clock)
        rounds: list[tuple[float, float]] = []
        while len(rounds) < spec.max_rounds:
            if len(rounds) >= spec.min_rounds and clock() - started >= spec.max_seconds:
                break
            between_rounds()
            rounds.append(_time_pair(calls, order.random() < 0.5, clock))
    samples = np.array(rounds, np.float64)
    return Timings(original=samples[:, 0], result=samples[:, 1])


def latency_metrics(timings: Timings, batch_size: int, seed: int) -> list[Metric]:
    """p50, p90 and p99 of a call, and throughput; the median's ratio comes with its interval and a verdict."""
    rounds = len(timings.original)
    ratio, interval = statistics.ratio_of_medians(timings.original, timings.result, seed)
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
                ratio=ratio if percent == 50 else before / after,
                interval=interval if percent == 50 else None,
                samples=rounds,
                verdict=statistics.verdict(ratio, interval) if percent == 50 else "",
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


def _time_pair(calls: tuple[Call, Call], original_first: bool, clock: Callable[[], float]) -> tuple[float, float]:
    first, second = calls if original_first else reversed(calls)
    begin = clock()
    first()
    middle = clock()
    second()
    end = clock()
    return (middle - begin, end - middle) if original_first else (end - middle, middle - begin)


def _warm_up(
    calls: tuple[Call, Call], deadline: float, between_rounds: Callable[[], None], clock: Callable[[], float]
) -> None:
    """Run pairs until their fastest time has not improved by 5 % for five rounds."""
    best = float("inf")
    done = unimproved = 0
    while done < _MIN_WARM_UP_ROUNDS or (unimproved < _STABLE_ROUNDS and clock() < deadline):
        between_rounds()
        seconds = sum(_time_pair(calls, done % 2 == 0, clock))
        unimproved = 0 if seconds < _STABLE_WITHIN * best else unimproved + 1
        best = min(best, seconds)
        done += 1


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
