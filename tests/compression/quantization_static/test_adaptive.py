"""Rounding by what it does to outputs: against all choices there are, and on real digits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from compression.context import Context
from compression.quantization.integer.adaptive import output_error, rounded
from compression.quantization.static import quantize_static
from compression.spec import QuantizeStatic
from tests.compression.quantizing import (
    DIGITS,
    digits_accuracy,
    digits_calibration,
    digits_model,
    outputs,
    sqnr,
    stored,
)


def problem(seed, outputs=6, inputs=7):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(50, inputs)) @ rng.normal(size=(inputs, inputs))
    return rng.uniform(-5, 5, (outputs, inputs)).astype(np.float32), (x.T @ x / 50).astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
def test_flips_come_close_to_the_best_of_all_choices(seed):
    values, moments = problem(seed)
    nearest = np.rint(values).astype(np.int8)
    found = rounded(values, nearest, moments, 7)
    choices = np.array(list(itertools.product((0, 1), repeat=values.shape[1])))
    best = np.array([output_error(row, np.floor(row) + choices, moments).min() for row in values])
    reached = output_error(values, found, moments)
    assert np.all(reached <= output_error(values, nearest, moments) + 1e-4)
    assert reached.sum() < 1.3 * best.sum() < output_error(values, nearest, moments).sum()
    assert np.all(reached >= best - 1e-4)
    # No single flip is left that would help.
    for row, index in itertools.product(range(len(values)), range(values.shape[1])):
        other = found.copy()
        other[row, index] += -1 if found[row, index] > values[row, index] else 1
        assert output_error(values, other, moments)[row] >= reached[row] - 1e-3


def test_numbers_stay_beside_their_values_within_bounds_and_zeros_stay():
    values, moments = problem(9, outputs=40)
    values[:, 2] = 0
    values[:, 3] = 11
    nearest = np.clip(np.rint(values), -4, 4).astype(np.int8)
    found = rounded(values, nearest, moments, 4)
    assert np.all(found[:, 2] == 0)
    assert np.all(found[:, 3] == 4)
    assert np.abs(found).max() <= 4
    inside = np.abs(values) <= 4
    assert np.abs(found - values)[inside].max() < 1


@pytest.mark.parametrize("per_channel", [True, False])
def test_four_bits_of_a_trained_network(per_channel, tmp_path):
    model, images = digits_model(), np.load(DIGITS / "evaluation.npz")["image"]
    found = {}
    for rounding in ("nearest", "adaptive"):
        spec = QuantizeStatic(weight_bits=4, rounding=rounding, per_channel=per_channel)
        result, details = quantize_static(model, spec, Context(tmp_path, threads=1), digits_calibration())
        found[rounding] = sqnr(outputs(model, image=images), outputs(result, image=images))
        for name, values in stored(result).items():
            if name.endswith("_quantized") and values.dtype == np.int8:
                assert np.abs(values).max() <= 7
    rows = details["rounded_adaptively"]
    assert {row["bits"] for row in rows} == {4}
    assert all(row["error_left"] < 0.9 for row in rows)
    assert found["adaptive"] > found["nearest"] + 2
    assert digits_accuracy(result) > digits_accuracy(model) - 0.02
