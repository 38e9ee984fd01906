"""A teacher's outputs are those of its model, kept or not; a trainee is its graph."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import helper

from compression.context import Context
from compression.errors import Cancelled, StepFailed
from compression.training import teacher as teaching
from compression.training.dataset import TrainingSet
from compression.training.teacher import Teacher
from compression.training.trainee import Trainee
from tests.compression import models


@pytest.fixture
def pictures():
    return np.random.default_rng(0).standard_normal((300, 1, 8, 8)).astype(np.float32)


def runtime(model, pictures):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": pictures})[0]


@pytest.mark.parametrize("most_bytes", [1 << 29, 0])
def test_outputs_belong_to_the_samples(tmp_path, pictures, monkeypatch, most_bytes):
    monkeypatch.setattr(teaching, "_MAX_KEPT_BYTES", most_bytes)
    samples = TrainingSet((pictures,), None)
    teacher = Teacher(models.cnn(), "cpu")
    teacher.watch(samples, Context(workdir=tmp_path), None)
    indices = np.array([299, 3, 256, 3])
    taught = teacher.teach(samples.batch(indices), indices)
    expected = runtime(models.cnn(), pictures)[indices]
    np.testing.assert_allclose(taught.teacher[0].numpy(), expected, rtol=1e-3, atol=1e-5)
    assert not taught.teacher[0].requires_grad
    assert torch.equal(taught.inputs[0], samples.batch(indices).inputs[0])


def test_a_last_batch_of_one_sample_does_not_look_like_too_much(tmp_path, monkeypatch):
    """257 samples are watched 256 and 1 at a time; each gives 40 bytes."""
    monkeypatch.setattr(teaching, "_MAX_KEPT_BYTES", 257 * 40)
    samples = TrainingSet((np.zeros((257, 1, 8, 8), np.float32),), None)
    teacher = Teacher(models.cnn(), "cpu")
    teacher.watch(samples, Context(workdir=tmp_path), None)
    monkeypatch.setattr(teacher, "outputs", None)  # computes nothing any more
    assert len(teacher.teach(samples.batch(np.arange(4)), np.arange(4)).teacher[0]) == 4


def test_a_teacher_that_takes_four_at_a_time(tmp_path, pictures):
    samples = TrainingSet((pictures[:12],), None)
    model = models.cnn(batch=4)
    teacher = Teacher(model, "cpu")
    teacher.watch(samples, Context(workdir=tmp_path), 4)
    indices = np.array([11, 0, 5, 6])
    found = teacher.teach(samples.batch(indices), indices).teacher[0].numpy()
    np.testing.assert_allclose(found, runtime(models.cnn(), pictures[indices]), rtol=1e-3, atol=1e-5)


def test_watching_can_be_cancelled(tmp_path, pictures):
    context = Context(workdir=tmp_path, is_cancelled=lambda: True)
    with pytest.raises(Cancelled):
        Teacher(models.cnn(), "cpu").watch(TrainingSet((pictures,), None), context, None)


def test_what_comes_back_untrained_is_what_went_in():
    model = models.cnn()
    assert Trainee(model).written_back().SerializeToString() == model.SerializeToString()


def test_the_weights_of_a_trainee():
    trainee = Trainee(models.embedding())
    assert [weight.weight.name for weight in trainee.weights()] == ["head"]
    assert [weight.weight.name for weight in trainee.weights(embeddings=True)] == ["table", "head"]
    assert [weight.weight.name for weight in trainee.weights(("lookup",), embeddings=True)] == ["table"]
    assert trainee.input_names == ("ids",)
    (head,) = trainee.weights()
    assert head.gradient() is None
    np.testing.assert_array_equal(head.values().numpy(), models.weights_of(models.embedding())["head"])


def test_weights_that_no_layer_owns_are_not_silently_left_out():
    """Equal vectors that an exporter has merged: which layer's is trained cannot be said by name."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "first"),
        helper.make_node("MatMul", ["x", "w"], ["b"], "second"),
        helper.make_node("Add", ["a", "b"], ["y"], "sum"),
    ]
    inputs, outputs = [models.value("x", ["n", 4])], [models.value("y", ["n", 1])]
    model = models.make_model(nodes, inputs, outputs, {"w": np.ones((4, 1), np.float32)})
    with pytest.raises(StepFailed, match="'w'") as caught:
        Trainee(model).weights()
    assert caught.value.code == "no_weights"
