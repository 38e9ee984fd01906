"""Losses against numbers computed by hand and against torch's own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from onnx import helper
from torch.nn import functional

from compression.errors import DataRejected, StepFailed
from compression.training import objectives
from compression.training.dataset import TrainingBatch
from compression.training.objectives import Score, Supervised, cross_entropy, soft_cross_entropy
from compression.training.spec import Training
from compression.training.trainee import Trainee
from tests.compression import models


def batch(target, *, teacher=None):
    return TrainingBatch((torch.zeros(1),), target, None if teacher is None else (teacher,))


def loss(output, target=None, *, teacher=None, normalized=False, **spec):
    supervised = Supervised(Training(**spec), normalized=normalized)
    return supervised.loss_of((output,), batch(target, teacher=teacher))


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_cross_entropy_by_hand():
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])  # probabilities 3/4, 1/4 and 1/2, 1/2
    found = cross_entropy(logits, torch.tensor([1, 0]))
    assert found.item() == pytest.approx((math.log(4) + math.log(2)) / 2)
    # A fifth of the target is spread over both classes: 0.9 and 0.1.
    smoothed = cross_entropy(logits[:1], torch.tensor([1]), label_smoothing=0.2)
    assert smoothed.item() == pytest.approx(0.9 * math.log(4) + 0.1 * math.log(4 / 3))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_tokens_leaves_negative_ones_out(smoothing):
    logits = normal(3, 5, 7)
    target = torch.tensor([[0, 6, -1, 2, -100], [1, 1, 1, -5, 3], [-1, -1, -1, -1, -1]])
    kept = target.flatten() >= 0
    expected = functional.cross_entropy(logits.reshape(15, 7)[kept], target.flatten()[kept], label_smoothing=smoothing)
    assert cross_entropy(logits, target, smoothing).item() == pytest.approx(expected.item(), rel=1e-6)
    assert cross_entropy(logits[2:], target[2:], smoothing).item() == 0


def test_right_ones_are_counted_among_what_is_wanted():
    logits = functional.one_hot(torch.tensor([[0, 1, 2], [2, 2, 2]]), 3).float()
    target = torch.tensor([[0, 1, 1], [2, -1, -1]])
    _, correct = Supervised(Training(), normalized=False).correct(lambda _: logits, batch(target))
    assert correct.tolist() == [True, True, False, True]
    _, correct = Supervised(Training(), normalized=False).correct(lambda _: logits[0], batch(target[0]))
    assert correct.tolist() == [True, True, False]
    _, correct = Supervised(Training(), normalized=False).correct(lambda _: logits[0], batch(logits[0]))
    assert correct is None


def test_soft_cross_entropy_by_hand():
    """KL(teacher | student) of the softened distributions, times T squared."""
    student = torch.tensor([[0.0, 0.0]])  # 1/2, 1/2 at any temperature
    teacher = torch.tensor([[2 * math.log(3.0), 0.0]])  # 3/4, 1/4 at temperature 2
    expected = 4 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    assert soft_cross_entropy(student, teacher, 2.0).item() == pytest.approx(expected)
    tokens = soft_cross_entropy(student.expand(3, 5, 2), teacher.expand(3, 5, 2), 2.0)
    assert tokens.item() == pytest.approx(expected)


def test_the_gradient_of_soft_cross_entropy_keeps_its_size_at_high_temperatures():
    """Hinton 2015, equation 4: at high temperature dC/dz = (z - v) / (N T²) for logits of mean zero, so T² cancels."""
    student, teacher = normal(1, 4), normal(1, 4, seed=1)
    student, teacher = student - student.mean(), teacher - teacher.mean()
    student.requires_grad_()
    soft_cross_entropy(student, teacher, 1000.0).backward()
    torch.testing.assert_close(student.grad, (student.detach() - teacher) / 4, rtol=2e-2, atol=1e-3)


def test_what_the_loss_is_by_default():
    logits, floats = normal(6, 4), normal(6, 4, seed=1)
    classes = torch.tensor([0, 3, 1, 2, 2, 0])
    torch.testing.assert_close(loss(logits, classes), functional.cross_entropy(logits, classes))
    torch.testing.assert_close(loss(logits, floats), ((logits - floats) ** 2).mean())
    torch.testing.assert_close(
        loss(logits, classes, label_smoothing=0.1), functional.cross_entropy(logits, classes, label_smoothing=0.1)
    )


def test_a_target_of_one_number_serves_an_output_of_one_column():
    output, target = torch.tensor([[1.0], [4.0]]), torch.tensor([2.0, 2.0])
    assert loss(output, target).item() == pytest.approx((1 + 4) / 2)
    assert loss(output, target, loss="mse").item() == pytest.approx((1 + 4) / 2)


def test_cosine():
    output, target = torch.tensor([[3.0, 0.0], [1.0, 1.0]]), torch.tensor([[1.0, 1.0], [2.0, 2.0]])
    assert loss(output, target, loss="cosine").item() == pytest.approx((1 - math.sqrt(0.5)) / 2)


def test_a_teacher_beside_labels_and_alone():
    logits, teacher, classes = normal(6, 4), normal(6, 4, seed=1), torch.tensor([0, 3, 1, 2, 2, 0])
    soft = functional.kl_div(
        functional.log_softmax(logits / 3, -1), functional.softmax(teacher / 3, -1), reduction="batchmean"
    )
    hard = functional.cross_entropy(logits, classes)
    both = loss(logits, classes, teacher=teacher, temperature=3.0, teacher_weight=0.25)
    torch.testing.assert_close(both, 0.75 * hard + 0.25 * 9 * soft)
    torch.testing.assert_close(loss(logits, teacher=teacher, temperature=3.0, teacher_weight=0.25), 9 * soft)
    torch.testing.assert_close(loss(logits, classes, teacher=teacher, teacher_weight=0.0), hard)


@pytest.mark.parametrize("spec", [{"loss": "mse"}, {"loss": "auto"}])
def test_the_teacher_of_a_regression_gives_numbers_rather_than_classes(spec):
    output, teacher, target = normal(6, 4), normal(6, 4, seed=1), normal(6, 4, seed=2)
    found = loss(output, target, teacher=teacher, teacher_weight=0.5, **spec)
    torch.testing.assert_close(found, 0.5 * ((output - target) ** 2).mean() + 0.5 * ((output - teacher) ** 2).mean())
    column = loss(output[:, :1], teacher=teacher[:, :1])
    torch.testing.assert_close(column, ((output - teacher)[:, 0] ** 2).mean())


def test_probabilities_are_as_good_as_logits():
    logits, teacher, classes = normal(6, 4), normal(6, 4, seed=1), torch.tensor([0, 3, 1, 2, 2, 0])
    for target, taught in ((classes, None), (None, teacher), (classes, teacher)):
        softened = None if taught is None else taught.softmax(-1)
        found = loss(logits.softmax(-1), target, teacher=softened, normalized=True)
        torch.testing.assert_close(found, loss(logits, target, teacher=taught))


def test_what_a_softmax_is_surely_wrong_about_still_has_a_gradient():
    logits = torch.tensor([[60.0, 0.0]], requires_grad=True)
    loss(logits.softmax(-1), torch.tensor([1]), normalized=True).backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[1.0, -1.0]]))


def ending_in(operator, opset=21):
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["scores"], "gemm"),
        helper.make_node(operator, ["scores"], ["y"], "last"),
    ]
    weights = {"w": models.weight(np.random.default_rng(0), 3, 4)}
    inputs, outputs = [models.value("x", ["n", 3])], [models.value("y", ["n", 4])]
    return models.make_model(nodes, inputs, outputs, weights, opset=opset)


@pytest.mark.parametrize(
    ("operator", "opset", "expected"),
    [("Softmax", 21, True), ("Softmax", 11, True), ("LogSoftmax", 21, False), ("Sigmoid", 21, False)],
)
def test_whether_a_model_gives_probabilities(operator, opset, expected):
    assert Trainee(ending_in(operator, opset)).gives_probabilities is expected


def test_a_model_without_an_activation_gives_no_probabilities():
    assert not Trainee(models.cnn()).gives_probabilities


@pytest.mark.parametrize(
    ("output", "target", "spec", "code", "words"),
    [
        (normal(2, 3), None, {}, "labels_missing", "training.teacher"),
        (normal(2, 3), normal(2, 3), {"loss": "cross_entropy"}, "labels_invalid", "whole numbers in 'labels'"),
        (normal(2, 3), torch.tensor([0, 1]), {"loss": "mse"}, "labels_invalid", "floats in 'targets'"),
        (normal(2, 3), torch.tensor([0, 1]), {"loss": "cosine"}, "labels_invalid", "floats in 'targets'"),
        (normal(2, 3), normal(2, 4), {}, "labels_invalid", "[4], the model's output [3]"),
        (normal(2, 5, 3), torch.tensor([0, 1]), {}, "labels_invalid", "[2, 'classes']"),
        (normal(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64), {}, "labels_invalid", "[2, 4, 4, 'classes']"),
        (normal(2, 1), torch.tensor([0, 1]), {}, "labels_invalid", "a single score"),
        (normal(2, 3), torch.tensor([0, 3]), {}, "labels_out_of_range", "class 3"),
    ],
)
def test_what_cannot_be_learned(output, target, spec, code, words):
    with pytest.raises(DataRejected) as caught:
        loss(output, target, **spec)
    assert caught.value.code == code
    assert words in caught.value.message


def test_labels_are_checked_where_the_teacher_alone_decides():
    supervised = Supervised(Training(teacher_weight=1.0), normalized=False)
    taught = batch(torch.tensor([0, 1]), teacher=normal(2, 5, 3))
    with pytest.raises(DataRejected, match="need outputs of shape"):
        supervised.correct(lambda _: normal(2, 5, 3), taught)


def test_an_output_of_whole_numbers_has_no_gradient():
    with pytest.raises(StepFailed, match="int64") as caught:
        loss(torch.tensor([[1, 2]]), torch.tensor([0]))
    assert caught.value.code == "output_not_trainable"


def test_scores_in_order():
    assert Score(9.0, 0.5).is_better_than(None)
    assert Score(9.0, 0.6).is_better_than(Score(0.1, 0.5))
    assert Score(0.1, 0.5).is_better_than(Score(0.2, 0.5))
    assert not Score(0.2, 0.5).is_better_than(Score(0.2, 0.5))
    assert Score(1.0).is_better_than(Score(2.0))
    assert not Score(2.0).is_better_than(Score(1.0))


def test_all_outputs_in_order():
    several = objectives.outputs_of(lambda x: [x, x + 1], TrainingBatch((torch.tensor([1.0]),), None))
    assert [value.item() for value in several] == [1.0, 2.0]
