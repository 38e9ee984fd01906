"""Samples by index: what is read, in which order, and how they are split into batches."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import safetensors.numpy
import torch
from onnx import helper

from compression.context import Context
from compression.data import DataSource, open_dataset
from compression.data.feed import ModelFeed
from compression.errors import Cancelled, DataRejected
from compression.graph.inspect import summarize
from compression.training.dataset import Split, TrainingSet, in_order, shuffled
from tests.compression import models

KINDS = pytest.mark.parametrize("kind", ["npz", "safetensors"])


def save(path, kind, arrays):
    if kind == "npz":
        np.savez(path / "data.npz", **arrays)
    else:
        safetensors.numpy.save_file(arrays, path / "data.safetensors")
    return DataSource(path / f"data.{kind}")


def feed(path, model, arrays, kind="npz"):
    return ModelFeed(open_dataset(save(path, kind, arrays)), summarize(model, 0, 0), "training")


def identity(*shape, dtype=onnx.TensorProto.FLOAT):
    nodes = [helper.make_node("Identity", ["x"], ["y"], "same")]
    return models.make_model(nodes, [models.value("x", shape, dtype)], [models.value("y", shape, dtype)], {})


def read(path, model, arrays, *, limit=None, kind="npz", names=("x",), **options):
    return TrainingSet.read(feed(path, model, arrays, kind), names, Context(workdir=path), limit, **options)


@KINDS
def test_samples_come_as_they_lie_in_the_file(tmp_path, kind):
    x = np.arange(700 * 2, dtype=np.float32).reshape(700, 2)
    samples = read(tmp_path, identity("n", 2), {"x": x, "labels": np.arange(700) % 2}, kind=kind)
    assert len(samples) == 700
    wanted = np.array([699, 0, 255, 256, 0])
    batch = samples.batch(wanted)
    assert len(batch) == 5
    np.testing.assert_array_equal(batch.inputs[0].numpy(), x[wanted])
    assert (batch.target.tolist(), batch.target.dtype, batch.teacher) == ([1, 0, 1, 0, 0], torch.int64, None)


def test_several_inputs_are_in_the_models_order(tmp_path):
    a, b = np.ones((5, 4), np.float32), np.full((5, 6), 2, np.float32)
    samples = read(tmp_path, models.two_inputs(), {"b": b, "a": a}, names=("a", "b"))
    assert not samples.has_target
    first, second = samples.batch(np.array([1, 2])).inputs
    assert (first.shape, second.shape) == ((2, 4), (2, 6))
    assert samples.batch(np.array([0])).target is None


def test_a_limit_takes_samples_evenly(tmp_path):
    x = np.arange(10, dtype=np.float32)[:, None]
    samples = read(tmp_path, identity("n", 1), {"x": x}, limit=4)
    assert samples.batch(np.arange(len(samples))).inputs[0].flatten().tolist() == [0, 2, 5, 7]


@pytest.mark.parametrize(("limit", "expected"), [(None, 8), (2, 4), (5, 4), (8, 8), (100, 8)])
def test_a_model_of_four_at_a_time_gets_whole_batches(tmp_path, limit, expected):
    x = np.arange(10, dtype=np.float32)[:, None]
    samples = read(tmp_path, identity(4, 1), {"x": x}, limit=limit)
    assert len(samples) == expected
    found = samples.batch(np.arange(expected)).inputs[0].flatten()
    assert len(set(found.tolist())) == expected


@KINDS
@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (np.array([[0.5], [1.5], [-2.0]], np.float64), torch.tensor([[0.5], [1.5], [-2.0]])),
        (np.array([0.5, 1.5, -2.0], np.float16), torch.tensor([0.5, 1.5, -2.0])),
        (np.array([[3, -100], [1, 2], [0, 0]], np.int32), torch.tensor([[3, -100], [1, 2], [0, 0]])),
    ],
)
def test_targets_are_floats_or_tokens(tmp_path, kind, targets, expected):
    samples = read(tmp_path, identity("n", 1), {"x": np.zeros((3, 1), np.float32), "targets": targets}, kind=kind)
    target = samples.batch(np.arange(3)).target
    assert target.dtype == expected.dtype
    assert torch.equal(target, expected)


def test_labels_go_before_targets_unless_numbers_are_learned(tmp_path):
    arrays = {
        "x": np.zeros((3, 1), np.float32),
        "labels": np.array([0, 1, 1]),
        "targets": np.array([0.5, 1.5, 2.5], np.float32),
    }
    assert read(tmp_path, identity("n", 1), arrays).batch(np.arange(3)).target.tolist() == [0, 1, 1]
    preferred = read(tmp_path, identity("n", 1), arrays, prefer_targets=True)
    assert preferred.batch(np.arange(3)).target.tolist() == [0.5, 1.5, 2.5]
    del arrays["targets"]
    only = read(tmp_path, identity("n", 1), arrays, prefer_targets=True)
    assert only.batch(np.arange(3)).target.tolist() == [0, 1, 1]


@KINDS
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_targets_that_are_no_numbers_are_refused(tmp_path, kind, value):
    targets = np.zeros((3, 2), np.float32)
    targets[2, 1] = value
    with pytest.raises(DataRejected, match=r"'targets' holds (nan|inf) at index \[2, 1\]") as caught:
        read(tmp_path, identity("n", 1), {"x": np.zeros((3, 1), np.float32), "targets": targets}, kind=kind)
    assert caught.value.code == "non_finite_values"


def test_targets_of_another_length_are_refused(tmp_path):
    arrays = {"x": np.zeros((3, 1), np.float32), "targets": np.zeros((4, 1), np.float32)}
    with pytest.raises(DataRejected) as caught:
        open_dataset(save(tmp_path, "npz", arrays))
    assert caught.value.code == "lengths_differ"


def test_an_input_without_an_array(tmp_path):
    with pytest.raises(DataRejected, match="'mask'") as caught:
        read(tmp_path, identity("n", 1), {"x": np.zeros((3, 1), np.float32)}, names=("x", "mask"))
    assert caught.value.code == "dataset_mismatch"


def test_reading_can_be_cancelled(tmp_path):
    source = feed(tmp_path, identity("n", 1), {"x": np.zeros((3, 1), np.float32)})
    with pytest.raises(Cancelled):
        TrainingSet.read(source, ("x",), Context(workdir=tmp_path, is_cancelled=lambda: True), None)


def test_a_set_that_is_read_later_leaves_an_earlier_one_alone(tmp_path):
    """Steps of one run share its folder."""
    first = read(tmp_path, identity("n", 1), {"x": np.ones((3, 1), np.float32)})
    second = read(tmp_path, identity("n", 1), {"x": np.zeros((2, 1), np.float32)})
    assert first.batch(np.arange(3)).inputs[0].sum() == 3
    assert second.batch(np.arange(2)).inputs[0].sum() == 0


@pytest.mark.parametrize(
    ("samples", "share", "batch", "training", "validation"),
    [
        (100, 0.1, 1, 90, 10),
        (5, 0.1, 1, 4, 1),
        (2, 0.5, 1, 1, 1),
        (1, 0.0, 1, 1, 0),
        (64, 0.1, 8, 56, 8),
        (16, 0.01, 8, 8, 8),
        (8, 0.0, 8, 8, 0),
    ],
)
def test_a_split_covers_all_samples_once(samples, share, batch, training, validation):
    split = Split.of(samples, share, np.random.default_rng(0), batch)
    assert (len(split.training), len(split.validation)) == (training, validation)
    assert sorted([*split.training, *split.validation]) == list(range(samples))
    again = Split.of(samples, share, np.random.default_rng(0), batch)
    np.testing.assert_array_equal(again.validation, split.validation)


def test_a_split_is_random_over_the_file():
    """Files are often sorted by class."""
    split = Split.of(1000, 0.2, np.random.default_rng(0))
    thirds = np.histogram(split.validation, bins=[0, 333, 666, 1000])[0]
    assert thirds.min() > 40


@pytest.mark.parametrize(
    ("samples", "share", "batch", "cure"), [(1, 0.1, 1, True), (8, 0.1, 8, True), (4, 0.1, 8, False), (4, 0, 8, False)]
)
def test_too_few_samples(samples, share, batch, cure):
    with pytest.raises(DataRejected) as caught:
        Split.of(samples, share, np.random.default_rng(0), batch)
    assert caught.value.code == "dataset_too_small"
    assert f"{samples} sample(s)" in caught.value.message
    assert ("or validation_share 0" in caught.value.message) is cure


def test_batches_in_random_order():
    indices = np.array([3, 5, 7, 11, 13])
    batches = list(shuffled(indices, 2, np.random.default_rng(1)))
    assert [len(batch) for batch in batches] == [2, 2]
    assert set(np.concatenate(batches)) < set(indices)
    expected = np.random.default_rng(1).permutation(indices)
    np.testing.assert_array_equal(np.concatenate(batches), expected[:4])


def test_batches_in_order():
    assert [batch.tolist() for batch in in_order(np.array([3, 5, 7]), 2)] == [[3, 5], [7]]
