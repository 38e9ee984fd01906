"""Races on a clock of their own."""

from __future__ import annotations

import numpy as np
import pytest

from compression.errors import Cancelled
from compression.quantization.choice.race import race


class Track:
    """Calls that take a known time, give or take a few percent, on a clock that only they move."""

    def __init__(self, **seconds):
        self.now = 0.0
        self.counts = dict.fromkeys(seconds, 0)
        self._rng = np.random.default_rng(0)
        self.calls = {name: lambda name=name, mean=mean: self._run(name, mean) for name, mean in seconds.items()}

    def _run(self, name, mean):
        self.counts[name] += 1
        self.now += mean * self._rng.uniform(0.95, 1.05)

    def clock(self):
        return self.now


def test_ratios_are_those_of_the_medians():
    track = Track(original=2.0, half=1.0, double=4.0)
    places = race(track.calls, 1000, seed=0, clock=track.clock)
    assert places["original"].speed_up == 1.0
    assert places["half"].speed_up == pytest.approx(2.0, rel=0.02)
    assert places["double"].speed_up == pytest.approx(0.5, rel=0.02)
    low, high = places["half"].interval
    assert 1.9 < low <= places["half"].speed_up <= high < 2.1


def test_time_goes_to_those_that_are_close():
    track = Track(original=2.0, slow=5.0, first=1.0, second=1.001)
    race(track.calls, 500, seed=0, clock=track.clock)
    assert track.counts["slow"] < 20
    assert min(track.counts["first"], track.counts["second"]) > 60
    assert track.counts["original"] > 60


def test_it_ends_in_time_but_not_before_anything_was_learnt():
    track = Track(original=1.0, other=1.0)
    race(track.calls, 0, seed=0, clock=track.clock)
    assert track.counts == {"original": 23, "other": 23}  # three to warm up


def test_the_caller_can_stop_it():
    track = Track(original=1.0)

    def stop():
        raise Cancelled

    with pytest.raises(Cancelled):
        race(track.calls, 10, seed=0, between_rounds=stop, clock=track.clock)
