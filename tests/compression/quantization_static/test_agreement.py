"""How far outputs agree, and the way to calibrate that agrees best."""

from __future__ import annotations

import math

import numpy as np
import pytest
from onnx import helper

from compression.context import Context
from compression.data.feed import ModelFeed
from compression.graph.inspect import summarize
from compression.quantization.agreement import Agreement
from compression.quantization.static import calibrate, insert, quantize_static
from compression.spec import QuantizeStatic
from tests.compression.models import make_model, value
from tests.compression.quantization_static.test_equalize import norm_and_projections
from tests.compression.quantizing import apply, dataset, digits_calibration, digits_model, outputs, sqnr


def scaled_twice(first, second):
    """`a` = first * x and `b` = second * x, x (n, 3)."""
    nodes = [helper.make_node("Mul", ["x", name], [out], out) for name, out in (("f", "a"), ("s", "b"))]
    weights = {"f": np.array(first, np.float32), "s": np.array(second, np.float32)}
    return make_model(nodes, [value("x", ["n", 3])], [value("a", ["n", 3]), value("b", ["n", 3])], weights)


def test_noise_over_signal_is_averaged_over_outputs(tmp_path):
    model = scaled_twice(1, 5)
    data = dataset(tmp_path, x=np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32))
    agreement = Agreement(model, ModelFeed(data, summarize(model, 0, 0), "calibration"), Context(tmp_path), 16)
    assert agreement.sqnr(model) == math.inf
    # One output is off by a tenth, the other by a fifth: their noise is 1 and 4 percent of their signal's energy.
    assert agreement.sqnr(scaled_twice(1.1, 6)) == pytest.approx(-10 * math.log10((0.01 + 0.04) / 2), abs=1e-4)
    assert agreement.sqnr(scaled_twice(math.nan, 5)) == -math.inf


@pytest.mark.parametrize(("outlier", "better"), [(60.0, "mse"), (0.0, "minmax")])
def test_the_way_to_calibrate_that_agrees_better_is_taken(outlier, better, tmp_path):
    """A single outlier that no output shows makes extremes too wide; values without tails have nothing to clip."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (64, 16)).astype(np.float32)
    x[0, 0] = outlier or x[0, 0]
    weight = rng.normal(size=(16, 8)).astype(np.float32)
    weight[0] *= 1e-3 if outlier else 1
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "product")]
    model = make_model(nodes, [value("x", ["n", 16])], [value("y", ["n", 8])], {"w": weight})
    data = dataset(tmp_path, x=x)
    result, details = apply(model, QuantizeStatic(), tmp_path, data)
    taken = [row for row in details["calibrations_tried"] if row["taken"]]
    assert [row["calibration"] for row in taken] == [better]
    assert taken[0]["sqnr_db"] == max(row["sqnr_db"] for row in details["calibrations_tried"])
    alone, other = apply(model, QuantizeStatic(calibration=better), tmp_path, data)
    assert result == alone
    assert other["calibrations_tried"] == []


def test_smoothing_is_tried_where_layers_read_what_norms_give(tmp_path):
    model = norm_and_projections(residual=True)
    x = np.random.default_rng(1).normal(size=(64, 5, 8)).astype(np.float32)
    _, details = quantize_static(model, QuantizeStatic(), Context(tmp_path, threads=1), dataset(tmp_path, x=x))
    rows = details["calibrations_tried"]
    assert {(row["calibration"], row["smoothing"]) for row in rows} == {
        (method, smoothing) for method in ("mse", "minmax") for smoothing in (None, 0.7)
    }
    assert next(row for row in rows if row["taken"])["smoothing"] == 0.7
    _, details = quantize_static(digits_model(), QuantizeStatic(), Context(tmp_path, threads=1), digits_calibration())
    assert {row["smoothing"] for row in details["calibrations_tried"]} == {None}


def test_sixteen_bits_leave_nothing_to_choose(tmp_path):
    calibrated = calibrate(digits_model(), QuantizeStatic(activation_bits=16), Context(tmp_path), digits_calibration())
    assert calibrated.tried == ()
    image = np.random.default_rng(0).random((4, 1, 8, 8), np.float32)
    assert sqnr(outputs(digits_model(), image=image), outputs(insert(calibrated), image=image)) > 35
