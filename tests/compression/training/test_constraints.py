"""Terms of the loss by hand, and zeros that stay."""

from __future__ import annotations

import doctest
import math

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch import nn

from compression.training import constraints
from compression.training.constraints import KeepZeros, Regularizer, group_norms
from compression.training.spec import Training
from compression.training.step import regularization
from compression.training.trainee import Trainee
from tests.compression import models


def weight(values):
    return nn.Parameter(torch.tensor(values))


@pytest.mark.parametrize(
    ("factors", "expected"),
    [
        ({"l1": 0.5}, 0.5 * 10),
        ({"l2": 0.5}, 0.5 * (9 + 16 + 9) / 2),
        ({"group_lasso": 0.5}, 0.5 * math.sqrt(2) * (5 + 3)),
        ({"l1": 1.0, "l2": 2.0}, 10 + 34),
    ],
)
def test_penalties_by_hand(factors, expected):
    values = weight([[3.0, -4.0], [0.0, 3.0]])
    regularizer = Regularizer([(values, 0)], **({"l1": 0.0, "l2": 0.0, "group_lasso": 0.0} | factors))
    assert regularizer.penalty().item() == pytest.approx(expected)


def test_group_lasso_groups_along_the_axis_of_outputs():
    values = weight([[3.0, -4.0], [0.0, 3.0]])
    assert group_norms(values, 1).tolist() == pytest.approx([3 * math.sqrt(2), 5 * math.sqrt(2)])
    convolution = torch.arange(24.0).reshape(2, 3, 2, 2)
    expected = [convolution[channel].norm().item() * math.sqrt(12) for channel in range(2)]
    assert group_norms(convolution, 0).tolist() == pytest.approx(expected)


def test_the_gradient_is_finite_at_a_group_of_zeros():
    values = weight([[3.0, 4.0], [0.0, 0.0]])
    Regularizer([(values, 0)], l1=0.0, l2=0.0, group_lasso=1.0).penalty().backward()
    expected = [[3 / 5 * math.sqrt(2), 4 / 5 * math.sqrt(2)], [0.0, 0.0]]
    torch.testing.assert_close(values.grad, torch.tensor(expected))


def test_no_weights_no_term():
    assert Regularizer([], l1=1.0, l2=1.0, group_lasso=1.0).penalty() is None
    assert regularization(Training(), Trainee(models.cnn()).weights()) == []


def test_outputs_are_grouped_wherever_the_graph_has_them():
    """Gemm with and without transB, MatMul, Conv, ConvTranspose, GRU: each weight's own axis of outputs."""
    rng = np.random.default_rng(0)
    weights = {
        "conv": models.weight(rng, 4, 1, 3, 3),
        "up": models.weight(rng, 4, 2, 2, 2),
        "mat": models.weight(rng, 72, 5),
        "gemm": models.weight(rng, 3, 5),
        "w": models.weight(rng, 1, 6, 3),
        "r": models.weight(rng, 1, 6, 2),
        "axes": np.array([0], np.int64),
    }
    nodes = [
        helper.make_node("Conv", ["x", "conv"], ["c"], "conv_node"),
        helper.make_node("ConvTranspose", ["c", "up"], ["u"], "up_node", strides=[2, 2]),
        helper.make_node("Flatten", ["u"], ["f"], "flatten"),
        helper.make_node("MatMul", ["f", "mat"], ["m"], "mat_node"),
        helper.make_node("Gemm", ["m", "gemm"], ["g"], "gemm_node", transB=1),
        helper.make_node("Unsqueeze", ["g", "axes"], ["s"], "unsqueeze"),
        helper.make_node("GRU", ["s", "w", "r"], ["", "h"], "gru", hidden_size=2),
    ]
    model = models.make_model(
        nodes, [models.value("x", ["n", 1, 5, 5])], [models.value("h", [1, "n", 2], onnx.TensorProto.FLOAT)], weights
    )
    found = Trainee(model).weights()
    (regularizer,) = regularization(Training(group_lasso=1.0), found)
    outputs = {"conv": 0, "up": 1, "mat": 1, "gemm": 0, "w": 1, "r": 1}
    assert {one.weight.name for one in found} == set(outputs)
    expected = 0.0
    for name, axis in outputs.items():
        groups = np.moveaxis(weights[name], axis, 0).reshape(weights[name].shape[axis], -1)
        expected += math.sqrt(groups.shape[1]) * float(np.linalg.norm(groups, axis=1).sum())
    assert regularizer.penalty().item() == pytest.approx(expected, rel=1e-5)


def test_zeros_stay_and_nothing_else_is_touched():
    values, dense = weight([[0.0, 2.0], [-3.0, -0.0]]), weight([[1.0, 2.0]])
    keep = KeepZeros([values, dense])
    with torch.no_grad():
        values += torch.tensor([[-1.0, 1.0], [1.0, -1.0]])
        dense.zero_()
    keep.after_step()
    assert values.tolist() == [[0.0, 3.0], [-2.0, 0.0]]
    assert not values.detach().signbit()[values == 0].any()
    assert dense.tolist() == [[0.0, 0.0]]


def test_doctests():
    assert doctest.testmod(constraints).failed == 0
