"""What fake quantizers note, and what training moves in them."""

from __future__ import annotations

import pytest
import torch

from compression.quantization.aware.fake_quant import activation_grid, fake_quantize, lsq_factor, weight_grid
from compression.quantization.aware.quantizers import (
    ActivationQuantizer,
    BiasQuantizer,
    StepsAboveZero,
    WeightQuantizer,
)


def watched(quantizer, *batches):
    for batch in batches:
        assert quantizer(batch) is batch
    quantizer.start()
    return quantizer


def test_observed_ranges_are_the_mean_of_the_extremes():
    quantizer = ActivationQuantizer(activation_grid(4), learned=False)
    watched(quantizer, torch.tensor([-1.0, 2.0]), torch.tensor([-3.0, 6.0]))
    scale, zero = quantizer.parameters_now()
    assert scale.item() == pytest.approx((4.0 - -2.0) / 15)
    assert zero.item() == 5


def test_observed_ranges_follow_in_training_only():
    quantizer = ActivationQuantizer(activation_grid(8), learned=False)
    watched(quantizer, torch.tensor([0.0, 10.0]))
    quantizer.eval()(torch.tensor([0.0, 20.0]))
    assert quantizer.high.item() == 10
    quantizer.train()(torch.tensor([-2.0, 20.0]))
    assert quantizer.high.item() == pytest.approx(10.1)
    assert quantizer.low.item() == pytest.approx(-0.02)
    assert not list(quantizer.parameters())


def test_a_learned_step_moves_under_sgd_as_the_step_itself_would():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 8, generator=generator).abs()
    slope = torch.randn(5, 8, generator=generator)
    grid = activation_grid(4)
    quantizer = watched(ActivationQuantizer(grid, learned=True), x)
    scale, zero = (value.detach().clone() for value in quantizer.parameters_now())
    plain = scale.clone().requires_grad_()
    (fake_quantize(x, plain, zero, grid, lsq_factor(8, grid)) * slope).sum().backward()
    (quantizer(x) * slope).sum().backward()
    with torch.no_grad():
        for parameter in quantizer.parameters():
            parameter.sub_(0.01 * parameter.grad)
    moved = quantizer.parameters_now()[0]
    assert moved.item() == pytest.approx((plain - 0.01 * plain.grad).item(), rel=1e-5)
    assert moved.item() != pytest.approx(scale.item(), rel=1e-5)


def test_learned_steps_stay_above_zero():
    quantizer = WeightQuantizer(weight_grid(4), 0, learned=True)
    quantizer.start(torch.ones(3, 2))
    first = quantizer.scale(torch.ones(3, 2)).detach().clone()
    with torch.no_grad():
        quantizer.step.factor[1] = -5.0
    StepsAboveZero([quantizer]).after_step()
    assert (quantizer.scale(torch.ones(3, 2)) / first).flatten().tolist() == [1, 1 / 64, 1]


def test_observed_weight_ranges_follow_the_weight():
    quantizer = WeightQuantizer(weight_grid(4), 0, learned=False)
    quantizer.start(torch.ones(2, 3))
    weight = torch.tensor([[0.7, -0.34, 0.0], [1.4, 0.1, -0.31]])
    torch.testing.assert_close(quantizer(weight), torch.tensor([[0.7, -0.3, 0.0], [1.4, 0.0, -0.4]]))


def test_biases_lie_on_the_accumulators_scale():
    activation = watched(ActivationQuantizer(activation_grid(8), learned=False), torch.tensor([0.0, 25.5]))
    weight = WeightQuantizer(weight_grid(8), 0, learned=False)
    values = torch.tensor([[1.27, 0.0], [2.54, 0.5]])
    weight.start(values)
    bias = BiasQuantizer(activation, weight)
    torch.testing.assert_close(bias.scale(values), torch.tensor([0.001, 0.002]))
    torch.testing.assert_close(bias(torch.tensor([0.0124, 0.0125]), values), torch.tensor([0.012, 0.012]))
    assert not list(bias.parameters())


def test_what_sees_nothing_still_has_a_scale():
    for learned in (True, False):
        quantizer = ActivationQuantizer(activation_grid(8), learned=learned)
        quantizer.start()
        assert [value.item() for value in quantizer.parameters_now()] == [1, 0]
        watched(ActivationQuantizer(activation_grid(8), learned=learned), torch.zeros(0, 3))
