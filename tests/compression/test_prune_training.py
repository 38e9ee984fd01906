"""Pruning in training: schedules by hand, criteria against formulas, sparsity exactly as asked."""

from __future__ import annotations

import doctest

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch.nn import functional

from compression.context import Context
from compression.data import DataSource, open_dataset
from compression.data.feed import ModelFeed
from compression.errors import Cancelled
from compression.graph.inspect import summarize
from compression.pruning import in_training
from compression.pruning.in_training import Masking, prune_in_training, share_due
from compression.pruning.step import prune
from compression.spec import Finetune, Prune
from compression.training import checkpoint
from compression.training.spec import Training
from compression.training.step import finetune
from compression.training.trainee import Trainee
from tests.compression import models
from tests.compression.training.loops import MemoryCache, accuracy, flat_digits, material

# So small a rate leaves every weight as it is, to the bit.
STILL = Training(epochs=2, batch_size=60, learning_rate=1e-30)


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


def pruned_with(tmp_path, model, arrays=None, *, seed=0, **fields):
    spec = Prune(**fields)
    data = material(tmp_path / "data", model, arrays or flat_digits(), seed=seed)
    return prune_in_training(model, spec, Context(workdir=tmp_path), data)


def due(progress, **fields):
    return share_due(Prune(amount=0.5, training={}, **fields), progress)


def test_one_shot_is_due_at_its_beginning():
    assert [due(progress, begin=0.25) for progress in (0, 0.24, 0.25, 0.9)] == [0, 0, 1, 1]


def test_iterative_parts_are_due_evenly():
    found = [due(progress, schedule="iterative", rounds=4, begin=0.25, end=0.75) for progress in np.arange(9) / 8]
    assert found == [0, 0, 0.25, 0.5, 0.75, 1, 1, 1, 1]


def test_gradual_follows_the_cubic_curve():
    fields = {"schedule": "gradual", "begin": 0.2, "end": 0.8}
    assert due(0.19, **fields) == 0
    # Sixty renewals; the one that is due at a progress ends at the next sixtieth of the way.
    for progress, sixtieths in ((0.2, 1), (0.2001, 1), (0.2 + 0.0101, 2), (0.505, 31), (0.7999, 60)):
        assert due(progress, **fields) == pytest.approx(1 - (1 - sixtieths / 60) ** 3)
    assert due(0.8, **fields) == due(1.0, **fields) == 1
    curve = [due(progress, **fields) for progress in np.linspace(0, 1, 200)]
    assert curve == sorted(curve)


@pytest.mark.parametrize("criterion", ["taylor", "movement"])
@pytest.mark.parametrize("schedule", ["one_shot", "iterative", "gradual"])
def test_what_training_measures_needs_some_training_first(criterion, schedule):
    assert due(0.0, criterion=criterion, schedule=schedule) == 0
    assert due(0.021, criterion=criterion, schedule=schedule) > 0
    assert due(0.0, criterion=criterion, schedule=schedule, end=0.01) == 0
    assert due(0.03, criterion=criterion, schedule=schedule, end=0.01) == 1


SIZES = {"w1": 64 * 16, "w2": 16 * 10}


@pytest.mark.parametrize("criterion", ["magnitude", "taylor", "movement"])
@pytest.mark.parametrize(
    "schedule",
    [
        {},
        {"begin": 0.99},
        {"schedule": "iterative", "rounds": 3, "end": 1.0},
        {"schedule": "gradual", "end": 1.0},
        {"schedule": "gradual", "begin": 0.1, "end": 0.6},
    ],
)
def test_the_sparsity_is_exactly_what_was_asked_for(tmp_path, criterion, schedule):
    """In eight steps, which is fewer than a gradual schedule's renewals."""
    training = Training(epochs=2, batch_size=50, learning_rate=0.01)
    model, details = pruned_with(
        tmp_path, small(), amount=0.83, scope="global", criterion=criterion, training=training, **schedule
    )
    zeros = {name: int((models.weights_of(model)[name] == 0).sum()) for name in SIZES}
    assert sum(zeros.values()) == round(0.83 * sum(SIZES.values()))
    assert details["sparsity"] == sum(zeros.values()) / sum(SIZES.values())
    assert details["weights"][0]["sparsity"] == zeros["w1"] / SIZES["w1"]
    assert details["weights"][0]["sparsity_before"] == 0
    assert details["training"]["stopped"] == "finished"
    assert np.count_nonzero(models.weights_of(model)["b1"]) == 16


def test_the_sparsity_of_each_layer_and_each_output(tmp_path):
    training = Training(epochs=2, batch_size=50, learning_rate=0.01)
    shared = {"amount": 0.7, "schedule": "gradual", "training": training}
    by_layer, _ = pruned_with(tmp_path, small(), scope="layer", **shared)
    by_output, _ = pruned_with(tmp_path, small(), scope="output", **shared)
    for name, size in SIZES.items():
        assert (models.weights_of(by_layer)[name] == 0).sum() == round(0.7 * size)
        rows = models.weights_of(by_output)[name]  # (inputs, outputs)
        assert ((rows == 0).sum(0) == round(0.7 * len(rows))).all()


def test_n_of_m_and_threshold_and_blocks(tmp_path):
    training = Training(epochs=2, batch_size=50, learning_rate=0.01)
    by_pattern, _ = pruned_with(tmp_path, small(), pattern="2:4", training=training, schedule="gradual")
    for name in SIZES:
        rows = models.weights_of(by_pattern)[name].T.reshape(-1, 4)
        assert ((rows == 0).sum(1) == 2).all()
    by_threshold, _ = pruned_with(tmp_path, small(), threshold=0.1, training=training, schedule="iterative", end=0.9)
    before, after = models.weights_of(small())["w1"], models.weights_of(by_threshold)["w1"]
    assert 0.3 < (after == 0).mean() < 0.9
    assert (after[np.abs(before) < 0.02] == 0).all()
    by_block, _ = pruned_with(
        tmp_path, small(), amount=0.6, block=(2, 8), scope="global", training=training, schedule="gradual"
    )
    gone = [models.weights_of(by_block)[name] == 0 for name in SIZES]
    tiles = np.concatenate([one.reshape(-1, 8, one.shape[1] // 2, 2).sum((1, 3)).ravel() for one in gone])
    assert set(tiles.tolist()) == {0, 16}
    assert (tiles == 16).sum() == round(0.6 * len(tiles))


def test_what_a_pattern_does_not_divide_is_left_and_said(tmp_path):
    model, details = pruned_with(tmp_path, models.mlp(hidden=18), pattern="2:4", training=STILL)
    assert (models.weights_of(model)["w2"] != 0).all()
    assert "18 entries" in details["weights"][1]["skipped"]
    assert (models.weights_of(model)["w1"] == 0).mean() == 0.5


@pytest.mark.parametrize("amount", [0.3, 0.5, 0.77])
def test_blocks_go_as_wholes_whatever_the_amount(context, amount):
    """36 weights in 9 blocks of 4: half of them are no whole number of blocks."""
    weight = np.arange(1, 37, dtype=np.float32).reshape(12, 3)
    nodes = [helper.make_node("Gemm", ["x", "w"], ["y"], "gemm", transB=1)]
    model = models.make_model(nodes, [models.value("x", ["n", 3])], [models.value("y", ["n", 12])], {"w": weight})
    pruned, _ = prune(model, Prune(amount=amount, block=(4, 1)), context)
    gone = models.weights_of(pruned)["w"] == 0
    tiles = gone.reshape(3, 4, 3).sum(1)
    order = np.abs(weight).reshape(3, 4, 3).mean(1).ravel().argsort()
    expected = np.zeros(9, int)
    expected[order[: round(amount * 9)]] = 4
    np.testing.assert_array_equal(tiles.ravel(), expected)


def recurrent():
    """One layer of every kind that the importer lays out in its own way."""
    rng = np.random.default_rng(0)
    weights = {
        "conv": models.weight(rng, 4, 1, 3, 3),
        "up": models.weight(rng, 4, 2, 2, 2),
        "mat": models.weight(rng, 72, 5),
        "gemm": models.weight(rng, 3, 5),
        "w": models.weight(rng, 2, 8, 3),
        "r": models.weight(rng, 2, 8, 2),
        "axes": np.array([0], np.int64),
        "first": np.array([0], np.int64),
    }
    nodes = [
        helper.make_node("Conv", ["x", "conv"], ["c"], "conv_node"),
        helper.make_node("ConvTranspose", ["c", "up"], ["u"], "up_node", strides=[2, 2]),
        helper.make_node("Flatten", ["u"], ["f"], "flatten"),
        helper.make_node("MatMul", ["f", "mat"], ["m"], "mat_node"),
        helper.make_node("Gemm", ["m", "gemm"], ["g"], "gemm_node", transB=1),
        helper.make_node("Unsqueeze", ["g", "axes"], ["s"], "unsqueeze"),
        helper.make_node("LSTM", ["s", "w", "r"], ["", "h"], "lstm", hidden_size=2, direction="bidirectional"),
        helper.make_node("Transpose", ["h"], ["t"], "transpose", perm=[1, 0, 2]),
        helper.make_node("Flatten", ["t"], ["y"], "flatten_2"),
    ]
    return models.make_model(nodes, [models.value("x", ["n", 1, 5, 5])], [models.value("y", ["n", 4])], weights)


def pictures(count=60):
    rng = np.random.default_rng(3)
    return {
        "x": rng.standard_normal((count, 1, 5, 5)).astype(np.float32),
        "targets": rng.standard_normal((count, 4)).astype(np.float32),
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"amount": 0.5, "scope": "global"},
        {"amount": 0.4, "scope": "output"},
        {"pattern": "1:2"},
        {"threshold": 0.3},
        {"amount": 0.5, "block": (2, 1)},
    ],
)
def test_without_movement_training_prunes_what_pruning_alone_does(tmp_path, context, fields):
    model = recurrent()
    expected, details = prune(model, Prune(**fields), context)
    found, trained = pruned_with(tmp_path, model, pictures(), training=STILL, **fields)
    for name, values in models.weights_of(expected).items():
        np.testing.assert_array_equal(models.weights_of(found)[name], values)
    assert trained["weights"] == details["weights"]


def linear(weight):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "matmul")]
    inputs, outputs = [models.value("x", ["n", weight.shape[0]])], [models.value("y", ["n", weight.shape[1]])]
    return models.make_model(nodes, inputs, outputs, {"w": weight})


def masking(model, **fields):
    trainee = Trainee(model)
    weights = trainee.weights()
    return trainee, weights, Masking(weights, Prune(training={}, **fields), {})


@pytest.mark.parametrize("criterion", ["taylor", "movement"])
def test_scores_are_those_of_the_papers(criterion):
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((5, 4)).astype(np.float32)
    trainee, (one,), hooks = masking(linear(weight), amount=0.4, criterion=criterion)
    (parameter,) = one.parameters
    score = None
    for _ in range(5):
        gradient = rng.standard_normal((5, 4)).astype(np.float32)
        parameter.grad = one.split(torch.from_numpy(gradient))[0]
        hooks.after_backward()
        if criterion == "movement":
            score = -weight * gradient if score is None else score - weight * gradient
        else:
            squared = (weight * gradient) ** 2
            score = squared if score is None else 0.95 * score + 0.05 * squared
    hooks.before_step(0.5)
    expected = weight.copy()
    expected.reshape(-1)[np.argsort(score, axis=None)[:8]] = 0
    np.testing.assert_array_equal(models.weights_of(trainee.written_back())["w"], expected)


@pytest.mark.parametrize("criterion", ["taylor", "movement"])
def test_scores_come_from_the_gradients_of_the_loss(tmp_path, criterion):
    """All samples in one step: the gradient of the mean squared error by hand."""
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((6, 3)).astype(np.float32)
    arrays = {name: rng.standard_normal((40, size)).astype(np.float32) for name, size in (("x", 6), ("targets", 3))}
    training = Training(epochs=3, batch_size=40, learning_rate=1e-30, validation_share=0)
    found, _ = pruned_with(
        tmp_path, linear(weight), arrays, amount=0.5, scope="global", criterion=criterion, training=training
    )
    gradient = 2 * arrays["x"].T @ (arrays["x"] @ weight - arrays["targets"]) / (40 * 3)
    score = -weight * gradient if criterion == "movement" else (weight * gradient) ** 2
    expected = weight.copy()
    expected.reshape(-1)[np.argsort(score, axis=None)[:9]] = 0
    np.testing.assert_array_equal(models.weights_of(found)["w"], expected)


def test_what_is_gone_stays_gone_and_positive():
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((8, 8)).astype(np.float32)
    weight[0] = 0  # an earlier step's
    fields = {"amount": 0.5, "schedule": "gradual", "begin": 0.2, "end": 1.0}
    trainee, (one,), hooks = masking(linear(weight), **fields)
    (parameter,) = one.parameters
    gone = 0
    for step in range(20):
        hooks.before_step(step / 20)
        with torch.no_grad():
            parameter -= torch.from_numpy(rng.standard_normal((8, 8)).astype(np.float32)) * 0.3
        hooks.after_step()
        values = models.weights_of(trainee.written_back())["w"]
        zeros = values == 0
        assert zeros[0].all()
        assert not np.signbit(values[zeros]).any()
        assert np.all(zeros | ~(gone == 1))
        gone = zeros.astype(int)
        assert zeros.sum() == max(8, round(0.5 * share_due(Prune(training={}, **fields), step / 20) * 64))
    assert not hooks.is_settled(0.99)
    hooks.before_step(1.0)
    assert hooks.is_settled(1.0)
    assert (models.weights_of(trainee.written_back())["w"] == 0).sum() == 32


def several_layers():
    rng = np.random.default_rng(4)
    weights = {
        "plain": models.weight(rng, 6, 4, 3, 3),
        "grouped": models.weight(rng, 4, 3, 3, 3),
        "gemm": models.weight(rng, 7, 16),
        "mat": models.weight(rng, 7, 3),
    }
    nodes = [
        helper.make_node("Conv", ["x", "plain"], ["a"], "conv_1"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "grouped"], ["c"], "conv_2", group=2),
        helper.make_node("Flatten", ["c"], ["d"], "flatten"),
        helper.make_node("Gemm", ["d", "gemm"], ["e"], "gemm_1", transB=1),
        helper.make_node("MatMul", ["e", "mat"], ["y"], "mat_1"),
    ]
    return models.make_model(nodes, [models.value("x", ["n", 4, 6, 6])], [models.value("y", ["n", 3])], weights)


def calibration_of(tmp_path, model, arrays):
    np.savez(tmp_path / "calibration.npz", **arrays)
    return ModelFeed(open_dataset(DataSource(tmp_path / "calibration.npz")), summarize(model, 0, 0), "calibration")


def test_wanda_multiplies_by_the_norms_of_the_inputs(tmp_path, context):
    model = several_layers()
    weights = models.weights_of(model)
    tensors = {name: torch.tensor(values) for name, values in weights.items()}
    # Channels of very different strength, or the norms would not matter.
    x = np.random.default_rng(5).standard_normal((50, 4, 6, 6)).astype(np.float32)
    x *= np.array([0.1, 1, 3, 10], np.float32)[:, None, None]
    b = functional.conv2d(torch.tensor(x), tensors["plain"]).relu()
    d = functional.conv2d(b, tensors["grouped"], groups=2).flatten(1)
    e = d @ tensors["gemm"].T
    squares = {
        "plain": (x**2).mean((0, 2, 3))[None, :, None, None],
        # Two outputs for each of the two groups of three inputs.
        "grouped": (b.numpy() ** 2).mean((0, 2, 3)).reshape(2, 3)[[0, 0, 1, 1], :, None, None],
        "gemm": (d.numpy() ** 2).mean(0)[None],
        "mat": (e.numpy() ** 2).mean(0)[:, None],
    }
    outputs = {"plain": 0, "grouped": 0, "gemm": 0, "mat": 1}
    spec = Prune(amount=0.5, scope="output", criterion="wanda")
    pruned, _ = prune(model, spec, context, calibration_of(tmp_path, model, {"x": x}))
    trained, _ = prune_in_training(
        model,
        spec.model_copy(update={"training": STILL}),
        context,
        material(tmp_path / "data", model, {"x": x, "labels": np.arange(50) % 3}),
        calibration_of(tmp_path, model, {"x": x}),
    )
    changed = 0
    for name, axis in outputs.items():
        plain = np.moveaxis(np.abs(weights[name]), axis, 0)
        driven = np.moveaxis(np.abs(weights[name]) * np.sqrt(squares[name]), axis, 0)
        expected = lower_half(driven)
        for found in (pruned, trained):
            zeros = np.moveaxis(models.weights_of(found)[name] == 0, axis, 0)
            np.testing.assert_array_equal(zeros, expected)
        changed += (expected != lower_half(plain)).sum()
    assert changed > 50


def lower_half(outputs):
    """True for the lower half of what stands in each row."""
    rows = outputs.reshape(len(outputs), -1)
    mask = np.zeros(rows.shape, bool)
    np.put_along_axis(mask, rows.argsort(1)[:, : round(rows.shape[1] / 2)], values=True, axis=1)
    return mask.reshape(outputs.shape)


def test_gradual_pruning_beats_pruning_at_once(tmp_path, context):
    """At a sparsity of 95 %; the margin is wide on purpose."""
    arrays = flat_digits(1200)
    data = material(tmp_path / "data", small(), arrays)
    model, _ = finetune(small(), Finetune(training=Training(epochs=15, learning_rate=0.01)), context, data)
    training = Training(epochs=15, learning_rate=0.01)
    gradual = Prune(amount=0.95, scope="global", schedule="gradual", training=training)
    taught, _ = prune_in_training(model, gradual, context, data)
    at_once, _ = prune(model, Prune(amount=0.95, scope="global"), context)
    test = {name: values[1200:] for name, values in flat_digits(1797).items()}
    assert accuracy(model, test) > 0.85
    assert accuracy(taught, test) > accuracy(at_once, test) + 0.15
    for one in (taught, at_once):
        assert sum((models.weights_of(one)[name] == 0).sum() for name in SIZES) == round(0.95 * 1184)


def test_the_seed_decides_the_bytes(tmp_path):
    fields = {"amount": 0.8, "schedule": "gradual", "training": Training(epochs=2, batch_size=50, learning_rate=0.01)}
    first, again, other = (
        pruned_with(tmp_path, small(), seed=seed, **fields)[0].SerializeToString() for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    "fields",
    [
        {"criterion": "taylor", "begin": 0.7},
        {"criterion": "movement", "schedule": "gradual", "end": 0.9},
        {"pattern": "3:7", "criterion": "taylor", "begin": 0.7},
        {"criterion": "magnitude", "schedule": "iterative", "end": 0.9},
    ],
)
def test_a_resumed_pruning_ends_where_an_uninterrupted_one_does(tmp_path, monkeypatch, fields):
    """Stopped before the first weights go, with scores measured; a pattern that fits no layer has no masks at all."""
    monkeypatch.setattr(checkpoint, "_SECONDS_BETWEEN", 0.0)
    training = Training(epochs=4, batch_size=50, learning_rate=0.01)
    spec = Prune(**({"amount": 0.8} if "pattern" not in fields else {}), training=training, **fields)
    data = material(tmp_path / "data", small(), flat_digits(), key="c" * 64)
    whole, details = prune_in_training(small(), spec, Context(workdir=tmp_path), data)
    (tmp_path / "cache").mkdir()
    cache = MemoryCache(tmp_path / "cache")
    stopping = Context(workdir=tmp_path, step_cache=cache, is_cancelled=lambda: bool(cache.kept))
    with pytest.raises(Cancelled):
        prune_in_training(small(), spec, stopping, data)
    resumed, resumed_details = prune_in_training(small(), spec, Context(workdir=tmp_path, step_cache=cache), data)
    assert resumed.SerializeToString() == whole.SerializeToString()
    assert resumed_details == details


def test_a_model_of_half_precision_stays_one(tmp_path):
    model = models.mlp(hidden=16, dtype=np.float16)
    arrays = flat_digits() | {"x": flat_digits()["x"].astype(np.float16)}
    training = Training(epochs=2, batch_size=50, learning_rate=1e-3, optimizer="sgd")
    pruned, _ = pruned_with(tmp_path, model, arrays, amount=0.5, training=training)
    weight = models.weights_of(pruned)["w1"]
    assert weight.dtype == np.float16
    assert (weight == 0).mean() == 0.5
    onnx.checker.check_model(pruned)


def test_doctests():
    assert doctest.testmod(in_training).failed == 0
