"""Interleaved timing, with a clock that is told how long each call takes."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from compression.benchmarking.latency import Timings, affordable_loads, latency_metrics, time_calls, time_loads
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
    # 0.003 s a pair, and the first pair is warming up.
    assert len(timings.original) == 99
    assert timings.warm_up == 1
    assert bench.now == pytest.approx(0.3)


def test_measures_the_least_number_of_rounds_whatever_they_take():
    assert len(Bench(original=(10.0,)).time(max_seconds=0.1, min_rounds=7).original) == 7 - 1


def test_stops_at_the_largest_number_of_rounds():
    assert len(Bench().time(max_seconds=600, min_rounds=5, max_rounds=40).original) == 40 - 1


def test_calls_that_have_not_settled_do_not_count():
    slow_start = (0.1, 0.05, 0.02, 0.01, 0.005, 0.002)
    timings = Bench(original=slow_start).time(max_seconds=100, min_rounds=5, max_rounds=20)
    np.testing.assert_allclose(timings.original, 0.002)
    assert timings.warm_up == 5


def test_loads_share_the_time_and_the_rounds():
    bench, loaded = Bench(), []

    def load(number):
        loaded.append(bench.now)
        bench.now += 0.1
        return bench.call("original"), bench.call("result")

    spec = BenchmarkSpec(max_seconds=0.9, min_rounds=6, max_rounds=1000)
    timings = time_loads(load, 3, spec, 0, clock=bench.clock)
    # A third of the time for each; of that a tenth of a second for loading.
    assert loaded == pytest.approx([0.0, 0.3, 0.6], abs=0.004)
    assert bench.now == pytest.approx(0.9, abs=0.004)
    assert [len(first) for first, _ in timings.loads] == pytest.approx([66, 66, 66], abs=1)
    assert timings.warm_up == 3
    # 30 pairs in all fill one load, and no room is left for another.
    bench.now = 0.0
    hurried = time_loads(load, 3, spec.model_copy(update={"max_seconds": 0.19}), 0, clock=bench.clock)
    assert [len(first) for first, _ in hurried.loads] == [29]


def test_rounds_are_shared_by_the_loads_too():
    bench = Bench()
    spec = BenchmarkSpec(max_seconds=600, min_rounds=5, max_rounds=31)
    timings = time_loads(lambda _: (bench.call("original"), bench.call("result")), 3, spec, 0, clock=bench.clock)
    assert [len(first) for first, _ in timings.loads] == [10, 10, 10]


def test_loading_again_takes_at_most_a_quarter_of_the_time():
    spec = BenchmarkSpec(max_seconds=2.0, loads=5)
    assert [affordable_loads(spec, seconds) for seconds in (0.0, 0.125, 0.2, 0.5, 0.6)] == [5, 5, 3, 2, 1]


def test_pairs_come_in_both_orders_and_each_holds_both():
    bench = Bench()
    bench.time(max_seconds=100, min_rounds=5, max_rounds=200)
    pairs = list(zip(bench.called[::2], bench.called[1::2], strict=True))
    assert len(pairs) == 200
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


def of_one_load(original, result):
    return Timings(original=original, result=result, load=np.zeros(len(original), np.int64), warm_up=0)


def test_metrics_by_hand():
    timings = of_one_load(np.arange(1, 101) * 0.002, np.arange(1, 101) * 0.001)
    p50, p90, p99, throughput = latency_metrics(timings, timings.speed_up(seed=0), 4, BenchmarkSpec())
    assert (p50.name, p50.unit, p50.direction, p50.samples) == ("latency_p50", "seconds", "lower_is_better", 100)
    assert (p50.original, p50.result, p50.ratio) == pytest.approx((0.101, 0.0505, 2.0))
    # Every pair has the ratio 2; what stays is luck of loading, 1.5 % times Student's 2.776.
    assert p50.interval == pytest.approx((2 * np.exp(-0.04165), 2 * np.exp(0.04165)), rel=1e-4)
    assert p50.verdict == "faster, 2.00x [1.92, 2.09]"
    assert (p90.original, p90.result) == pytest.approx((0.1802, 0.0901))
    assert (p99.original, p99.result) == pytest.approx((0.19802, 0.09901))
    # 400 samples in 10.1 s and in 5.05 s.
    assert (throughput.original, throughput.result) == pytest.approx((400 / 10.1, 400 / 5.05))
    assert throughput.ratio == pytest.approx(2.0)


def test_deadlines_and_real_time():
    timings = of_one_load(np.array([0.02, 0.03, 0.04, 0.05]), np.array([0.01, 0.01, 0.01, 0.09]))
    spec = BenchmarkSpec(deadline_seconds=0.035, sample_seconds=0.1)
    found = {metric.name: metric for metric in latency_metrics(timings, timings.speed_up(seed=0), 2, spec)}
    assert (found["deadline_misses"].original, found["deadline_misses"].result) == (0.5, 0.25)
    assert (found["deadline_misses"].ratio, found["deadline_misses"].unit) == (2.0, "fraction")
    assert (found["latency_max"].original, found["latency_max"].result) == (0.05, 0.09)
    # 35 ms for two samples that last 200 ms.
    assert found["real_time_factor"].original == pytest.approx(0.175)
    assert found["real_time_factor"].interval == found["latency_p50"].interval
    assert found["real_time_factor"].direction == "lower_is_better"
    assert not {"deadline_misses", "latency_max", "real_time_factor"} & {
        metric.name for metric in latency_metrics(timings, timings.speed_up(seed=0), 2, BenchmarkSpec())
    }


def test_real_models_are_timed_in_pairs(tmp_path):
    path = save(cnn(batch=2), tmp_path / "model.onnx")
    models = [Model(path, threads=1), Model(path, threads=1)]
    sample = {"x": np.zeros((2, 1, 8, 8), np.float32)}
    spec = BenchmarkSpec(max_seconds=0.01, min_rounds=20, max_rounds=30)
    timings = time_calls(models[0].bind(sample), models[1].bind(sample), spec, 0)
    assert 20 <= len(timings.original) + timings.warm_up <= 30
    assert len(timings.original) == len(timings.result) == len(timings.load)
    assert (timings.original > 0).all()
    assert (timings.result > 0).all()


def test_feeds_follow_the_models_names_and_types(tmp_path):
    path = save(cnn(), tmp_path / "model.onnx")
    feeds = Model(path, threads=1).feeds({"image": np.zeros((1, 1, 8, 8), np.float64)})
    assert list(feeds) == ["x"]
    assert feeds["x"].dtype == np.float32
