"""A `torch.nn.Module` from a list of layers."""

from __future__ import annotations

from typing import Any, assert_never

import torch
from torch import nn

from compression.errors import ModelRejected
from compression.graph.architectures import layers_spec as spec
from compression.graph.architectures.libraries import sentence
from compression.graph.architectures.spec import Input


class LayerList(nn.Module):
    """Layers one after another, whose tensors are named as the list says.

    Args:
        layers: What to build.

    Raises:
        ModelRejected: `architecture_invalid` where torch refuses a name or a parameter of a layer.
    """

    def __init__(self, layers: tuple[spec.Layer, ...]) -> None:
        super().__init__()
        self._steps: list[tuple[str, str]] = []
        for name, layer in zip(spec.names(layers), layers, strict=True):
            try:
                self._put(name, build_layer(layer))
            except (KeyError, ValueError, TypeError, RuntimeError, AssertionError) as error:
                raise ModelRejected(
                    "architecture_invalid", f"Layer '{name}' ({layer.type}) cannot be built: {sentence(error)}"
                ) from None
            self._steps.append((name, layer.type))

    def _put(self, name: str, module: nn.Module) -> None:
        *folders, last = name.split(".")
        place: nn.Module = self
        for folder in folders:
            if folder not in place._modules:  # noqa: SLF001 - an attribute of that name would be found too
                place.add_module(folder, nn.Module())
            place = place.get_submodule(folder)
        place.add_module(last, module)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        for name, _ in self._steps:
            value = self.get_submodule(name)(value)
        return value

    def check(self, value: torch.Tensor) -> torch.Tensor:
        """Run a sample through; what goes wrong is told by layer.

        Raises:
            ModelRejected: `architecture_invalid`.
        """
        for name, kind in self._steps:
            shape = list(value.shape)
            try:
                value = self.get_submodule(name)(value)
            except (RuntimeError, ValueError, IndexError, TypeError) as error:
                raise ModelRejected(
                    "architecture_invalid",
                    f"Layer '{name}' ({kind}) cannot take what comes before it, of shape {shape} (batch first): "
                    f"{sentence(error)}",
                ) from None
        return value


class AnyBatchNorm(nn.modules.batchnorm._BatchNorm):  # noqa: SLF001 - what its three public kinds share
    """Batch normalization whatever the number of axes."""

    def _check_input_dim(self, input: torch.Tensor) -> None:  # noqa: A002 - named so by torch
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 axes, got {input.dim()}")


class _LstmOutputs(nn.LSTM):
    last = False

    def forward(self, value: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        outputs: torch.Tensor = super().forward(value)[0]
        return outputs[:, -1] if self.last else outputs


class _GruOutputs(nn.GRU):
    last = False

    def forward(self, value: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        outputs: torch.Tensor = super().forward(value)[0]
        return outputs[:, -1] if self.last else outputs


def build_layer(layer: spec.Layer) -> nn.Module:  # noqa: C901, PLR0911, PLR0912 - one case a layer
    """The module of one layer, with torch's own parameter names."""
    match layer:
        case spec.Linear():
            return nn.Linear(layer.in_features, layer.out_features, layer.bias)
        case spec.Conv1d():
            return nn.Conv1d(**_arguments(layer))
        case spec.Conv2d():
            return nn.Conv2d(**_arguments(layer))
        case spec.BatchNorm():
            return AnyBatchNorm(**_arguments(layer))
        case spec.LayerNorm():
            return nn.LayerNorm(**_arguments(layer))
        case spec.Relu():
            return nn.ReLU()
        case spec.Relu6():
            return nn.ReLU6()
        case spec.LeakyRelu():
            return nn.LeakyReLU(layer.negative_slope)
        case spec.Gelu():
            return nn.GELU(layer.approximate)
        case spec.Silu():
            return nn.SiLU()
        case spec.Hardswish():
            return nn.Hardswish()
        case spec.Sigmoid():
            return nn.Sigmoid()
        case spec.Tanh():
            return nn.Tanh()
        case spec.Softmax():
            return nn.Softmax(layer.dim)
        case spec.MaxPool2d():
            return nn.MaxPool2d(**_arguments(layer))
        case spec.AvgPool2d():
            return nn.AvgPool2d(**_arguments(layer))
        case spec.AdaptiveAvgPool2d():
            return nn.AdaptiveAvgPool2d(layer.output_size)
        case spec.Flatten():
            return nn.Flatten(layer.start_dim, layer.end_dim)
        case spec.Dropout():
            return nn.Dropout(layer.p)
        case spec.Embedding():
            return nn.Embedding(**_arguments(layer))
        case spec.Lstm():
            lstm = _LstmOutputs(**_arguments(layer, "output"), batch_first=True)
            lstm.last = layer.output == "last"
            return lstm
        case spec.Gru():
            gru = _GruOutputs(**_arguments(layer, "output"), batch_first=True)
            gru.last = layer.output == "last"
            return gru
        case _:
            assert_never(layer)


def _arguments(layer: spec.Layer, *without: str) -> dict[str, Any]:
    return layer.model_dump(exclude={"type", "name", *without})


def default_input(layers: tuple[spec.Layer, ...]) -> Input:
    """The input of the first layer that fixes one.

    Raises:
        ModelRejected: `input_missing` when none does, as with convolutions, which take any height and width.
    """
    for layer in layers:
        match layer:
            case spec.Linear():
                return Input(shape=(layer.in_features,))
            case spec.Embedding():
                return Input(shape=("sequence",), dtype="int64")
            case spec.Lstm() | spec.Gru():
                return Input(shape=("sequence", layer.input_size))
            case spec.Conv2d():
                raise _input_missing(f"[{layer.in_channels}, 224, 224]")
            case spec.Conv1d():
                raise _input_missing(f"[{layer.in_channels}, 16000]")
            case _:
                continue
    raise _input_missing("[784]")


def _input_missing(example: str) -> ModelRejected:
    return ModelRejected(
        "input_missing",
        f"The list of layers leaves open what it takes: give 'input', such as {{\"shape\": {example}}}.",
    )
