"""Interleaved timing, with a clock that is told how long each call takes."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from compression.benchmarking.latency import Timings, latency_metrics, time_calls
from compression.errors import Cancelled
from compression.runtime import Model
from compression.spec import BenchmarkSpec
from tests.compression.models import cnn, save


class Bench:
    """A clock and two calls that move it forward, and a record of who was called."""

    def __init__(self, original=(0.002,), result=(0.001,)):
        self.now = 0.0
        self.called = []
        self.collecting = []
        self._seconds = {"original": original, "result": result}

    def clock(self):
        return self.now

    def call(self, name):
        def run():
            seconds = self._seconds[name]
            self.now += seconds[min(self.called.count(name), len(seconds) - 1)]
            self.called.append(name)
            self.collecting.append(gc.isenabled())

        return run

    def time(self, seed=0, **spec):
        return time_calls(self.call("original"), self.call("result"), BenchmarkSpec(**spec), seed, clock=self.clock)


def test_times_land_on_the_right_side():
    timings = Bench().time(max_seconds=1, max_rounds=1000)
    np.testing.assert_allclose(timings.original, 0.002)
    np.testing.assert_allclose(timings.result, 0.001)


def test_stops_when_the_time_is_over():
    bench = Bench()
    timings = bench.time(max_seconds=0.3, min_rounds=5)
    # 0.003 s a pair, 6 pairs of warming up: the first, and five that are no faster.
    assert len(timings.original) == 100 - 6
    assert bench.now == pytest.approx(0.3)


def test_measures_the_least_number_of_rounds_whatever_they_take():
    assert len(Bench(original=(10.0,)).time(max_seconds=0.1, min_rounds=7).original) == 7


def test_stops_at_the_largest_number_of_rounds():
    assert len(Bench().time(max_seconds=600, min_rounds=5, max_rounds=40).original) == 40


def test_warms_up_until_calls_no_longer_get_faster():
    slow_start = (0.1, 0.05, 0.02, 0.01, 0.005, 0.002)
    bench = Bench(original=slow_start)
    timings = bench.time(max_seconds=100, min_rounds=5, max_rounds=20)
    np.testing.assert_allclose(timings.original, 0.002)
    # Six pairs get faster, five do not.
    assert len(bench.called) == 2 * (11 + 20)


def test_warming_up_ends_after_a_fifth_of_the_time():
    bench = Bench(original=tuple(10 / 2**power for power in range(20)))
    bench.time(max_seconds=20, min_rounds=5, max_rounds=5)
    assert len(bench.called) == 2 * (3 + 5)


def test_pairs_come_in_both_orders_and_each_holds_both():
    bench = Bench()
    bench.time(max_seconds=100, min_rounds=5, max_rounds=200)
    pairs = list(zip(bench.called[::2], bench.called[1::2], strict=True))[-200:]
    assert set(pairs) == {("original", "result"), ("result", "original")}
    assert 60 < pairs.count(("original", "result")) < 140
    again = Bench()
    again.time(max_seconds=100, min_rounds=5, max_rounds=200)
    assert again.called == bench.called


def test_garbage_is_not_collected_while_timing():
    bench = Bench()
    bench.time(max_seconds=0.1, min_rounds=5)
    assert not any(bench.collecting)
    assert gc.isenabled()


def test_can_be_cancelled_between_rounds():
    bench, asked = Bench(), []

    def check():
        asked.append(len(bench.called))
        if len(asked) == 12:
            raise Cancelled

    with pytest.raises(Cancelled):
        time_calls(
            bench.call("original"),
            bench.call("result"),
            BenchmarkSpec(max_seconds=100),
            0,
            between_rounds=check,
            clock=bench.clock,
        )
    assert asked == list(range(0, 24, 2))
    assert gc.isenabled()


def test_metrics_by_hand():
    timings = Timings(original=np.arange(1, 101) * 0.002, result=np.arange(1, 101) * 0.001)
    p50, p90, p99, throughput = latency_metrics(timings, batch_size=4, seed=0)
    assert (p50.name, p50.unit, p50.direction, p50.samples) == ("latency_p50", "seconds", "lower_is_better", 100)
    assert (p50.original, p50.result, p50.ratio) == pytest.approx((0.101, 0.0505, 2.0))
    # Every pair has the ratio 2, so have the medians of all resamples.
    assert p50.interval == pytest.approx((2.0, 2.0))
    assert p50.verdict == "faster, 2.00x [2.00, 2.00]"
    assert (p90.original, p90.result) == pytest.approx((0.1802, 0.0901))
    assert (p99.original, p99.result) == pytest.approx((0.19802, 0.09901))
    # 400 samples in 10.1 s and in 5.05 s.
    assert (throughput.original, throughput.result) == pytest.approx((400 / 10.1, 400 / 5.05))
    assert throughput.ratio == pytest.approx(2.0)


def test_a_model_beside_itself_shows_no_difference():
    rng = np.random.default_rng(0)
    machine = rng.lognormal(0, 0.4, 300)
    timings = Timings(original=machine * rng.lognormal(0, 0.05, 300), result=machine * rng.lognormal(0, 0.05, 300))
    p50 = latency_metrics(timings, batch_size=1, seed=0)[0]
    assert p50.interval[0] < 1 < p50.interval[1]
    assert p50.verdict.startswith("no difference shown, ")


def test_real_models_are_timed_in_pairs(tmp_path):
    path = save(cnn(batch=2), tmp_path / "model.onnx")
    models = [Model(path, threads=1), Model(path, threads=1)]
    sample = {"x": np.zeros((2, 1, 8, 8), np.float32)}
    spec = BenchmarkSpec(max_seconds=0.01, min_rounds=20, max_rounds=30)
    timings = time_calls(models[0].bind(sample), models[1].bind(sample), spec, 0)
    assert 20 <= len(timings.original) == len(timings.result) <= 30
    assert (timings.original > 0).all()
    assert (timings.result > 0).all()


def test_feeds_follow_the_models_names_and_types(tmp_path):
    path = save(cnn(), tmp_path / "model.onnx")
    feeds = Model(path, threads=1).feeds({"image": np.zeros((1, 1, 8, 8), np.float64)})
    assert list(feeds) == ["x"]
    assert feeds["x"].dtype == np.float32
