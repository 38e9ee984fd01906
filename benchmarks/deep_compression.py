"""Deep Compression's headline on the real MNIST: how small, at which error.

Both networks of Han et al. 2015 (table 1) go through this library's own steps: `prune` (global, gradual, with the
uncompressed network as teacher) and `cluster` with tuned values, then into a `.levity` file, which holds everything
that a working ONNX model needs, the graph included; biases are rounded to half precision first. It is decoded again,
and the decoded model is the one whose error is measured, by ONNX Runtime on the 10,000 test pictures.

    ratio = float32 bytes of all parameters / bytes of that file

The paper: LeNet-300-100 40x at 1.58 % error (uncompressed 1.64 %), LeNet-5 39x at 0.74 % (0.80 %).

    python benchmarks/deep_compression.py [--networks lenet-300-100 lenet-5] [--seeds 0 1 2 3 4] [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import lenet
import mnist
import numpy as np
import onnx
import torch
from onnx import numpy_helper
from seeds import mean_interval
from torch import nn

from compression.clustering.spec import Cluster
from compression.clustering.tuning import cluster_and_tune
from compression.coding.decode import decode as decode_file
from compression.coding.encode import encode as encode_file
from compression.context import Context
from compression.data import DataSource, open_dataset
from compression.data.feed import ModelFeed
from compression.graph.inspect import summarize
from compression.pruning.in_training import prune_in_training
from compression.pruning.spec import Prune
from compression.training.spec import Augmentation, Finetune, Training
from compression.training.step import TrainingMaterial, finetune


class Point(NamedTuple):
    """Share of weights pruned, shared values in a tensor, epochs of pruning and of tuning the shared values."""

    amount: float
    clusters: int
    epochs: int
    tuning: int


# The smallest file within the paper's error, and one that costs next to nothing. Training lasts as long as five
# minutes on two cores allow.
SETTINGS = {
    "lenet-300-100": {"small": Point(0.974, 8, 40, 4), "faithful": Point(0.948, 16, 40, 4)},
    "lenet-5": {"small": Point(0.974, 8, 9, 2)},
}
BASELINE_EPOCHS = {"lenet-300-100": 20, "lenet-5": 6}


def network(name: str) -> nn.Module:
    if name == "lenet-300-100":
        return nn.Sequential(
            nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
        )
    return lenet.lenet5()


def encode(model: onnx.ModelProto) -> bytes:
    """A `.levity` file of what a working model needs; `decode` gives the same weights and a model that runs."""
    kept = onnx.ModelProto()
    kept.CopyFrom(model)
    kept.ClearField("metadata_props")
    kept.producer_name = kept.producer_version = kept.doc_string = ""
    kept.graph.ClearField("value_info")
    for node in kept.graph.node:
        node.ClearField("metadata_props")
        node.doc_string = node.name = ""
    for tensor in kept.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim == 1:  # biases need no more than half precision
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16).astype(np.float32), tensor.name))
    return encode_file(kept.SerializeToString(deterministic=True)).data


def decode(file: bytes) -> onnx.ModelProto:
    return onnx.load_from_string(decode_file(file))


class Subject:
    """One network and the data that it learns from."""

    def __init__(self, name: str, folder: Path, test: tuple[np.ndarray, np.ndarray]) -> None:
        self.name, self.folder, self.test = name, folder, test
        self.source = DataSource(folder / "training.npz")

    def material(self, original: onnx.ModelProto, seed: int) -> TrainingMaterial:
        feed = ModelFeed(open_dataset(self.source), summarize(original, 0, 0), "training")
        return TrainingMaterial(feed, lambda: original, seed)

    def baseline(self, seed: int) -> onnx.ModelProto:
        torch.manual_seed(seed)
        start = lenet.exported(network(self.name))
        augmentation = Augmentation(shift=1)
        epochs = BASELINE_EPOCHS[self.name]
        training = Training(epochs=epochs, batch_size=128, validation_share=0, augmentation=augmentation)
        trained, _ = finetune(start, Finetune(training=training), Context(self.folder), self.material(start, seed))
        return trained

    def compressed(self, original: onnx.ModelProto, point: Point, seed: int) -> onnx.ModelProto:
        context, material = Context(self.folder), self.material(original, seed)
        shared = {
            "batch_size": 128,
            "teacher": "original",
            "temperature": 4.0,
            "validation_share": 0.0,
            "augmentation": Augmentation(shift=1),
        }
        prune = Prune(
            amount=point.amount,
            scope="global",
            schedule="gradual",
            end=0.6,
            training=Training(epochs=point.epochs, learning_rate=2e-3, **shared),
        )
        sparse, _ = prune_in_training(original, prune, context, material)
        tune = Cluster(
            clusters=point.clusters,
            init="density",
            training=Training(epochs=point.tuning, learning_rate=3e-4, **shared),
        )
        return cluster_and_tune(sparse, tune, context, material)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=sorted(SETTINGS), default=sorted(SETTINGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument(
        "--keep", type=Path, help="folder for the compressed networks, which benchmarks/coding.py takes"
    )
    options = parser.parse_args()
    pictures, labels, test_pictures, test_labels = mnist.load()
    test = mnist.scaled(test_pictures), test_labels
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        np.savez(folder / "training.npz", image=mnist.scaled(pictures), labels=labels.astype(np.int64))
        print(f"{'network':14} {'point':9} {'seed':>4} {'own error':>9} {'error':>7} {'bytes':>7} {'ratio':>7} seconds")
        for name in options.networks:
            rows: dict[str, list[tuple[float, float, float]]] = {point: [] for point in SETTINGS[name]}
            for seed in options.seeds:
                subject = Subject(name, folder, test)
                original = subject.baseline(seed)
                own = lenet.error_percent(original, *test)
                size = sum(4 * math.prod(tensor.dims) for tensor in original.graph.initializer if tensor.data_type == 1)
                for point, setting in SETTINGS[name].items():
                    begun = time.perf_counter()
                    file = encode(subject.compressed(original, setting, seed))
                    if options.keep is not None:
                        options.keep.mkdir(parents=True, exist_ok=True)
                        (options.keep / f"{name}-{point}-{seed}.onnx").write_bytes(decode_file(file))
                    error = lenet.error_percent(decode(file), *test)
                    seconds = time.perf_counter() - begun
                    rows[point].append((own, error, size / len(file)))
                    print(
                        f"{name:14} {point:9} {seed:4} {own:8.2f}% {error:6.2f}% {len(file):7} "
                        f"{size / len(file):6.1f}x {seconds:5.0f}",
                        flush=True,
                    )
            for point, found in rows.items():
                own, error, ratio = (np.array(column) for column in zip(*found, strict=True))
                print(
                    f"{name:14} {point:9} mean {own.mean():8.2f}% {_interval(error)}% {_interval(ratio)}x "
                    f"above own {_interval(error - own)}"
                )


def _interval(values: np.ndarray) -> str:
    mean, low, high = mean_interval(values)
    return f"{mean:.2f}" if len(values) < 2 else f"{mean:.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    main()
