"""What training under fake quantization gains over quantizing the trained network, at the same few bits, on MNIST.

Both sides share everything but the training: the same network, the same places and bits, the same calibration samples,
the same integer ONNX graph out of the same code, run by ONNX Runtime on the 10,000 test pictures. The side without
training gets the better of two calibrations, extremes and least squared error, on each seed. All layers have the few
bits, the first and the last one too; logits have 8. Networks: LeNet-5 (Caffe's, 431,080 parameters) and torchvision's
MobileNetV2 with a stem for grey pictures and five of its blocks (batch norms, ReLU6, depthwise convolutions, sums).

    python benchmarks/qat.py [--networks lenet-5 mobilenet-v2] [--bits 4] [--seeds 0 1 2 3 4]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import lenet
import mnist
import numpy as np
import onnx
import torch
from seeds import mean_interval
from torch import nn

from compression.context import Context
from compression.data import DataSource, open_dataset
from compression.data.feed import ModelFeed
from compression.graph.inspect import summarize
from compression.quantization import prepare
from compression.quantization.aware.step import calibrated, quantize_aware
from compression.quantization.spec import QuantizeAware
from compression.training.spec import Training
from compression.training.step import TrainingMaterial

# Epochs of the float network and of training under fake quantization, and the latter's learning rate.
SETTINGS = {"lenet-5": (4, 5, 1e-3), "mobilenet-v2": (4, 2, 1e-3)}
BATCH = 128


def network(name: str) -> nn.Module:
    if name == "mobilenet-v2":
        from torchvision.models import MobileNetV2

        net = MobileNetV2(10, inverted_residual_setting=[[1, 16, 1, 1], [4, 24, 2, 2], [4, 32, 2, 2]], dropout=0.0)
        net.features[0][0] = nn.Conv2d(1, 32, 3, stride=2, padding=1, bias=False)
        return net
    return lenet.lenet5()


def trained(name: str, seed: int, pictures: np.ndarray, labels: np.ndarray) -> onnx.ModelProto:
    """The float network, trained as usual."""
    torch.manual_seed(seed)
    net, epochs = network(name).train(), SETTINGS[name][0]
    x, y = torch.from_numpy(pictures), torch.from_numpy(labels)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=epochs * (len(x) // BATCH))
    for _ in range(epochs):
        order = torch.randperm(len(x))
        for chosen in order[: len(x) // BATCH * BATCH].split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[chosen]), y[chosen]).backward()
            optimizer.step()
            schedule.step()
    return lenet.exported(net)


def accuracy(model: onnx.ModelProto, pictures: np.ndarray, labels: np.ndarray) -> float:
    """Share of right answers, in percent."""
    return 100 - lenet.error_percent(model, pictures, labels, torch.get_num_threads())


def interval(values: list[float]) -> str:
    """Mean and its 95 % interval (Student's t)."""
    mean, low, high = mean_interval(values)
    return f"{mean:+.2f}" if len(values) < 2 else f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=sorted(SETTINGS), default=sorted(SETTINGS))
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--samples", type=int, default=20_000, help="training pictures, of 60,000")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pictures, labels, test_pictures, test_labels = mnist.load()
    kept = np.arange(options.samples) * len(labels) // options.samples
    pictures, labels = mnist.scaled(pictures[kept]), labels[kept].astype(np.int64)
    test = mnist.scaled(test_pictures), test_labels
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        np.savez(folder / "training.npz", image=pictures, labels=labels)
        print(f"{'network':13} seed   float  extremes  least error  trained   same logits  seconds")
        for name in options.networks:
            gains: list[float] = []
            for seed in options.seeds:
                begun = time.perf_counter()
                model = trained(name, seed, pictures, labels)
                feed = ModelFeed(open_dataset(DataSource(folder / "training.npz")), summarize(model, 0, 0), "training")
                context = Context(folder, threads=options.threads)
                spec = QuantizeAware(
                    weight_bits=options.bits,
                    activation_bits=options.bits,
                    keep_first_last_8bit=False,
                    training=Training(
                        epochs=SETTINGS[name][1],
                        batch_size=BATCH,
                        learning_rate=SETTINGS[name][2],
                        # The float network knows all these pictures: held-out ones would only vote for it.
                        validation_share=0.0,
                    ),
                )
                without = []
                for ranges in ("observed", "learned"):
                    fake = calibrated(model, spec.model_copy(update={"ranges": ranges}), context, feed)
                    without.append(accuracy(prepare.finished(fake.exported(), model, context), *test))
                material = TrainingMaterial(feed, lambda model=model: model, seed)
                result, details = quantize_aware(model, spec, context, material)
                found = accuracy(result, *test)
                gains.append(found - max(without))
                print(
                    f"{name:13} {seed:4} {accuracy(model, *test):6.2f}% {without[0]:8.2f}% {without[1]:11.2f}% "
                    f"{found:7.2f}% {100 * details['agreement'][0]['equal']:12.1f}% "
                    f"{time.perf_counter() - begun:8.0f}",
                    flush=True,
                )
            print(f"{name:13} trained - the better of the two without, points: {interval(gains)}")


if __name__ == "__main__":
    main()
