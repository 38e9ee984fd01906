"""Importance by the loss, against gates that torch differentiates itself."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from torch.nn import functional

from compression.context import Context
from compression.data import DataSource
from compression.errors import Cancelled, DataRejected
from compression.graph.weights import find_weights
from compression.pipeline import run
from compression.pruning.channel_spec import PruneChannels
from compression.pruning.channels.engine import analyse
from compression.pruning.channels.groups import plan
from compression.pruning.channels.importance import Scorer
from compression.pruning.channels.sensitivity import gates
from compression.pruning.channels.sharing import told_apart
from compression.pruning.channels.step import RULES, prune_channels
from compression.spec import BenchmarkSpec, PipelineSpec
from compression.training.dataset import shuffled
from tests.compression import models
from tests.compression.channel_pruning.networks import export
from tests.compression.training.loops import material

TAYLOR = PruneChannels(amount=0.5, importance="taylor")


def arrays_for(model, samples=64, classes=10, seed=0):
    rng = np.random.default_rng(seed)
    value = model.graph.input[0]
    shape = [axis.dim_value for axis in value.type.tensor_type.shape.dim[1:]]
    x = rng.standard_normal((samples, *shape)).astype(np.float32)
    return {value.name: x, "labels": rng.integers(0, classes, samples)}


def scores(model, tmp_path, arrays, spec=TAYLOR):
    """By the name of a group's first layer, the scores of its units in the order of that layer's channels."""
    measured = gates(model, spec, Context(tmp_path), material(tmp_path / "data", model, arrays))
    apart, _ = told_apart(model)
    engine = analyse(apart, RULES)
    layout = plan(engine, {weight.name: True for weight in find_weights(model)})
    scorer = Scorer(engine, "taylor", 0, measured)
    return {group.producers[0].weight: (group, scorer.scores(group)) for group in layout.groups}


def batches(arrays, size=32):
    """As the step forms them."""
    *inputs, labels = arrays.values()
    for indices in shuffled(np.arange(len(labels)), size, np.random.default_rng(0)):
        yield torch.from_numpy(inputs[0][indices]), torch.from_numpy(labels[indices])


def by_autograd(forward, arrays, *shapes):
    """Mean squares of the loss's derivatives by gates of 1 that `forward(x, *gates)` multiplies by."""
    found = []
    for x, labels in batches(arrays):
        ones = [torch.ones(shape, requires_grad=True) for shape in shapes]
        functional.cross_entropy(forward(x, *ones), labels).backward()
        found.append([gate.grad.double().flatten().numpy() for gate in ones])
    return [np.mean(np.square(gate), axis=0) for gate in zip(*found, strict=True)]


def test_convolutions_and_a_matrix(tmp_path):
    model = models.cnn()
    weights = {name: torch.from_numpy(value.copy()) for name, value in models.weights_of(model).items()}

    def forward(x, first, second):
        x = functional.conv2d(x, weights["conv1.weight"], weights["conv1.bias"], padding=1).relu() * first
        x = functional.conv2d(x, weights["conv2.weight"], weights["conv2.bias"], padding=1).relu() * second
        return functional.linear(functional.max_pool2d(x, 2).flatten(1), weights["fc.weight"], weights["fc.bias"])

    arrays = arrays_for(model)
    found = scores(model, tmp_path, arrays)
    expected = by_autograd(forward, arrays, (8, 1, 1), (16, 1, 1))
    np.testing.assert_allclose(found["conv1.weight"][1], expected[0], rtol=1e-3)
    np.testing.assert_allclose(found["conv2.weight"][1], expected[1], rtol=1e-3)


class Gated(nn.Module):
    """A residual stream with two readers, and attention whose heads are units; gates multiply the two."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 12, 4, 4)
        self.norm = nn.BatchNorm2d(12)
        self.left, self.right = nn.Conv2d(12, 8, 1), nn.Conv2d(12, 8, 3, padding=1)
        self.qkv, self.out, self.head = nn.Linear(8, 48), nn.Linear(16, 8), nn.Linear(8, 10)

    def forward(self, x, stream=None, heads=None):
        x = self.norm(self.stem(x)).relu()
        x = x if stream is None else x * stream
        x = (self.left(x) + self.right(x)).relu().flatten(2).transpose(1, 2)
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, 4, 4).permute(2, 0, 3, 1, 4)
        read = (q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v
        read = read if heads is None else read * heads
        x = x + self.out(read.transpose(1, 2).reshape(batch, tokens, 16))
        return self.head(x.mean(1))


def test_all_readers_of_a_stream_together_and_whole_heads(tmp_path):
    module = Gated()
    model = export(module, 3, 16, 16)
    arrays = arrays_for(model)
    found = scores(model, tmp_path, arrays)
    stream, heads = by_autograd(module, arrays, (12, 1, 1), (4, 1, 1))
    by_size = {(group.width, len(group.units)): values for group, values in found.values()}
    np.testing.assert_allclose(by_size[1, 12], stream, rtol=1e-3, atol=1e-9)
    wide = next(values for (_, count), values in by_size.items() if count == 4)
    width = next(size for size, count in by_size if count == 4)
    np.testing.assert_allclose(wide * width, heads, rtol=1e-3, atol=1e-9)


def test_channels_that_nothing_listens_to_go_first_whatever_their_size(tmp_path):
    model = models.cnn()
    silent = np.array([2, 3, 5, 6, 9, 10, 14, 15])
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor).copy()
        if tensor.name == "conv2.weight":
            value[silent] *= 100
        elif tensor.name == "conv2.bias":  # all of them fire now and then
            value = np.linspace(1, 2, 16, dtype=np.float32)
        elif tensor.name == "fc.weight":
            value.reshape(10, 16, 16)[:, silent] = 0
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    arrays = arrays_for(model)
    measured = gates(model, TAYLOR, Context(tmp_path), material(tmp_path / "data", model, arrays))
    spec = PruneChannels(amount=0.5, importance="taylor", include=("conv2",))
    pruned, details = prune_channels(model, spec, Context(tmp_path), 0, measured)
    np.testing.assert_array_equal(
        models.weights_of(pruned)["conv2.bias"], np.delete(models.weights_of(model)["conv2.bias"], silent)
    )
    assert details["groups"][0]["channels"] == 8


def save(path, **arrays):
    np.savez(path, **arrays)
    return DataSource(path)


def test_in_a_run_with_its_data(tmp_path):
    model = models.save(models.cnn(), tmp_path / "model.onnx")
    arrays = arrays_for(models.cnn(), samples=100)
    spec = PipelineSpec(
        steps=[{"type": "prune_channels", "amount": 0.5, "importance": "taylor", "scope": "global"}],
        benchmark=BenchmarkSpec(max_seconds=0.1, min_rounds=5),
    )
    assert spec.data_needed == {"training": "prune_channels"}
    (tmp_path / "run").mkdir()
    result = run(model, spec, Context(tmp_path / "run", threads=1), {"training": save(tmp_path / "t.npz", **arrays)})
    assert result.compressed.parameters < result.model.parameters
    found = onnx.load(tmp_path / "run" / "out" / "model.onnx")
    measured = gates(models.cnn(), spec.steps[0], Context(tmp_path), material(tmp_path / "data", models.cnn(), arrays))
    alone, _ = prune_channels(models.cnn(), spec.steps[0], Context(tmp_path), 0, measured)
    for name, value in models.weights_of(alone).items():
        np.testing.assert_array_equal(models.weights_of(found)[name], value)
    with pytest.raises(DataRejected) as refusal:
        run(model, spec, Context(tmp_path / "run"))
    assert refusal.value.code == "training_data_missing"


def test_without_labels_there_is_no_loss(tmp_path):
    model = models.cnn()
    arrays = arrays_for(model)
    del arrays["labels"]
    with pytest.raises(DataRejected) as refusal:
        gates(model, TAYLOR, Context(tmp_path), material(tmp_path / "data", model, arrays))
    assert refusal.value.code == "labels_missing"


def test_cancelled_between_batches(tmp_path):
    model = models.cnn()
    data = material(tmp_path / "data", model, arrays_for(model))
    asked = []
    context = Context(tmp_path, is_cancelled=lambda: asked.append(1) or len(asked) > 2)
    with pytest.raises(Cancelled):
        gates(model, TAYLOR, context, data)
