"""A target of measured latency: the search against latencies that are known, and one real measurement end to end."""

from __future__ import annotations

import doctest
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from compression.benchmarking import machine
from compression.cache import step_keys
from compression.context import Context
from compression.errors import Cancelled, StepFailed
from compression.pruning.channel_spec import PruneChannels
from compression.pruning.channels import latency_target
from compression.pruning.channels.groups import Group, Plan
from compression.pruning.channels.latency_target import Search, Timed
from compression.pruning.channels.selection import Ranking
from compression.pruning.channels.step import prune_channels
from compression.spec import BenchmarkSpec, PipelineSpec
from tests.compression import models
from tests.compression.channel_pruning.oracle import prune


def ranking(units=400, round_to=1):
    group = Group(tuple(range(1, units + 1)), (), 1, 0)
    return Ranking(Plan(units + 1, [group]), [np.arange(units, dtype=float)], "layer", round_to, 0.9)


def search(latency, target, *, noise=0.0, width=0.01, units=400, round_to=1, seconds=60.0, each=1.0):
    """A search among candidates that take `latency(share removed)`, each measured in `each` seconds."""
    rng = np.random.default_rng(0)
    now = 0.0

    def measure(removed):
        nonlocal now
        now += each
        ratio = latency(len(removed) / units) * (1 + noise * rng.standard_normal())
        return Timed(ratio, (ratio * (1 - width), ratio * (1 + width)), 100)

    def cost(removed):
        return (1 - len(removed) / units) ** 2

    return Search(ranking(units, round_to), target, cost, measure, seconds, clock=lambda: now)


CURVES = {
    "both factors": lambda gone: (1 - gone) ** 2,
    "one factor": lambda gone: 1 - gone,
    "with an overhead": lambda gone: 0.2 + 0.8 * (1 - gone) ** 2,
    "late": lambda gone: 1.0 if gone < 0.7 else 2 * (1 - gone),
    "in steps": lambda gone: np.ceil((1 - gone) * 10) / 10,
}


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("target", [0.9, 0.5, 0.3])
def test_the_smallest_sufficient_amount(curve, target):
    latency = CURVES[curve]
    looking = search(latency, target)
    found = looking.run()
    assert found.timed.ratio <= target
    # The smallest amount that suffices by the curve itself, to one unit of 400.
    smallest = next(gone / 400 for gone in range(401) if latency(gone / 400) <= target)
    close = found.timed.ratio >= 0.96 * target
    assert close or found.amount - smallest <= 0.9 / 2**4
    assert len(looking.candidates) <= 8


@given(
    st.floats(0.1, 0.95),
    st.floats(0, 0.05),
    st.floats(0, 0.05),
    st.sampled_from(sorted(CURVES)),
    st.sampled_from([1, 8]),
)
def test_whatever_the_noise(target, noise, width, curve, round_to):
    looking = search(CURVES[curve], target, noise=noise, width=width, round_to=round_to)
    found = looking.run()
    assert 1 <= len(looking.candidates) <= 8
    if found is None:
        assert looking.candidates[-1].amount == 0.9
        assert not any(candidate.timed.reaches(target) for candidate in looking.candidates)
        return
    assert found.timed.reaches(target)
    assert (400 - len(found.removed)) % round_to == 0
    # Nothing is timed twice, and what is taken is the smallest of all that reached the target.
    assert len({len(candidate.removed) for candidate in looking.candidates}) == len(looking.candidates)
    assert found.amount == min(c.amount for c in looking.candidates if c.timed.reaches(target))


def test_no_candidate_is_begun_when_the_time_is_over():
    looking = search(CURVES["late"], 0.5, each=10.0, seconds=25.0)
    assert looking.run() is not None
    assert len(looking.candidates) == 3


def test_candidates_that_are_the_same_are_timed_once():
    looking = search(CURVES["one factor"], 0.55, units=32, round_to=8)
    found = looking.run()
    assert {32 - len(candidate.removed) for candidate in looking.candidates} <= {8, 16, 24}
    assert 32 - len(found.removed) == 16


@contextmanager
def known_latency(monkeypatch, ratio):
    """Times are not measured but told."""

    def tell(stopwatch, candidate, target):
        parameters = sum(int(np.prod(tensor.dims)) for tensor in candidate.graph.initializer)
        value = ratio(parameters)
        return Timed(value, (value * 0.99, value * 1.01), 30)

    with monkeypatch.context() as patched:
        patched.setattr(latency_target.Stopwatch, "time", tell)
        yield


def test_out_of_reach_says_what_is_in_reach(tmp_path, monkeypatch):
    model = models.cnn(channels=(32, 64))
    whole = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)
    with known_latency(monkeypatch, lambda parameters: 0.5 + 0.5 * parameters / whole):
        with pytest.raises(StepFailed) as refusal:
            prune(model, tmp_path, target_latency=0.4)
        assert refusal.value.code == "target_unreachable"
        share = float(refusal.value.message.rstrip(".").split()[-1])
        assert 0.5 < share < 0.6
        assert "[" in refusal.value.message
        _, details = prune(model, tmp_path, target_latency=share)
    assert details["latency"]["ratio"] <= share
    assert details["amount"] == details["latency"]["candidates"][-1]["amount"] == 0.9


def test_the_report_fits_together_and_the_amount_gives_the_same_bytes_again(tmp_path, monkeypatch):
    model = models.cnn(channels=(64, 128))
    whole = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)
    said = []
    spec = PruneChannels(target_latency=0.8, round_to=8)
    context = Context(tmp_path, threads=1, progress=lambda *said_now: said.append(said_now))
    with known_latency(monkeypatch, lambda parameters: 0.3 + 0.7 * parameters / whole):
        pruned, details = prune_channels(model, spec, context, 0)
    latency = details["latency"]
    assert latency["interval"][0] <= latency["ratio"] <= latency["interval"][1] <= 0.8
    assert (latency["target"], latency["batch_size"], latency["threads"]) == (0.8, 1, 1)
    chosen = [one for one in latency["candidates"] if one["amount"] == details["amount"]]
    assert (latency["ratio"], latency["interval"]) in [(one["ratio"], one["interval"]) for one in chosen]
    assert all(group["channels"] % 8 == 0 for group in details["groups"])
    again, _ = prune(model, tmp_path, amount=details["amount"], round_to=8)
    assert again.SerializeToString(deterministic=True) == pruned.SerializeToString(deterministic=True)
    assert [one[1] for one in said] == sorted(one[1] for one in said)
    assert list(tmp_path.iterdir()) == []


def test_a_stopwatch_times_a_candidate_in_turns_with_the_model(tmp_path, monkeypatch):
    """No time is asserted: a machine under load measures what it will."""
    monkeypatch.setattr(latency_target, "_TIMING", BenchmarkSpec(max_seconds=0.1, min_rounds=8))
    model = models.cnn(channels=(64, 128))
    with latency_target.Stopwatch(model, Context(tmp_path, threads=1), 0) as stopwatch:
        timed = stopwatch.time(model, 0.5)
    assert 0 < timed.interval[0] <= timed.ratio <= timed.interval[1]
    assert timed.rounds > 1  # rounds spread over several loads, and those that warm up do not count
    assert list(tmp_path.iterdir()) == []


def test_cancelled_while_timing(tmp_path):
    asked = 0

    def is_cancelled():
        nonlocal asked
        asked += 1
        return asked > 10

    context = Context(tmp_path, threads=1, is_cancelled=is_cancelled)
    with pytest.raises(Cancelled):
        prune_channels(models.cnn(channels=(64, 128)), PruneChannels(target_latency=0.5), context, 0)
    assert asked == 11
    assert list(tmp_path.iterdir()) == []


def test_models_that_do_not_run_on_made_up_inputs(tmp_path):
    """Rows and columns are open, and the last layer wants 8 of each."""
    model = models.cnn()
    for axis in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        axis.ClearField("dim_value")
    with pytest.raises(StepFailed) as refusal:
        prune(model, tmp_path, target_latency=0.5)
    assert refusal.value.code == "latency_unknown"
    assert "target_macs" in refusal.value.message


def test_the_machine_is_part_of_the_key_from_the_step_on_that_measures():
    steps = [{"type": "prune", "amount": 0.1}, {"type": "prune_channels", "target_latency": 0.5}, {"type": "finetune"}]
    spec = PipelineSpec.model_validate({"steps": steps})
    one, other = (step_keys("a", {}, spec, ["x86_64"], machine=[name]) for name in ("fast", "slow"))
    assert [left == right for left, right in zip(one, other, strict=True)] == [True, False, False]
    steps[1] = {"type": "prune_channels", "amount": 0.5}
    spec = PipelineSpec.model_validate({"steps": steps})
    assert step_keys("a", {}, spec, machine=["fast"]) == step_keys("a", {}, spec, machine=["slow"])


def test_facts_of_the_machine():
    assert doctest.testmod(machine).failed == 0
    facts = machine.machine_facts(3)
    assert facts[-1] == "3 threads"
    assert facts[-2].endswith(" cores")
    assert facts == machine.machine_facts(3) != machine.machine_facts(2)


@pytest.mark.parametrize(
    "fields", [{"target_latency": 1.0}, {"target_latency": 0.5, "amount": 0.5}, {"target_latency": 0}]
)
def test_specs_that_make_no_sense(fields):
    with pytest.raises(ValidationError):
        PruneChannels(**fields)
