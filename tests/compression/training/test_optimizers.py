"""Learning rates by hand, and which parameters decay."""

from __future__ import annotations

import doctest
import math

import pytest
import torch
from torch import nn

from compression.errors import StepFailed
from compression.training import optimizers
from compression.training.optimizers import learning_rate, optimizer, set_learning_rate
from compression.training.spec import Training


def rates(spec, steps, steps_per_epoch):
    return [learning_rate(spec, step, steps_per_epoch) for step in range(steps)]


def test_constant():
    assert rates(Training(schedule="constant", learning_rate=0.3, epochs=2), 4, 2) == [0.3] * 4


def test_half_a_cosine():
    expected = [0.5 * (1 + math.cos(math.pi * step / 8)) for step in range(8)]
    assert rates(Training(epochs=2, learning_rate=1.0), 8, 4) == pytest.approx(expected)


def test_drops_every_so_many_epochs():
    spec = Training(schedule="step", step_epochs=2, step_factor=0.5, learning_rate=0.8, epochs=5)
    assert rates(spec, 10, 2) == pytest.approx([0.8] * 4 + [0.4] * 4 + [0.2] * 2)


@pytest.mark.parametrize(("schedule", "last"), [("constant", [1.0, 1.0, 1.0]), ("cosine", [1.0, 0.75, 0.25])])
def test_warmup_rises_to_the_peak_and_the_rest_begins_there(schedule, last):
    """An epoch and a half of two steps are three steps; the cosine takes the three that are left."""
    spec = Training(schedule=schedule, warmup_epochs=1.5, epochs=3, learning_rate=1.0)
    assert rates(spec, 6, 2) == pytest.approx([1 / 3, 2 / 3, 1.0, *last])


def layer():
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_vectors_do_not_decay(name):
    module = layer()
    chosen = optimizer(module.parameters(), Training(optimizer=name, weight_decay=0.25, learning_rate=0.125))
    decay = {id(parameter): group["weight_decay"] for group in chosen.param_groups for parameter in group["params"]}
    assert decay == {id(parameter): 0.25 if parameter.dim() > 1 else 0.0 for parameter in module.parameters()}
    assert {group["lr"] for group in chosen.param_groups} == {0.125}


def test_decoupled_decay_by_hand():
    """AdamW with no gradient multiplies by 1 - rate times decay."""
    module = layer()
    before = [parameter.detach().clone() for parameter in module.parameters()]
    chosen = optimizer(module.parameters(), Training(weight_decay=0.5, learning_rate=0.1))
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    chosen.step()
    for parameter, old in zip(module.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.detach(), old * 0.95 if parameter.dim() > 1 else old)


def test_momentum_looks_ahead():
    """Nesterov: the step is gradient + momentum * velocity; with velocity = gradient in the first one 1 + m of it."""
    parameter = nn.Parameter(torch.zeros(1, 1))
    chosen = optimizer([parameter], Training(optimizer="sgd", momentum=0.5, learning_rate=1.0))
    parameter.grad = torch.ones(1, 1)
    chosen.step()
    assert parameter.item() == -1.5
    plain = optimizer([parameter], Training(optimizer="sgd", momentum=0.0, learning_rate=1.0))
    plain.step()
    assert parameter.item() == -2.5


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_divides_by_zero_in_half_precision(name):
    module = layer().half()
    with pytest.raises(StepFailed, match=f"'{name}' cannot train") as caught:
        optimizer(module.parameters(), Training(optimizer=name))
    assert caught.value.code == "optimizer_needs_float32"
    optimizer(module.parameters(), Training(optimizer="sgd"))
    # Why: the first step of Adam on a small gradient is no number.
    parameter = nn.Parameter(torch.ones(2, 2, dtype=torch.float16))
    parameter.grad = torch.tensor([[1e-4, 0.0], [0.1, 1.0]], dtype=torch.float16)
    torch.optim.AdamW([parameter]).step()
    assert not parameter.isfinite().all()


def test_frozen_parameters_are_left_out():
    module = layer()
    module[0].weight.requires_grad_(False)
    chosen = optimizer(module.parameters(), Training())
    taken = [id(parameter) for group in chosen.param_groups for parameter in group["params"]]
    assert id(module[0].weight) not in taken
    assert len(taken) == 3
    set_learning_rate(chosen, 0.7)
    assert [group["lr"] for group in chosen.param_groups] == [0.7]


def test_doctests():
    assert doctest.testmod(optimizers).failed == 0
