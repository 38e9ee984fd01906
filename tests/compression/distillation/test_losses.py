"""Losses against numbers computed by hand and against plain loops."""

from __future__ import annotations

import math

import pytest
import torch

from compression.distillation import losses
from compression.training.objectives import soft_cross_entropy


def test_soft_cross_entropy_by_hand():
    # Logits that halve to ln 1, ln 3 against ln 1, ln 1: p = (1/4, 3/4), q = (1/2, 1/2).
    teacher = 2 * torch.tensor([[0.0, math.log(3)]])
    student = torch.tensor([[5.0, 5.0]])
    expected = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert soft_cross_entropy(student, teacher, 2.0).item() == pytest.approx(4 * expected, rel=1e-5)


def test_gradient_of_soft_cross_entropy_keeps_its_size_at_high_temperatures():
    # Hinton 2015, section 2.1: at high temperature the gradient is (z - v) / (N T²), times T² for centred logits.
    torch.manual_seed(0)
    teacher = torch.randn(1, 5, dtype=torch.float64)
    student = torch.randn(1, 5, dtype=torch.float64)
    teacher, student = teacher - teacher.mean(), (student - student.mean()).requires_grad_()
    soft_cross_entropy(student, teacher, 1000.0).backward()
    torch.testing.assert_close(student.grad, (student - teacher).detach() / 5, rtol=1e-2, atol=1e-4)


def test_soft_binary_cross_entropy_by_hand():
    # Sigmoids of 0 and of ln 3 at temperature 1: 1/2 and 3/4.
    student, teacher = torch.tensor([[0.0]]), torch.tensor([[math.log(3)]])
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert losses.soft_binary_cross_entropy(student, teacher, 1.0).item() == pytest.approx(expected, rel=1e-5)
    assert losses.soft_binary_cross_entropy(2 * student, 2 * teacher, 2.0).item() == pytest.approx(
        4 * expected, rel=1e-5
    )
    assert losses.soft_binary_cross_entropy(teacher, teacher, 3.0).item() == pytest.approx(0, abs=1e-6)


def test_relative_squared_error_is_one_for_silence_at_any_scale():
    teacher = torch.tensor([[1.0, -3.0], [2.0, 0.5]])
    for scale in (1e-3, 1.0, 1e3):
        assert losses.relative_squared_error(torch.zeros(2, 2), scale * teacher).item() == pytest.approx(1)


def test_attention_by_hand():
    # Squares summed over channels: (9, 16) against (0, 1); norms: √337 and 1.
    student = torch.tensor([[[[3.0, 0.0]], [[0.0, 4.0]]]])
    teacher = torch.tensor([[[[0.0, 1.0]]]])
    first, second = 9 / math.sqrt(337), 16 / math.sqrt(337)
    torch.testing.assert_close(losses.attention_map(student), torch.tensor([[first, second]]))
    expected = (first**2 + (second - 1) ** 2) / 2
    assert losses.attention_distance(student, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_attention_is_nothing_between_equal_and_one_between_disjoint_maps():
    here, there = torch.tensor([[[5.0, 0.0]]]), torch.tensor([[[0.0, 0.1]]])
    assert losses.attention_distance(here, 7 * here).item() == pytest.approx(0, abs=1e-6)
    assert losses.attention_distance(here, there).item() == pytest.approx(1)


def test_distances_by_hand():
    # A triangle with sides 3, 4 and 5, whose mean is 4.
    points = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    expected = torch.tensor([[0, 3, 4], [3, 0, 5], [4, 5, 0]]) / 4
    torch.testing.assert_close(losses.distances(points), expected)


def test_angles_by_hand():
    # The same triangle: a right angle at the first point, cosines 3/5 and 4/5 at the others.
    points = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    found = losses.angles(points)
    assert found[0, 1, 2].item() == pytest.approx(0, abs=1e-6)
    assert found[1, 0, 2].item() == pytest.approx(3 / 5)
    assert found[2, 0, 1].item() == pytest.approx(4 / 5)
    assert found[0, 1, 1].item() == pytest.approx(1)
    assert found[0, 0, 1].item() == 0


def test_angles_equal_a_loop_over_all_triples():
    torch.manual_seed(1)
    points = torch.randn(6, 3, dtype=torch.float64) + 10
    found = losses.angles(points)
    for vertex in range(6):
        for one in range(6):
            for other in range(6):
                if vertex in (one, other):
                    assert found[vertex, one, other] == 0
                    continue
                a, b = points[one] - points[vertex], points[other] - points[vertex]
                expected = torch.dot(a, b) / (a.norm() * b.norm())
                assert found[vertex, one, other].item() == pytest.approx(expected.item(), abs=1e-9)


def test_relations_do_not_see_scale_place_or_rotation():
    torch.manual_seed(2)
    points = torch.randn(8, 4)
    rotation, _ = torch.linalg.qr(torch.randn(4, 4))
    moved = 3 * points @ rotation + 5
    assert losses.relation_distance(moved, points).item() == pytest.approx(0, abs=1e-10)
    assert losses.relation_angle(moved, points).item() == pytest.approx(0, abs=1e-8)
    assert losses.relation_distance(torch.randn(8, 2), points).item() > 0.01


@pytest.mark.parametrize("loss", [losses.relation_distance, losses.relation_angle])
def test_equal_samples_have_finite_gradients(loss):
    student = torch.tensor([[1.0, 2.0], [1.0, 2.0], [0.0, 1.0]], requires_grad=True)
    loss(student, torch.tensor([[0.0], [1.0], [2.0]])).backward()
    assert bool(torch.isfinite(student.grad).all())
