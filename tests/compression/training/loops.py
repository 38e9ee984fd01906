"""What tests of the training loop share: small data, small networks, a cache in memory."""

from __future__ import annotations

import shutil

import numpy as np
import onnxruntime
import torch
from torch import nn

from compression.context import Context
from compression.data import DataSource, open_dataset
from compression.data.feed import ModelFeed
from compression.graph.inspect import summarize
from compression.training.dataset import TrainingSet
from compression.training.loop import Lesson, train
from compression.training.objectives import Supervised
from compression.training.spec import Training
from compression.training.step import TrainingMaterial
from tests.compression import models


class MemoryCache:
    """A step cache whose entries replace each other."""

    def __init__(self, folder):
        self._folder = folder
        self.kept = {}

    def get(self, key):
        return self.kept.get(key)

    def put(self, key, folder):
        self.kept[key] = self._folder / f"{key}-{len(list(self._folder.glob('*')))}"
        shutil.copytree(folder, self.kept[key])


def blobs(count=96, *, features=6, classes=3, seed=0):
    """Classes that a small network can tell apart, with some overlap."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centres = rng.standard_normal((classes, features)) * 1.5
    inputs = (centres[labels] + rng.standard_normal((count, features))).astype(np.float32)
    return TrainingSet((inputs,), labels.astype(np.int64))


def network(seed=0, *, norm=False, dropout=0.0):
    torch.manual_seed(seed)
    middle = [nn.BatchNorm1d(8)] if norm else []
    noise = [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(nn.Linear(6, 8), *middle, nn.ReLU(), *noise, nn.Linear(8, 3)).eval()


def values(module):
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def taught(module, tmp_path, spec=None, *, seed=0, samples=None, context=None, **lesson):
    """Train, and give the report."""
    spec = spec or Training()
    samples = samples or blobs()
    lesson = Lesson(samples, lesson.pop("objective", Supervised(spec, normalized=False)), **lesson)
    return train(module, lesson, spec, context or Context(workdir=tmp_path), seed)


def material(folder, model, arrays, *, seed=0, key=None):
    """Training data and the original, as a run gives them to a step."""
    folder.mkdir(exist_ok=True)
    np.savez(folder / "training.npz", **arrays)
    feed = ModelFeed(open_dataset(DataSource(folder / "training.npz")), summarize(model, 0, 0), "training")
    return TrainingMaterial(feed, lambda: model, seed, key)


def flat_digits(count=240):
    """The first of scikit-learn's digits as vectors, for `models.mlp`."""
    pictures, labels = models.digits()
    return {"x": pictures[:count].reshape(count, 64), "labels": labels[:count]}


def accuracy(model, arrays):
    """Share of right classes, by ONNX Runtime."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {session.get_inputs()[0].name: arrays["x"]})
    return float((scores.argmax(1) == arrays["labels"]).mean())
