"""The fastest of several models, timed in turns in one process."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from compression.benchmarking.paired import Interval, speed_up

Call = Callable[[], object]

_WARM_UP = 3
_ROUNDS_BEFORE_ELIMINATION = 12
_MIN_ROUNDS = 20
_MAX_ROUNDS = 400


@dataclass(frozen=True)
class Place:
    """How one fared.

    Attributes:
        seconds: Its median.
        speed_up: Of the first one's time over its own, the median over the rounds that both ran.
        interval: 95 % interval of that, luck of loading included.
        rounds: How often it was timed.
    """

    seconds: float
    speed_up: float
    interval: Interval
    rounds: int


def race(
    calls: Mapping[str, Call],
    max_seconds: float,
    seed: int,
    *,
    between_rounds: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Place]:
    """Time calls in rounds, each in random order, and drop on the way those that the best one is surely ahead of.

    Successive elimination (Even-Dar et al. 2006): time goes to those between which it is hard to tell. The first one
    is what others are compared with, and stays.

    Args:
        calls: By name, the first one being the reference.
        max_seconds: When to stop, though not before each that stays has had 20 rounds.
        seed: Of the order within rounds.
        between_rounds: Called before every round; may raise to stop.
        clock: Seconds on a clock that only moves forward.
    """
    order = random.Random(seed)  # noqa: S311 - an order, not a secret
    reference, *others = calls
    running = [reference, *others]
    samples: dict[str, list[float]] = {name: [] for name in calls}
    started = clock()
    for _ in range(_WARM_UP):
        between_rounds()
        for call in calls.values():
            call()
    rounds = 0
    while rounds < _MAX_ROUNDS and (rounds < _MIN_ROUNDS or clock() - started < max_seconds):
        between_rounds()
        for name in order.sample(running, len(running)):
            begin = clock()
            calls[name]()
            samples[name].append(clock() - begin)
        rounds += 1
        if rounds % _ROUNDS_BEFORE_ELIMINATION == 0 and len(running) > 2:
            running = [reference, *_survivors({name: samples[name] for name in running[1:]}, seed)]
    return {name: _place(samples[reference], found, seed) for name, found in samples.items()}


def _survivors(samples: Mapping[str, list[float]], seed: int) -> list[str]:
    """Those whose ratio to the one with the best median does not show that they are slower."""
    best = min(samples, key=lambda name: float(np.median(samples[name])))
    leader = np.array(samples[best])
    kept = []
    for name, found in samples.items():
        if name == best or speed_up([(leader, np.array(found))], seed).interval[1] >= 1:
            kept.append(name)
    return kept


def _place(reference: list[float], found: list[float], seed: int) -> Place:
    compared = speed_up([(np.array(reference[: len(found)]), np.array(found))], seed)
    return Place(float(np.median(found)), compared.ratio, compared.interval, len(found))
