"""Train a small residual network on scikit-learn's handwritten digits and write everything a Levity run needs.

    pip install torch onnx onnxscript scikit-learn
    python examples/digits/train.py

Writes beside this file: `digits-cnn.onnx` (input `image`, (N, 1, 8, 8) float32 between 0 and 1; output `logits`,
(N, 10)), `training.npz`, `calibration.npz` (512 of the training images) and `evaluation.npz` (the held-out quarter,
with labels). Takes about two minutes on a CPU and ends with the accuracy on the held-out images.

The data: 1,797 8x8 images, the test set of "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak,
1998, UCI Machine Learning Repository, CC BY 4.0), as scikit-learn's `load_digits` carries it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

HERE = Path(__file__).parent
SEED = 0
EPOCHS = 40
BATCH_SIZE = 64
CALIBRATION_SAMPLES = 512


class ConvBlock(nn.Sequential):
    """3x3 convolution, batch norm, ReLU; keeps height and width."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels_out)
        self.relu = nn.ReLU()


class DigitsNet(nn.Module):
    """(N, 1, 8, 8) to (N, 10) logits; about 140,000 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvBlock(1, 32)
        self.widen = ConvBlock(32, 64)
        self.block1 = ConvBlock(64, 64)
        self.block2 = ConvBlock(64, 64)
        self.pool = nn.MaxPool2d(2)
        self.classifier = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * 4 * 4, 10))
        self.tail = ConvBlock(64, 64)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = self.widen(self.stem(image))
        features = features + self.block2(self.block1(features))
        logits: torch.Tensor = self.classifier(self.tail(self.pool(features)))
        return logits


def load() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training images, held-out images, training labels, held-out labels; images (N, 1, 8, 8) between 0 and 1."""
    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)
    labels = digits.target.astype(np.int64)
    return tuple(train_test_split(images, labels, test_size=0.25, random_state=SEED, stratify=labels))


def train(images: np.ndarray, labels: np.ndarray) -> DigitsNet:
    torch.manual_seed(SEED)
    model = DigitsNet()
    inputs, targets = torch.from_numpy(images), torch.from_numpy(labels)
    steps = EPOCHS * (len(inputs) // BATCH_SIZE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
    loss = nn.CrossEntropyLoss(label_smoothing=0.05)
    model.train()
    for epoch in range(EPOCHS):
        order = torch.randperm(len(inputs))
        for chosen in order[: len(order) // BATCH_SIZE * BATCH_SIZE].split(BATCH_SIZE):
            optimizer.zero_grad()
            value = loss(model(inputs[chosen]), targets[chosen])
            value.backward()
            optimizer.step()
            schedule.step()
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1}: loss {value.item():.4f}")
    return model.eval()


def export(model: DigitsNet, path: Path) -> None:
    batch = torch.export.Dim("N")
    example = torch.zeros(2, 1, 8, 8)
    torch.onnx.export(
        model,
        (example,),
        path,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: batch},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    graph_only = onnx.load(path)
    _drop_exporter_notes(graph_only.graph)
    onnx.save(graph_only, path)


def _drop_exporter_notes(graph: onnx.GraphProto) -> None:
    """The exporter notes on every node where in which source file it came from, which is half of a small graph."""
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")


def main() -> None:
    train_images, test_images, train_labels, test_labels = load()
    model = train(train_images, train_labels)
    with torch.no_grad():
        predicted = model(torch.from_numpy(test_images)).argmax(1).numpy()
    print(f"accuracy on {len(test_labels)} held-out images: {(predicted == test_labels).mean():.4f}")
    export(model, HERE / "digits-cnn.onnx")
    np.savez_compressed(HERE / "calibration.npz", image=train_images[:CALIBRATION_SAMPLES])
    np.savez_compressed(HERE / "training.npz", image=train_images, labels=train_labels)
    np.savez_compressed(HERE / "evaluation.npz", image=test_images, labels=test_labels)


if __name__ == "__main__":
    main()
