"""Small networks and runs that these tests share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper
from sklearn.model_selection import train_test_split

from compression.context import Context
from compression.data import DataSource, open_dataset
from compression.data.feed import ModelFeed
from compression.graph.inspect import summarize
from compression.quantization.aware.step import quantize_aware
from compression.quantization.spec import QuantizeAware
from compression.training.spec import Training
from compression.training.step import TrainingMaterial
from tests.compression.models import digits, make_model, value, weight
from tests.compression.quantizing import digits_model


def residual(seed=0):
    """Conv, batch norm, ReLU6, a block with a sum, pooling, Flatten, Gemm; input `x` (n, 1, 8, 8), output `logits`."""
    rng = np.random.default_rng(seed)
    weights = {
        "stem.weight": weight(rng, 8, 1, 3, 3),
        "stem.norm.scale": rng.uniform(0.5, 1.5, 8).astype(np.float32),
        "stem.norm.shift": rng.normal(size=8).astype(np.float32) / 4,
        "stem.norm.mean": rng.normal(size=8).astype(np.float32) / 4,
        "stem.norm.variance": rng.uniform(0.5, 1.5, 8).astype(np.float32),
        "zero": np.array(0, np.float32),
        "six": np.array(6, np.float32),
        "block.weight": weight(rng, 8, 8, 3, 3),
        "block.bias": weight(rng, 8),
        "deep.weight": weight(rng, 8, 1, 3, 3),
        "fc.weight": weight(rng, 10, 128),
        "fc.bias": weight(rng, 10),
    }
    norm = [f"stem.norm.{part}" for part in ("scale", "shift", "mean", "variance")]
    same = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "stem.weight"], ["stem"], "stem", **same),
        helper.make_node("BatchNormalization", ["stem", *norm], ["normed"], "norm"),
        helper.make_node("Clip", ["normed", "zero", "six"], ["stemmed"], "relu6"),
        helper.make_node("Conv", ["stemmed", "block.weight", "block.bias"], ["block"], "block", **same),
        helper.make_node("Add", ["stemmed", "block"], ["sum"], "add"),
        helper.make_node("Relu", ["sum"], ["rectified"], "relu"),
        helper.make_node("Conv", ["rectified", "deep.weight"], ["deep"], "deep", group=8, **same),
        helper.make_node("MaxPool", ["deep"], ["pooled"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", "fc.weight", "fc.bias"], ["logits"], "fc", transB=1),
    ]
    return make_model(nodes, [value("x", ["n", 1, 8, 8])], [value("logits", ["n", 10])], weights)


def uneven_digits(seed=0):
    """The network of examples/digits with channels of very different ranges; it computes what it did before.

    A ReLU lets a factor of a channel pass: what one layer's output channel is multiplied by, the next one's input
    channel is divided by. Few bits for a whole tensor then lose the small channels (Nagel et al. 2019, section 3.1).
    """
    model = digits_model()
    rng = np.random.default_rng(seed)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    layers = [node for node in model.graph.node if node.op_type == "Conv"]

    def multiply(name, factors):
        values = onnx.numpy_helper.to_array(stored[name]) * factors
        stored[name].CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), name))

    for first, second in ((layers[0], layers[1]), (layers[2], layers[3])):
        factors = 2.0 ** rng.uniform(-3, 3, stored[first.input[1]].dims[0])
        multiply(first.input[1], factors[:, None, None, None])
        multiply(first.input[2], factors)
        multiply(second.input[1], 1 / factors[None, :, None, None])
    return model


def split_digits():
    """Training and held-out pictures, training and held-out labels; the split of examples/digits."""
    images, labels = digits()
    return train_test_split(images, labels, test_size=0.25, random_state=0, stratify=labels)


def feed_of(model, folder, **arrays):
    path = Path(folder) / "training.npz"
    np.savez(path, **arrays)
    return ModelFeed(open_dataset(DataSource(path)), summarize(model, 0, 0), "training")


def train(model, spec, folder, **arrays):
    """The result of the step, checked by ONNX's checker too, and the details."""
    workdir = Path(folder) / "work"
    workdir.mkdir(exist_ok=True)
    material = TrainingMaterial(feed_of(model, folder, **arrays), lambda: model, seed=0)
    result, details = quantize_aware(model, spec, Context(workdir=workdir, threads=1), material)
    onnx.checker.check_model(result, full_check=True)
    return result, details


def quick(**settings):
    """A spec whose training is over in a moment."""
    training = settings.pop("training", {})
    return QuantizeAware(training=Training(**{"epochs": 1, "validation_share": 0.0, **training}), **settings)


def random_pictures(samples=24, seed=5):
    rng = np.random.default_rng(seed)
    return {"x": rng.normal(size=(samples, 1, 8, 8)).astype(np.float32), "labels": np.arange(samples) % 10}
