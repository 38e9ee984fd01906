"""Fake quantization against numbers worked out by hand, against torch's own, and against LSQ's formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compression.quantization.aware.fake_quant import (
    Grid,
    activation_grid,
    bias_levels,
    fake_quantize,
    fake_quantize_bias,
    least_error_scale,
    lsq_factor,
    quantize,
    range_parameters,
    symmetric_scale,
    weight_grid,
)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float32)


def away_from_ties(shape, scale, seed=0):
    """Values whose ratio to the scale is no nearer than 0.05 to a half, where torch's reciprocal rounds otherwise."""
    rng = np.random.default_rng(seed)
    level = rng.integers(-12, 13, shape) + rng.uniform(-0.45, 0.45, shape)
    return torch.tensor(level, dtype=torch.float32) * scale


def test_grids():
    assert [activation_grid(bits) for bits in (4, 8)] == [Grid(0, 15), Grid(0, 255)]
    assert [weight_grid(bits) for bits in (2, 4, 7, 8)] == [Grid(-2, 1), Grid(-8, 7), Grid(-64, 63), Grid(-127, 127)]


def test_by_hand():
    x = tensor(-3.0, -1.0, 0.24, 0.26, 0.5, 9.0)
    scale, zero = torch.tensor(0.5), torch.tensor(2.0)
    # -3 / 0.5 + 2 = -4 ends at 0; 9 / 0.5 + 2 = 20 ends at 15.
    assert quantize(x, scale, zero, activation_grid(4)).tolist() == [0, 0, 2, 3, 3, 15]
    assert fake_quantize(x, scale, zero, activation_grid(4)).tolist() == [-1, -1, 0, 0.5, 0.5, 6.5]


def test_halves_go_to_even_as_onnx_has_it():
    x = tensor(0.25, 0.75, 1.25, -0.25, -0.75)
    assert quantize(x, torch.tensor(0.5), 0.0, Grid(-8, 7)).tolist() == [0, 2, 2, 0, -2]


@pytest.mark.parametrize("bits", [4, 5, 8])
def test_like_torch_per_tensor(bits):
    grid, scale = activation_grid(bits), 0.37
    x = away_from_ties((3, 5, 7), scale).requires_grad_()
    mine = x.detach().clone().requires_grad_()
    weights = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(1))
    expected = torch.fake_quantize_per_tensor_affine(x, scale, 6, grid.low, grid.high)
    found = fake_quantize(mine, torch.tensor(scale), torch.tensor(6.0), grid)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    # Torch lets the gradient pass up to half a step beyond the range, LSQ up to the range.
    ratio = x.detach() / scale
    within_half = ((ratio - (grid.high - 6)).abs() < 0.5) | ((ratio - (grid.low - 6)).abs() < 0.5)
    assert within_half.float().mean() < 0.2
    torch.testing.assert_close(mine.grad[~within_half], x.grad[~within_half])


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("axis", [0, 1])
def test_like_torch_per_channel(bits, axis):
    grid = weight_grid(bits)
    steps = tensor(0.1, 0.25, 0.7)
    shape = (3, 1, 1) if axis == 0 else (1, 3, 1)
    x = away_from_ties((3, 3, 9), 1.0) * steps.reshape(shape)
    expected = torch.fake_quantize_per_channel_affine(x, steps, torch.zeros(3), axis, grid.low, grid.high)
    found = fake_quantize(x, steps.reshape(shape), torch.zeros(()), grid)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_straight_through():
    x = tensor(-0.9, 0.2, 1.4, 3.2, 7.4).requires_grad_()
    fake_quantize(x, torch.tensor(1.0), torch.tensor(0.0), Grid(-8, 7)).backward(tensor(1, 2, 3, 4, 5))
    assert x.grad.tolist() == [1, 2, 3, 4, 0]  # 7.4 lies beyond the highest level


def test_gradient_of_the_step_by_hand():
    scale = torch.tensor(0.5, requires_grad=True)
    x = tensor(0.6, -0.35, 100.0, -100.0)
    fake_quantize(x, scale, torch.tensor(0.0), Grid(-8, 7), 0.1).backward(tensor(1, 10, 100, 1000))
    # round(1.2) - 1.2 = -0.2; round(-0.7) + 0.7 = -0.3; 7; -8.
    expected = 0.1 * (1 * -0.2 + 10 * -0.3 + 100 * 7 + 1000 * -8)
    assert scale.grad.item() == pytest.approx(expected, rel=1e-6)


def test_gradient_of_the_steps_by_formula():
    """Esser et al. 2020, equation 3, element by element, with a zero point and a step for each channel."""
    rng = np.random.default_rng(2)
    x, gradient = rng.normal(size=(4, 6)) * 3, rng.normal(size=(4, 6))
    steps, zero, grid = np.array([0.2, 0.5, 0.9, 1.3]), 5.0, activation_grid(4)
    factor = lsq_factor(6, grid)
    expected = np.zeros(4)
    for channel in range(4):
        for value, slope in zip(x[channel], gradient[channel], strict=True):
            ratio = value / steps[channel]
            if ratio < grid.low - zero:
                change = grid.low - zero
            elif ratio > grid.high - zero:
                change = grid.high - zero
            else:
                change = np.round(ratio) - ratio
            expected[channel] += slope * change * factor
    scale = torch.tensor(steps, dtype=torch.float32)[:, None].requires_grad_()
    found = fake_quantize(torch.tensor(x, dtype=torch.float32), scale, torch.tensor(zero), grid, factor)
    found.backward(torch.tensor(gradient, dtype=torch.float32))
    np.testing.assert_allclose(scale.grad[:, 0].numpy(), expected, rtol=1e-4)


def test_factor_of_the_gradient():
    assert lsq_factor(100, weight_grid(4)) == pytest.approx(1 / np.sqrt(100 * 7))
    assert lsq_factor(36, activation_grid(4)) == pytest.approx(1 / np.sqrt(36 * 15))


def test_other_types_come_back_in_their_own():
    x = tensor(0.2, 0.6).to(torch.bfloat16)
    found = fake_quantize(x, torch.tensor(0.5), torch.tensor(0.0), Grid(-8, 7))
    assert found.dtype == torch.bfloat16
    assert found.tolist() == [0, 0.5]


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero"),
    [
        (-1.0, 3.0, 4 / 15, 4),  # 1 / (4 / 15) = 3.75
        (0.0, 6.0, 0.4, 0),
        (2.0, 3.0, 0.2, 0),  # zero has to be in the range
        (-3.0, -1.0, 0.2, 15),
        (0.0, 0.0, 1.0, 0),
    ],
)
def test_a_range_as_scale_and_zero_point(low, high, scale, zero):
    found = range_parameters(torch.tensor(low), torch.tensor(high), activation_grid(4))
    assert found[0].item() == pytest.approx(scale)
    assert found[1].item() == zero


def test_symmetric_scales():
    weight = torch.tensor([[1.0, -3.5], [0.7, 0.2], [0.0, 0.0]])
    assert symmetric_scale(weight, weight_grid(4), 0).flatten().tolist() == pytest.approx([0.5, 0.1, 1.0])
    assert symmetric_scale(weight, weight_grid(4), 1).tolist() == [pytest.approx([1 / 7, 0.5])]
    assert symmetric_scale(weight, weight_grid(8), None).item() == pytest.approx(3.5 / 127)


def test_the_scale_that_errs_least():
    """Against a search over all shares, written out in NumPy."""
    rng = np.random.default_rng(3)
    x = np.concatenate([rng.normal(size=500), [12.0]]).astype(np.float32)
    grid = weight_grid(4)
    whole = 12.0 / 7
    errors = {}
    for share in np.arange(4, 41) / 40:
        step = whole * share
        errors[share] = np.square(np.clip(np.round(x / step), -8, 7) * step - x).sum()
    best = min(errors, key=errors.get)
    found = least_error_scale(torch.from_numpy(x), torch.tensor(whole), torch.tensor(0.0), grid, None)
    assert found.item() == pytest.approx(whole * best, rel=1e-5)
    assert 0.1 < best < 0.9


def test_each_channel_has_its_own_least_error():
    rng = np.random.default_rng(4)
    x = torch.tensor(rng.normal(size=(3, 200)) * [[1], [5], [0.1]], dtype=torch.float32)
    x[1, 0] = 90
    grid = weight_grid(3)
    found = least_error_scale(x, symmetric_scale(x, grid, 0), torch.zeros(3, 1), grid, 0)
    for channel in range(3):
        row = x[channel]
        alone = least_error_scale(row, symmetric_scale(row, grid, None), torch.tensor(0.0), grid, None)
        assert found[channel].item() == pytest.approx(alone.item())


def test_biases():
    bias = tensor(0.1, -0.2, 5e9).requires_grad_()
    scale = tensor(0.03, 0.07, 1.0)
    assert bias_levels(bias, scale).tolist() == [3, -3, 2**31 - 1]
    found = fake_quantize_bias(bias, scale)
    torch.testing.assert_close(found, tensor(0.09, -0.21, 2.0**31))
    found.backward(tensor(1, 2, 3))
    assert bias.grad.tolist() == [1, 2, 3]


def test_biases_keep_all_31_bits():
    """Float32 has 24: a scale far below the bias must not lose what int32 can hold."""
    assert bias_levels(tensor(0.1), torch.tensor(1e-9)).item() == round(
        np.float32(0.1).item() / np.float32(1e-9).item()
    )
