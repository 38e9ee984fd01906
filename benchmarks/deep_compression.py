"""Deep Compression's headline on the real MNIST: how small, at which error.

Both networks of Han et al. 2015 (table 1) go through this library's own steps: `prune` (global, gradual, with the
uncompressed network as teacher) and `cluster` with tuned values, then into one file. The file holds everything that
a working ONNX model needs, the graph included: positions of the weights that are left, indices of their values, the
values, biases and the graph without its weights, all through zlib or LZMA, whichever is smaller. It is decoded again,
and the decoded model is the one whose error is measured, by ONNX Runtime on the 10,000 test pictures.

    ratio = float32 bytes of all parameters / bytes of that file

The paper: LeNet-300-100 40x at 1.58 % error (uncompressed 1.64 %), LeNet-5 39x at 0.74 % (0.80 %).

    python benchmarks/deep_compression.py [--networks lenet-300-100 lenet-5] [--seeds 5]
"""

from __future__ import annotations

import argparse
import lzma
import math
import struct
import tempfile
import time
import zlib
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
    """One file; `decode` gives the same weights and a model that runs."""
    skeleton = onnx.ModelProto()
    skeleton.CopyFrom(model)
    skeleton.ClearField("metadata_props")
    skeleton.producer_name = skeleton.producer_version = skeleton.doc_string = ""
    skeleton.graph.ClearField("value_info")
    streams: list[bytes] = []
    for node in skeleton.graph.node:
        node.ClearField("metadata_props")
        node.doc_string = node.name = ""
    for tensor in skeleton.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size > 16:
            tensor.ClearField("raw_data")
            streams += _sparse(values) if values.ndim > 1 else [values.astype(np.float16).tobytes()]
    parts = [_squeezed(part) for part in (skeleton.SerializeToString(), *streams)]
    return b"".join(struct.pack("<I", len(part))[:3] + part for part in parts)


def decode(file: bytes) -> onnx.ModelProto:
    parts = []
    at = 0
    while at < len(file):
        (length,) = struct.unpack("<I", file[at : at + 3] + b"\0")
        parts.append(_expanded(file[at + 3 : at + 3 + length]))
        at += 3 + length
    model = onnx.ModelProto.FromString(parts[0])
    rest = iter(parts[1:])
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and math.prod(tensor.dims) > 16:
            shape = tuple(tensor.dims)
            if len(shape) > 1:
                values = _dense(next(rest), next(rest), next(rest), shape)
            else:
                values = np.frombuffer(next(rest), np.float16).astype(np.float32)
            tensor.raw_data = values.tobytes()
    return model


def _sparse(values: np.ndarray) -> list[bytes]:
    """Gaps between weights that are left, indices into the shared values, the shared values."""
    flat = values.reshape(len(values), -1).T.reshape(-1)  # inputs first: whole inputs are often gone
    positions = np.flatnonzero(flat)
    gaps = np.diff(positions, prepend=-1) - 1
    book, index = np.unique(flat[positions], return_inverse=True)
    return [_bytes_of(gaps), _nibbles(index, len(book)), book.astype(np.float32).tobytes()]


def _dense(gaps: bytes, index: bytes, book: bytes, shape: tuple[int, ...]) -> np.ndarray:
    values = np.frombuffer(book, np.float32)
    positions = np.cumsum(_gaps_of(gaps) + 1) - 1
    flat = np.zeros(math.prod(shape), np.float32)
    flat[positions] = values[_indices(index, len(values), len(positions))]
    return np.ascontiguousarray(flat.reshape(-1, shape[0]).T).reshape(shape)


def _bytes_of(gaps: np.ndarray) -> bytes:
    """Gaps as bytes; 255 means 255 more and go on."""
    out = bytearray()
    for gap in gaps.tolist():
        out += b"\xff" * (gap // 255) + bytes([gap % 255])
    return bytes(out)


def _gaps_of(data: bytes) -> np.ndarray:
    gaps, carried = [], 0
    for byte in data:
        if byte == 255:
            carried += 255
        else:
            gaps.append(carried + byte)
            carried = 0
    return np.array(gaps, np.int64)


def _nibbles(index: np.ndarray, count: int) -> bytes:
    if count > 16:
        return index.astype(np.uint8).tobytes()
    padded = np.concatenate([index, np.zeros(len(index) % 2, index.dtype)]).astype(np.uint8)
    return (padded[::2] << 4 | padded[1::2]).astype(np.uint8).tobytes()


def _indices(data: bytes, count: int, length: int) -> np.ndarray:
    raw = np.frombuffer(data, np.uint8)
    if count > 16:
        return raw
    return np.stack([raw >> 4, raw & 15], 1).reshape(-1)[:length]


_RAW_LZMA = [{"id": lzma.FILTER_LZMA1, "preset": 9, "lc": 0, "lp": 0, "pb": 0}]


def _squeezed(data: bytes) -> bytes:
    options = [
        b"0" + data,
        b"1" + zlib.compress(data, 9, wbits=-15),
        b"2" + lzma.compress(data, lzma.FORMAT_RAW, filters=_RAW_LZMA),
    ]
    return min(options, key=len)


def _expanded(part: bytes) -> bytes:
    match part[:1]:
        case b"0":
            return part[1:]
        case b"1":
            return zlib.decompress(part[1:], wbits=-15)
        case _:
            return lzma.decompress(part[1:], lzma.FORMAT_RAW, filters=_RAW_LZMA)


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
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    pictures, labels, test_pictures, test_labels = mnist.load()
    test = mnist.scaled(test_pictures), test_labels
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        np.savez(folder / "training.npz", image=mnist.scaled(pictures), labels=labels.astype(np.int64))
        print(f"{'network':14} {'point':9} {'seed':>4} {'own error':>9} {'error':>7} {'bytes':>7} {'ratio':>7} seconds")
        for name in options.networks:
            rows: dict[str, list[tuple[float, float, float]]] = {point: [] for point in SETTINGS[name]}
            for seed in range(options.seeds):
                subject = Subject(name, folder, test)
                original = subject.baseline(seed)
                own = lenet.error_percent(original, *test)
                size = sum(4 * math.prod(tensor.dims) for tensor in original.graph.initializer if tensor.data_type == 1)
                for point, setting in SETTINGS[name].items():
                    begun = time.perf_counter()
                    file = encode(subject.compressed(original, setting, seed))
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
