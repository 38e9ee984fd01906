"""Bits by how much each layer's rounding shows in the outputs."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper
from pydantic import ValidationError

from compression.errors import StepFailed
from compression.spec import QuantizeStatic
from tests.compression.models import make_model, value
from tests.compression.quantizing import apply, dataset, digits_calibration, digits_model, outputs, sqnr, stored


def spec(**goals):
    return QuantizeStatic(selection={"by": "sensitivity", **goals}, calibration="minmax", smoothing=None)


def signs_then_noise(seed=0):
    """Three products (n, 32) to (n, 32): the first one's weights are -1, 0 and 1, which 4 bits hold exactly."""
    rng = np.random.default_rng(seed)
    nodes = []
    for index, name in enumerate(("exact", "rounded", "last")):
        nodes += [
            helper.make_node("MatMul", [f"v{index}" if index else "x", f"w{index}"], [f"p{index}"], name),
            helper.make_node("Relu", [f"p{index}"], [f"v{index + 1}"], f"relu{index}"),
        ]
    weights = {
        "w0": rng.integers(-1, 2, (32, 32)).astype(np.float32),
        "w1": rng.normal(size=(32, 32)).astype(np.float32),
        "w2": rng.normal(size=(32, 32)).astype(np.float32),
    }
    return make_model(nodes, [value("x", ["n", 32])], [value("v3", ["n", 32])], weights)


def samples(folder):
    return dataset(folder, x=np.random.default_rng(1).normal(size=(64, 32)).astype(np.float32))


def decided(details):
    return {row["nodes"][0]: row["decision"] for row in details["decisions"]}


def test_few_bits_go_where_nothing_is_lost(tmp_path):
    model = signs_then_noise()
    result, details = apply(model, spec(max_mean_weight_bits=7), tmp_path, samples(tmp_path))
    assert decided(details) == {"exact": "4-bit weights", "rounded": "8-bit", "last": "8-bit"}
    assert details["mean_weight_bits"] == pytest.approx((4 + 8 + 8) / 3)
    alone = {row["nodes"][0]: row["sqnr_alone_db"] for row in details["decisions"]}
    assert alone["exact"]["4-bit weights"] == pytest.approx(alone["exact"]["8-bit"], abs=0.5)
    assert alone["rounded"]["8-bit"] > alone["rounded"]["4-bit weights"] + 12
    assert np.abs(stored(result)["w0_quantized"]).max() <= 7
    assert np.abs(stored(result)["w1_quantized"]).max() > 7


@pytest.mark.parametrize("goal", [35, 45, 60])
def test_the_whole_model_meets_the_goal(goal, tmp_path):
    model = digits_model()
    result, details = apply(model, spec(min_sqnr_db=goal, samples=128), tmp_path, digits_calibration())
    assert details["sqnr_db"] >= goal
    images = np.load("examples/digits/calibration.npz")["image"]
    assert sqnr(outputs(model, image=images), outputs(result, image=images)) > goal - 3
    kinds = set(decided(details).values())
    assert ("8-bit" in kinds) == (goal < 60)
    assert (kinds == {"8-bit"}) == (goal == 35)


def test_both_goals_or_what_can_be_reached(tmp_path):
    model, data = signs_then_noise(), samples(tmp_path)
    _, details = apply(model, spec(max_mean_weight_bits=7, min_sqnr_db=25), tmp_path, data)
    assert details["sqnr_db"] >= 25
    assert details["mean_weight_bits"] <= 7
    with pytest.raises(StepFailed, match=r"agrees with the float one by \d+\.\d dB at best, and 60 dB") as failure:
        apply(model, spec(max_mean_weight_bits=5, min_sqnr_db=60), tmp_path, data)
    assert failure.value.code == "goal_out_of_reach"


def test_a_goal_that_only_float_meets_leaves_the_model_as_it_is(tmp_path):
    model = signs_then_noise()
    result, details = apply(model, spec(min_sqnr_db=120), tmp_path, samples(tmp_path))
    assert set(decided(details).values()) == {"float"}
    assert result == model
    assert "only float" in details["weights"][0]["skipped"]


def test_a_goal_is_needed():
    with pytest.raises(ValidationError, match="give min_sqnr_db, max_mean_weight_bits, or both"):
        QuantizeStatic(selection={"by": "sensitivity"})
