"""Does training an imported graph cost more than training the module that it was exported from?

Times whole training steps (forward, loss, backward, SGD) of both in turn, in one process, and gives medians and their
ratio. Networks are exported with their batch norms, as one does for training.

    python benchmarks/importer_step.py --rounds 40

Needs the `train` extra; `--exporter dynamo` (transformer only: that exporter folds batch norms) needs `onnxscript`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import onnx
import torch
import torchvision
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from compression.graph.to_torch import to_torch

FLOOR = 1.1  # imported / native; above it the importer would be a reason to train elsewhere


class Encoder(nn.Module):
    """A small transformer encoder over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1000, 128)
        layer = nn.TransformerEncoderLayer(128, 4, 256, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(128, 10)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        encoded: torch.Tensor = self.head(self.encoder(self.embedding(tokens)).mean(1))
        return encoded


def _cases() -> dict[str, tuple[nn.Module, torch.Tensor]]:
    pictures = torch.randn(8, 3, 64, 64)
    return {
        "ResNet-18, 8 x 3 x 64 x 64": (torchvision.models.resnet18(num_classes=10), pictures),
        "MobileNetV2, 8 x 3 x 64 x 64": (torchvision.models.mobilenet_v2(num_classes=10, dropout=0.0), pictures),
        "transformer encoder (4 layers, 128), 8 x 64": (Encoder(), torch.randint(0, 1000, (8, 64))),
    }


def _exported(model: nn.Module, example: torch.Tensor, exporter: str) -> onnx.ModelProto:
    buffer = io.BytesIO()
    model.eval()
    with contextlib.redirect_stdout(io.StringIO()):
        if exporter == "dynamo":
            torch.onnx.export(model, (example,), dynamo=True).save(buffer, external_data=False)
        else:
            # In evaluation mode, but without folding the batch norms into the convolutions.
            preserve = torch.onnx.TrainingMode.PRESERVE
            torch.onnx.export(model, (example,), buffer, dynamo=False, opset_version=17, training=preserve)
    return onnx.load_from_string(buffer.getvalue())


def _step(module: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9)

    def run() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(inputs), labels).backward()
        optimizer.step()

    return run


def _milliseconds(step: Callable[[], None]) -> float:
    started = time.perf_counter()
    step()
    return (time.perf_counter() - started) * 1e3


def _compare(name: str, model: nn.Module, inputs: torch.Tensor, options: argparse.Namespace) -> None:
    proto = _exported(model, inputs, options.exporter)
    labels = torch.randint(0, 10, (inputs.shape[0],))
    steps = [_step(module, inputs, labels) for module in (model, to_torch(proto))]
    for step in steps * 5:
        step()
    times: list[list[float]] = [[], []]
    for turn in range(options.rounds):
        for which in (0, 1) if turn % 2 else (1, 0):
            times[which].append(_milliseconds(steps[which]))
    native, imported = (statistics.median(measured) for measured in times)
    ratio = statistics.median(b / a for a, b in zip(*times, strict=True))
    verdict = "ok" if ratio <= FLOOR else f"above {FLOOR}"
    print(f"| {name} | {options.exporter} | {native:.1f} | {imported:.1f} | {ratio:.3f} | {verdict} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--exporter", choices=["legacy", "dynamo"], default="legacy")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    print("| network | exporter | native ms | imported ms | median ratio | |\n|---|---|---|---|---|---|")
    for name, (model, inputs) in _cases().items():
        if options.exporter == "legacy" or isinstance(model, Encoder):
            _compare(name, model, inputs, options)


if __name__ == "__main__":
    main()
