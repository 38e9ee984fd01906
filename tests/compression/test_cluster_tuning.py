"""Shared values that are trained: how many there are, what moves them, and what they gain."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import helper

from compression.clustering.step import cluster
from compression.clustering.tuning import SharedValues, cluster_and_tune
from compression.context import Context
from compression.errors import Cancelled, StepFailed
from compression.pruning.step import prune
from compression.spec import Cluster, Finetune, Prune
from compression.training import checkpoint
from compression.training.spec import Training
from compression.training.step import finetune
from compression.training.trainee import Trainee
from tests.compression import models
from tests.compression.training.loops import MemoryCache, accuracy, flat_digits, material

TRAINING = Training(epochs=2, batch_size=50, learning_rate=0.01)
LAYERS = {"w1": 1, "w2": 1}  # with the axis of outputs


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def context(tmp_path):
    return Context(workdir=tmp_path)


def small():
    return models.mlp(hidden=16)


def tuned(tmp_path, model, arrays=None, *, seed=0, **fields):
    data = material(tmp_path / "data", model, arrays or flat_digits(), seed=seed)
    spec = Cluster(**({"training": TRAINING} | fields))
    return cluster_and_tune(model, spec, Context(workdir=tmp_path), data)


def linear(weight, **attributes):
    nodes = [helper.make_node("Gemm", ["x", "w"], ["y"], "gemm", **attributes)]
    axis = 0 if attributes.get("transB") else 1
    inputs = [models.value("x", ["n", weight.shape[1 - axis]])]
    return models.make_model(nodes, inputs, [models.value("y", ["n", weight.shape[axis]])], {"w": weight})


WEIGHT = np.array([[1.0, 2.0, 1.0], [0.0, 1.0, 2.0]], np.float32)
GRADIENT = np.array([[1.0, 10.0, 100.0], [5.0, 1000.0, 20.0]], np.float32)


@pytest.mark.parametrize("transposed", [0, 1])
def test_a_shared_value_moves_by_the_sum_of_its_gradients(transposed):
    trainee = Trainee(linear(WEIGHT, transB=transposed))
    weights = trainee.weights()
    shared = SharedValues(weights, by_channel=False, keep_zeros=True)
    (parameter,) = weights[0].parameters
    (parameter.grad,) = weights[0].split(torch.from_numpy(GRADIENT))
    shared.after_backward()
    expected = np.array([[1101.0, 30.0, 1101.0], [0.0, 1101.0, 30.0]], np.float32)
    np.testing.assert_array_equal(weights[0].gradient().numpy(), expected)
    with torch.no_grad():
        parameter -= 0.5 * parameter.grad
        parameter += 1e-4 * torch.rand(parameter.shape)  # what rounding by position does
    shared.after_step()
    values = models.weights_of(trainee.written_back())["w"]
    np.testing.assert_allclose(values, [[-549.5, -13, -549.5], [0, -549.5, -13]], rtol=1e-5)
    assert len(np.unique(values)) == 3
    assert values[1, 0] == 0
    assert not np.signbit(values[1, 0])


def test_values_are_shared_within_a_channel():
    trainee = Trainee(linear(WEIGHT, transB=1))  # rows are outputs
    weights = trainee.weights()
    shared = SharedValues(weights, by_channel=True, keep_zeros=True)
    (weights[0].parameters[0].grad,) = weights[0].split(torch.from_numpy(GRADIENT))
    shared.after_backward()
    expected = np.array([[101.0, 10.0, 101.0], [0.0, 1000.0, 20.0]], np.float32)
    np.testing.assert_array_equal(weights[0].gradient().numpy(), expected)


def test_zeros_move_too_where_they_are_not_kept():
    trainee = Trainee(linear(WEIGHT))
    weights = trainee.weights()
    shared = SharedValues(weights, by_channel=False, keep_zeros=False)
    (weights[0].parameters[0].grad,) = weights[0].split(torch.from_numpy(GRADIENT))
    shared.after_backward()
    assert weights[0].gradient()[1, 0] == 5
    with torch.no_grad():
        weights[0].parameters[0].sub_(weights[0].parameters[0].grad)
    shared.after_step()
    assert models.weights_of(trainee.written_back())["w"][1, 0] == -5


def test_without_gradients_nothing_happens():
    trainee = Trainee(linear(WEIGHT))
    shared = SharedValues(trainee.weights(), by_channel=False, keep_zeros=True)
    shared.after_backward()
    shared.after_step()
    np.testing.assert_array_equal(models.weights_of(trainee.written_back())["w"], WEIGHT)


@pytest.mark.parametrize("keep_zeros", [True, False])
def test_weights_keep_their_clusters_and_the_values_change(tmp_path, context, keep_zeros):
    model, _ = prune(small(), Prune(amount=0.5), context)
    fields = {"clusters": 8, "keep_zeros": keep_zeros}
    at_first, _ = cluster(model, Cluster(**fields), context, 0)
    found, details = tuned(tmp_path, model, **fields)
    for name in LAYERS:
        before, after = models.weights_of(at_first)[name], models.weights_of(found)[name]
        pairs = np.unique(np.stack([before.ravel(), after.ravel()]), axis=1)
        assert pairs.shape[1] == len(np.unique(before)) == len(np.unique(after)) == 8
        assert not np.array_equal(before, after)
        if keep_zeros:
            np.testing.assert_array_equal(after == 0, models.weights_of(model)[name] == 0)
    assert not np.array_equal(models.weights_of(found)["b1"], models.weights_of(model)["b1"])
    assert [one["clusters"] for one in details["weights"]] == [8, 8]
    assert len(details["training"]["epochs"]) == 2


def test_each_channel_has_values_of_its_own(tmp_path):
    found, _ = tuned(tmp_path, small(), clusters=4, scope="channel")
    for name, axis in LAYERS.items():
        values = models.weights_of(found)[name]
        assert {len(np.unique(channel)) for channel in np.moveaxis(values, axis, 0)} == {4}
        assert len(np.unique(values)) == 4 * values.shape[axis]


@pytest.mark.parametrize("scope", ["tensor", "channel"])
def test_both_directions_of_a_recurrent_layer_share_their_values(tmp_path, scope):
    """One tensor of the graph, two parameters of the module."""
    rng = np.random.default_rng(0)
    weights = {"w": models.weight(rng, 2, 24, 4), "r": models.weight(rng, 2, 24, 6)}
    nodes = [
        helper.make_node("LSTM", ["x", "w", "r"], ["", "h"], "lstm", hidden_size=6, direction="bidirectional"),
        helper.make_node("Transpose", ["h"], ["t"], "transpose", perm=[1, 0, 2]),
        helper.make_node("Flatten", ["t"], ["y"], "flatten"),
    ]
    model = models.make_model(nodes, [models.value("x", [5, "n", 4])], [models.value("y", ["n", 12])], weights)
    trainee = Trainee(cluster(model, Cluster(clusters=4, scope=scope), Context(workdir=tmp_path), 0)[0])
    found = trainee.weights()
    assert {len(one.parameters) for one in found} == {2}
    shared = SharedValues(found, by_channel=scope == "channel", keep_zeros=True)
    generator = torch.Generator().manual_seed(0)
    for one in found:
        for parameter in one.parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
    plain = {one.weight.name: one.gradient().numpy() for one in found}
    before = {one.weight.name: one.values().numpy() for one in found}
    shared.after_backward()
    for one in found:
        name = one.weight.name
        channels = [...] if scope == "tensor" else [(slice(None), row) for row in range(24)]
        for channel in channels:
            for value in np.unique(before[name][channel]):
                members = before[name][channel] == value
                np.testing.assert_allclose(
                    one.gradient().numpy()[channel][members], plain[name][channel][members].sum(), rtol=1e-4, atol=1e-5
                )
        with torch.no_grad():
            for parameter in one.parameters:
                parameter.sub_(0.1 * parameter.grad)
    shared.after_step()
    for name, values in models.weights_of(trainee.written_back()).items():
        parts = [values] if scope == "tensor" else np.moveaxis(values, 1, 0)
        assert max(len(np.unique(part)) for part in parts) == 4, name


def test_embeddings_are_tuned_too(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"ids": rng.integers(0, 50, (60, 7)), "labels": np.arange(60) % 3}
    found, details = tuned(tmp_path, models.embedding(), arrays, clusters=5)
    at_first, _ = cluster(models.embedding(), Cluster(clusters=5), Context(workdir=tmp_path), 0)
    assert [one["name"] for one in details["weights"]] == ["table", "head"]
    for name in ("table", "head"):
        assert len(np.unique(models.weights_of(found)[name])) == 5
        assert not np.array_equal(models.weights_of(found)[name], models.weights_of(at_first)[name])


def test_tuning_wins_accuracy_back(tmp_path, context):
    arrays = flat_digits(1200)
    data = material(tmp_path / "data", small(), arrays)
    model, _ = finetune(small(), Finetune(training=Training(epochs=15, learning_rate=0.01)), context, data)
    spec = Cluster(clusters=2)
    at_first, _ = cluster(model, spec, context, 0)
    training = Training(epochs=10, learning_rate=0.01)
    found, _ = cluster_and_tune(model, spec.model_copy(update={"training": training}), context, data)
    test = {name: values[1200:] for name, values in flat_digits(1797).items()}
    assert accuracy(found, test) > accuracy(at_first, test) + 0.1
    assert {len(np.unique(models.weights_of(found)[name])) for name in LAYERS} == {2}


def test_the_seed_decides_the_bytes(tmp_path):
    first, again, other = (tuned(tmp_path, small(), seed=seed)[0].SerializeToString() for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_resumed_tuning_ends_where_an_uninterrupted_one_does(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_SECONDS_BETWEEN", 0.0)
    spec = Cluster(clusters=8, training=Training(epochs=4, batch_size=50, learning_rate=0.01))
    data = material(tmp_path / "data", small(), flat_digits(), key="d" * 64)
    whole, _ = cluster_and_tune(small(), spec, Context(workdir=tmp_path), data)
    (tmp_path / "cache").mkdir()
    cache = MemoryCache(tmp_path / "cache")
    stopping = Context(workdir=tmp_path, step_cache=cache, is_cancelled=lambda: bool(cache.kept))
    with pytest.raises(Cancelled):
        cluster_and_tune(small(), spec, stopping, data)
    resumed, _ = cluster_and_tune(small(), spec, Context(workdir=tmp_path, step_cache=cache), data)
    assert resumed.SerializeToString() == whole.SerializeToString()


def test_names_that_nothing_has(tmp_path):
    with pytest.raises(StepFailed) as caught:
        tuned(tmp_path, small(), include=("w9",))
    assert caught.value.code == "unknown_name"


def test_only_the_selected_weights_share_values(tmp_path):
    found, _ = tuned(tmp_path, small(), clusters=4, include=("w1",))
    assert len(np.unique(models.weights_of(found)["w1"])) == 4
    assert len(np.unique(models.weights_of(found)["w2"])) == 160
