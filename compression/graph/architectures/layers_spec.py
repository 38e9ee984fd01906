"""A network written down as a list of layers, one after another. Named and parametrized as in `torch.nn`.

Importing this module never imports torch.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from compression._spec_base import Spec

Count = Annotated[int, Field(ge=1, le=1_000_000)]
Small = Annotated[int, Field(ge=1, le=4096)]
Padding = Annotated[int, Field(ge=0, le=4096)]
Epsilon = Annotated[float, Field(gt=0, le=1)]
Pair = Small | tuple[Small, Small]
PaddingPair = Padding | tuple[Padding, Padding]


class _Layer(Spec):
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+){0,7}$", max_length=128)
    """Where the layer's tensors are in the `state_dict`: `fc1` for `fc1.weight`, `features.0` for
    `features.0.weight`. By default its position in the list, which is what `torch.nn.Sequential` uses."""


class Linear(_Layer):
    type: Literal["linear"]
    in_features: Count
    out_features: Count
    bias: bool = True


class _Convolution(_Layer):
    in_channels: Count
    out_channels: Count
    groups: Count = 1
    bias: bool = True

    @model_validator(mode="after")
    def _groups_divide(self) -> Self:
        if self.in_channels % self.groups or self.out_channels % self.groups:
            msg = f"groups ({self.groups}) must divide in_channels and out_channels"
            raise ValueError(msg)
        return self


class Conv1d(_Convolution):
    type: Literal["conv1d"]
    kernel_size: Small
    stride: Small = 1
    padding: Padding | Literal["same", "valid"] = 0
    dilation: Small = 1


class Conv2d(_Convolution):
    type: Literal["conv2d"]
    kernel_size: Pair
    stride: Pair = 1
    padding: PaddingPair | Literal["same", "valid"] = 0
    dilation: Pair = 1


class BatchNorm(_Layer):
    """Over the second axis, whatever follows it: `BatchNorm1d`, `BatchNorm2d` and `BatchNorm3d` alike."""

    type: Literal["batch_norm"]
    num_features: Count
    eps: Epsilon = 1e-5
    momentum: float | None = Field(default=0.1, ge=0, le=1)
    affine: bool = True


class LayerNorm(_Layer):
    type: Literal["layer_norm"]
    normalized_shape: Count | tuple[Count, ...]
    eps: Epsilon = 1e-5
    elementwise_affine: bool = True
    bias: bool = True


class Relu(_Layer):
    type: Literal["relu"]


class Relu6(_Layer):
    type: Literal["relu6"]


class LeakyRelu(_Layer):
    type: Literal["leaky_relu"]
    negative_slope: float = Field(default=0.01, ge=0, le=1)


class Gelu(_Layer):
    type: Literal["gelu"]
    approximate: Literal["none", "tanh"] = "none"


class Silu(_Layer):
    type: Literal["silu"]


class Hardswish(_Layer):
    type: Literal["hardswish"]


class Sigmoid(_Layer):
    type: Literal["sigmoid"]


class Tanh(_Layer):
    type: Literal["tanh"]


class Softmax(_Layer):
    type: Literal["softmax"]
    dim: int = Field(default=-1, ge=-8, le=8)


class MaxPool2d(_Layer):
    type: Literal["max_pool2d"]
    kernel_size: Pair
    stride: Pair | None = None
    """The kernel's size unless given."""
    padding: PaddingPair = 0
    dilation: Pair = 1
    ceil_mode: bool = False


class AvgPool2d(_Layer):
    type: Literal["avg_pool2d"]
    kernel_size: Pair
    stride: Pair | None = None
    """The kernel's size unless given."""
    padding: PaddingPair = 0
    ceil_mode: bool = False
    count_include_pad: bool = True


class AdaptiveAvgPool2d(_Layer):
    type: Literal["adaptive_avg_pool2d"]
    output_size: Pair = 1


class Flatten(_Layer):
    type: Literal["flatten"]
    start_dim: int = Field(default=1, ge=-8, le=8)
    end_dim: int = Field(default=-1, ge=-8, le=8)


class Dropout(_Layer):
    """Nothing when the network is used; it counts as a position in the list, and acts in training."""

    type: Literal["dropout"]
    p: float = Field(default=0.5, ge=0, le=1)


class Embedding(_Layer):
    type: Literal["embedding"]
    num_embeddings: Count
    embedding_dim: Count
    padding_idx: int | None = Field(default=None, ge=0)


class _Recurrent(_Layer):
    """Takes (batch, time, features)."""

    input_size: Count
    hidden_size: Count
    num_layers: int = Field(default=1, ge=1, le=16)
    bias: bool = True
    bidirectional: bool = False
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Between the layers, in training."""
    output: Literal["sequence", "last"] = "sequence"
    """All outputs, (batch, time, hidden); or that of the last step, (batch, hidden)."""


class Lstm(_Recurrent):
    type: Literal["lstm"]


class Gru(_Recurrent):
    type: Literal["gru"]


Layer = Annotated[
    Linear
    | Conv1d
    | Conv2d
    | BatchNorm
    | LayerNorm
    | Relu
    | Relu6
    | LeakyRelu
    | Gelu
    | Silu
    | Hardswish
    | Sigmoid
    | Tanh
    | Softmax
    | MaxPool2d
    | AvgPool2d
    | AdaptiveAvgPool2d
    | Flatten
    | Dropout
    | Embedding
    | Lstm
    | Gru,
    Field(discriminator="type"),
]
"""One layer. Adding one: a class, a member here, a `case` in `layer_list`, a test."""


class Layers(Spec):
    """An architecture as a list of layers, applied one after another."""

    layers: tuple[Layer, ...] = Field(max_length=1000, json_schema_extra={"minItems": 1})
    """In the order in which they are applied."""

    @field_validator("layers")
    @classmethod
    def _names_differ(cls, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
        if not layers:
            msg = "name at least one layer"
            raise ValueError(msg)
        seen: dict[str, int] = {}
        for position, name in enumerate(names(layers)):
            if name in seen:
                msg = f"layers {seen[name]} and {position} are both called '{name}'"
                raise ValueError(msg)
            seen[name] = position
        for name in seen:
            parts = name.split(".")
            for end in range(1, len(parts)):
                if (parent := ".".join(parts[:end])) in seen:
                    msg = f"'{name}' would lie inside layer {seen[parent]}, '{parent}'"
                    raise ValueError(msg)
        return layers


def names(layers: tuple[Layer, ...]) -> list[str]:
    """The prefix of each layer's tensors in the `state_dict`."""
    return [layer.name or str(position) for position, layer in enumerate(layers)]
