"""Gradients of imported graphs against torch's own, of the modules that the graphs were exported from."""

from __future__ import annotations

import io

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from compression.graph.to_torch import to_torch
from tests.compression.importer.graphs import array, model, node, runtime, torch_outputs


class Convolutional(nn.Module):
    """Pre-activation, so that the exporter cannot fold the norms into convolutions."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.second_norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.group_norm = nn.GroupNorm(2, 8)
        self.slope = nn.PReLU(8)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        h = torch.relu(self.conv(torch.relu(self.norm(x))))
        h = self.slope(self.group_norm(self.depthwise(torch.relu(self.second_norm(h)))))
        return self.head(nn.functional.gelu(self.up(h)).mean((2, 3)))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.lstm = nn.LSTM(6, 5, num_layers=2, bidirectional=True)
        self.gru = nn.GRU(10, 4, bidirectional=True)
        self.rnn = nn.RNN(8, 4, bias=False)
        self.head = nn.Linear(4, 3)

    def forward(self, tokens):
        h = self.lstm(self.embedding(tokens))[0]
        return self.head(self.rnn(self.gru(h)[0])[0])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(13, 16)
        self.position = nn.Parameter(torch.randn(1, 6, 16) * 0.1)
        self.block = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True, norm_first=True)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 13, bias=False)

    def forward(self, tokens):
        h = self.norm(self.block(self.embedding(tokens) + self.position))
        return self.head(h)


PICTURES, TOKENS = (
    torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)),
    torch.arange(12).reshape(2, 6) % 11,
)
CASES = [
    pytest.param(Convolutional, PICTURES, id="convolutional"),
    pytest.param(Recurrent, TOKENS, id="recurrent"),
    pytest.param(Attention, TOKENS, id="attention"),
]


def _unlike_any_other(module):
    """Fresh scales and biases are equal to each other; these are not, and so can be told apart."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.rand_like(parameter) * 0.1)
    return module


def _exported(module, example):
    buffer = io.BytesIO()
    torch.onnx.export(module, (example,), buffer, dynamo=False, opset_version=17)
    return onnx.load_from_string(buffer.getvalue())


def _counterpart(parameter, candidates):
    """The native parameter of the same values, transposed or with axes of length 1, and its gradient in that layout."""
    for name, native in candidates.items():
        layouts = [lambda t: t.reshape(parameter.shape)] if native.numel() == parameter.numel() else []
        if native.dim() == 2 and native.t().shape == parameter.shape:
            layouts.append(torch.t)
        for layout in layouts:
            if torch.equal(layout(native), parameter):
                return name, layout(native.grad)
    pytest.fail(f"a parameter of shape {tuple(parameter.shape)} is none of the native module's")


@pytest.mark.filterwarnings("ignore")  # the exporter's own
@pytest.mark.parametrize(("kind", "example"), CASES)
def test_every_parameter_gets_torchs_gradient(kind, example):
    torch.manual_seed(0)
    native = _unlike_any_other(kind()).train()
    imported = to_torch(_exported(native, example)).train()
    wanted, got = native(example), imported(example)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    direction = torch.randn_like(wanted)
    (wanted * direction).sum().backward()
    (got * direction).sum().backward()
    left = dict(native.named_parameters())
    for parameter in imported.parameters():
        name, gradient = _counterpart(parameter, left)
        torch.testing.assert_close(
            parameter.grad, gradient, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )
        del left[name]
    assert not left


@pytest.mark.filterwarnings("ignore")
def test_running_statistics_follow_torchs():
    torch.manual_seed(0)
    native = _unlike_any_other(Convolutional()).train()
    imported = to_torch(_exported(native, PICTURES)).train()
    for _ in range(3):
        native(PICTURES)
        imported(PICTURES)
    torch.testing.assert_close(imported.norm.running_mean, native.norm.running_mean)
    torch.testing.assert_close(imported.second_norm.running_var, native.second_norm.running_var)
    torch.testing.assert_close(imported.eval()(PICTURES), native.eval()(PICTURES), rtol=1e-5, atol=1e-5)


def test_gradient_through_computed_statistics():
    """Weight standardization (Qiao et al. 2019) is exported as a batch norm whose statistics are computed."""
    nodes = [
        node("ReduceMean", ["w"], ["mean"], axes=[0, 2], keepdims=0),
        node("Sub", ["w", "wide_zero"], ["centred"]),
        node("Mul", ["centred", "centred"], ["squares"]),
        node("ReduceMean", ["squares"], ["var"], axes=[0, 2], keepdims=0),
        node("BatchNormalization", ["w", "gain", "shift", "mean", "var"], ["standard"], epsilon=1e-3),
        node("MatMul", ["x", "standard"], ["y"]),
    ]
    weights = {"w": array(2, 4, 3), "gain": array(4, seed=1), "shift": array(4, seed=2), "wide_zero": np.float32(0.1)}
    proto = model(nodes, [("x", [2, 5, 4])], [("y", None)], weights, opset=14)
    module, x = to_torch(proto), array(2, 5, 4, seed=3)
    np.testing.assert_allclose(torch_outputs(module, x)[0], runtime(proto, x)[0], rtol=1e-5, atol=1e-5)
    module(torch.from_numpy(x)).square().sum().backward()
    w = torch.from_numpy(array(2, 4, 3)).requires_grad_()
    mean, var = w.mean((0, 2)), (w - 0.1).square().mean((0, 2))
    gain, shift = (torch.from_numpy(weights[name]).reshape(-1, 1) for name in ("gain", "shift"))
    standard = (w - mean.reshape(-1, 1)) / (var.reshape(-1, 1) + 1e-3).sqrt() * gain + shift
    (torch.from_numpy(x) @ standard).square().sum().backward()
    torch.testing.assert_close(module.w.grad, w.grad, rtol=1e-4, atol=1e-4)
