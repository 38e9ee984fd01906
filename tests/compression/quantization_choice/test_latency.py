"""Static quantization of what is faster."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from compression.context import Context
from compression.errors import Cancelled
from compression.quantization.choice import latency
from compression.quantization.choice.race import Place
from compression.quantization.step import quantize
from compression.spec import QuantizeStatic
from tests.compression.quantizing import apply, digits_calibration, digits_model, outputs, sqnr

FAST = QuantizeStatic(selection={"by": "latency", "max_seconds": 0.5}, calibration_samples=32)


def decided(details):
    return {tuple(row["nodes"]): row["decision"] for row in details["decisions"]}


def winner(monkeypatch, name, speed_up=1.5):
    """Let the race end with that one ahead."""

    def race(calls, *_, **__):
        places = {one: Place(1.0, 1.0, (0.99, 1.01), 20) for one in calls}
        places[name] = Place(1.0 / speed_up, speed_up, (speed_up - 0.1, speed_up + 0.1), 20)
        return places

    monkeypatch.setattr(latency, "race", race)


def test_what_is_chosen_is_what_computes_in_integers(tmp_path):
    model = digits_model()
    result, details = apply(model, FAST, tmp_path, digits_calibration())
    images = np.load("examples/digits/evaluation.npz")["image"]
    assert details["candidates"][0]["candidate"] == "original"
    names = {node.name for node in result.graph.node}
    for row in details["decisions"]:
        # A node computes in integers only where it reads what was dequantized; so does a float node behind one.
        reads = [name for node in result.graph.node if node.name == row["nodes"][0] for name in node.input]
        if reads and row["decision"] == "integers":
            assert any(name.endswith("_DequantizeLinear_Output") for name in reads), row
    assert {name for row in details["decisions"] for name in row["nodes"]} >= {
        node.name for node in digits_model().graph.node if node.name in names
    }
    assert sqnr(outputs(model, image=images), outputs(result, image=images)) > 20


def test_all_of_it_where_that_wins(monkeypatch, tmp_path):
    winner(monkeypatch, "all")
    result, details = apply(digits_model(), FAST, tmp_path, digits_calibration())
    everything, _ = apply(digits_model(), QuantizeStatic(calibration_samples=32), tmp_path, digits_calibration())
    assert result.SerializeToString() == everything.SerializeToString()
    assert details["chosen"] == "all"
    assert set(decided(details).values()) == {"integers"}


@pytest.mark.parametrize(("name", "speed_up"), [("original", 2.0), ("all", 1.05)])
def test_where_nothing_is_faster_the_model_stays_as_it_is(name, speed_up, monkeypatch, tmp_path):
    winner(monkeypatch, name, speed_up)
    model = digits_model()
    result, details = apply(model, FAST, tmp_path, digits_calibration())
    assert result.SerializeToString() == model.SerializeToString()
    assert details["chosen"] == "float"
    assert set(decided(details).values()) == {"float"}
    assert {row["reason"] for row in details["decisions"]} == {"no choice of nodes was faster than the original"}
    assert {row["skipped"] for row in details["weights"]} == {"no choice of nodes was faster than the original"}


def test_what_the_spec_leaves_out_stays_float(monkeypatch, tmp_path):
    winner(monkeypatch, "all")
    spec = FAST.model_copy(update={"exclude": ("widen.conv.weight",)})
    _, details = apply(digits_model(), spec, tmp_path, digits_calibration())
    row = next(row for row in details["decisions"] if "node_Conv_81" in row["nodes"])
    assert row["decision"] == "float"
    assert row["reason"] == "left out by the spec, or not in a form to quantize"


def test_it_stops_when_asked(tmp_path):
    asked = []

    def stop():
        asked.append(True)
        return len(asked) > 5

    context = Context(workdir=tmp_path, threads=1, is_cancelled=stop)
    with pytest.raises(Cancelled):
        quantize(digits_model(), FAST, context, digits_calibration(), seed=0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "selection", [{"by": "latencies"}, {"by": "latency", "max_seconds": 0}, {"by": "all", "max_seconds": 3}, {}]
)
def test_a_wrong_selection_is_refused(selection):
    with pytest.raises(ValidationError):
        QuantizeStatic(selection=selection)


def test_only_a_choice_by_latency_belongs_to_the_machine():
    assert FAST.depends_on_machine
    assert not QuantizeStatic().depends_on_machine
