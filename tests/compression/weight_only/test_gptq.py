"""GPTQ against the paper's equations, done column by column with the whole inverse in double precision."""

from __future__ import annotations

import numpy as np
import pytest

from compression.quantization.weight_only import gptq, groupwise


def layer(inputs=96, outputs=12, samples=400, seed=0):
    """A weight (inputs, outputs), correlated inputs (samples, inputs) and their second moments."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((inputs, inputs)) * (rng.random(inputs) ** 2)[:, None]
    x = (rng.standard_normal((samples, inputs)) @ mixing / np.sqrt(inputs)).astype(np.float32)
    weight = (rng.standard_normal((inputs, outputs)) / np.sqrt(inputs)).astype(np.float32)
    return weight, x, x.T @ x / np.float32(samples)


def by_the_book(weight, moments, bits, group_size, *, symmetric, damping, order):
    """Equations 2 and 3 of the paper: quantize one input, update the rest, take it out of the inverse Hessian.

    A group's grid is that of its weights when its turn comes (`order` ascending), or of the unchanged ones.
    """
    work = weight.astype(np.float64)
    hessian = moments.astype(np.float64) + damping * np.diagonal(moments).mean() * np.eye(len(moments))
    inverse = np.linalg.inv(hessian)
    result = np.zeros_like(work)
    ascending = list(order) == sorted(order)
    grids = {}
    for index in order:
        group = index // group_size
        rows = slice(group * group_size, (group + 1) * group_size)
        if group not in grids:
            source = work if ascending else weight
            blocks = groupwise.blocks_of(source[None, rows].astype(np.float32), group_size)
            grids[group] = groupwise.grid_of(blocks, bits, np.float32, symmetric=symmetric)
        grid = grids[group]
        scale, zero = grid.scales[0, 0, 0].astype(np.float64), grid.zero_points[0, 0, 0]
        result[index] = (np.clip(np.rint(work[index] / scale) + zero, 0, grid.top) - zero) * scale
        error = (work[index] - result[index]) / inverse[index, index]
        work -= np.outer(inverse[:, index], error)
        inverse -= np.outer(inverse[:, index], inverse[index]) / inverse[index, index]
    return result


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize(("bits", "symmetric"), [(2, True), (3, False), (4, True), (4, False)])
def test_it_is_the_papers_update_column_by_column(bits, symmetric, act_order):
    """200 inputs are more than one lazy batch, and leave the last group of 32 incomplete."""
    weight, _, moments = layer(inputs=200)
    order = np.argsort(-np.diagonal(moments), kind="stable") if act_order else np.arange(200)
    expected = by_the_book(weight, moments, bits, 32, symmetric=symmetric, damping=0.01, order=order)
    groups = gptq.quantize(weight, moments, bits, 32, symmetric=symmetric, damping=0.01, act_order=act_order)
    found = groupwise.dequantize(groups, 200)[0]
    # Single precision may round a few values, and what follows from them, the other way.
    assert np.mean(np.abs(found - expected) < 1e-4) > 0.97
    outputs = [np.vdot(error, moments @ error) for error in (found - weight, expected - weight)]
    assert outputs[0] == pytest.approx(outputs[1], rel=0.05)


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_outputs_are_nearer_than_with_the_nearest_codes(bits, act_order):
    weight, x, moments = layer()
    nearest, _ = groupwise.round_to_nearest(weight[None], bits, 32, symmetric=True)
    found = gptq.quantize(weight, moments, bits, 32, symmetric=True, damping=0.01, act_order=act_order)
    noise = [np.square(x @ (groupwise.dequantize(groups, 96)[0] - weight)).sum() for groups in (found, nearest)]
    assert noise[0] < 0.6 * noise[1]


def test_unrelated_inputs_are_rounded_to_nearest():
    weight, _, _ = layer()
    nearest, _ = groupwise.round_to_nearest(weight[None], 4, 32, symmetric=True)
    for moments in (np.diag(np.arange(1.0, 97.0)), np.zeros((96, 96))):
        found = gptq.quantize(weight, moments, 4, 32, symmetric=True, damping=0.01, act_order=True)
        np.testing.assert_array_equal(found.codes, nearest.codes)


def test_zeros_stay_zero_and_inputs_that_are_never_driven_keep_their_weights():
    weight, _, moments = layer()
    pruned = np.random.default_rng(1).random(weight.shape) < 0.5
    weight[pruned] = 0
    moments[5], moments[:, 5] = 0, 0
    for act_order in (True, False):
        found = groupwise.dequantize(
            gptq.quantize(weight, moments, 4, 32, symmetric=False, damping=0.01, act_order=act_order), 96
        )[0]
        assert not found[pruned].any()
        assert np.abs(found[5] - weight[5]).max() < 0.1


def test_the_factor_is_that_of_the_damped_inverse():
    _, _, moments = layer()
    factor = gptq.inverse_factor(moments, 0.01).astype(np.float64)
    damped = moments + 0.01 * np.diagonal(moments).mean() * np.eye(len(moments))
    assert not np.tril(factor, -1).any()
    np.testing.assert_allclose(factor.T @ factor @ damped, np.eye(len(moments)), atol=1e-3)


def test_more_inputs_than_samples_are_damped_until_they_can_be_inverted():
    weight, _, moments = layer(samples=10)
    found = gptq.quantize(weight, moments, 4, 32, symmetric=True, damping=1e-9, act_order=True)
    assert np.isfinite(groupwise.dequantize(found, 96)).all()
