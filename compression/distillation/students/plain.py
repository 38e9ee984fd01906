"""Students without a paper of their own: dense layers, plain convolutions, a small encoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from compression.distillation.students.blocks import ConvNorm, rounded, strides
from compression.distillation.students.pictures import Vector

_MLP_NEURONS, _MLP_LAYERS = 256, 2
_CNN_CHANNELS, _CNN_MOST, _CNN_LAYERS = 32, 256, 3
_ENCODER_WIDTH, _ENCODER_BLOCKS, _VALUES_A_HEAD = 128, 2, 32
# Wavelengths of positions grow to 2π times this (Vaswani et al. 2017, section 3.5).
_LONGEST = 10_000.0
# Taken from the attention scores of masked positions.
_UNSEEN = 1e4


class Dense(nn.Module):
    """Dense layers over all inputs side by side.

    Args:
        elements: Of one sample, for each input.
        width: Factor of the neurons in a layer.
        depth: Layers.
    """

    def __init__(self, elements: Sequence[int], width: float, depth: int | None) -> None:
        super().__init__()
        neurons = rounded(_MLP_NEURONS * width)
        layers: list[nn.Module] = []
        inputs = sum(elements)
        for _ in range(depth or _MLP_LAYERS):
            layers += [nn.Linear(inputs, neurons, bias=False), nn.BatchNorm1d(neurons), nn.ReLU()]
            inputs = neurons
        self.layers = nn.Sequential(*layers)
        self.features = neurons

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        flat = [value.flatten(1).float() for value in inputs]
        found: torch.Tensor = self.layers(flat[0] if len(flat) == 1 else torch.cat(flat, 1))
        return found


def convolutions(channels: int, side: int, width: float, depth: int | None, axes: int) -> Vector:
    """3x3 convolutions whose channels double where they halve the picture.

    Args:
        channels: Of the input.
        side: Positions along its shorter axis.
        width: Factor of the channels.
        depth: Convolutions.
        axes: 2 for pictures, 1 for signals.
    """
    count = depth or _CNN_LAYERS
    layers: list[nn.Module] = []
    inputs = channels
    for index, stride in enumerate((1, *strides(count - 1, side))):
        outputs = rounded(min(_CNN_CHANNELS * 2**index, _CNN_MOST) * width)
        layers.append(ConvNorm(inputs, outputs, 3, stride, axes=axes))
        inputs = outputs
    pool = nn.AdaptiveAvgPool2d(1) if axes == 2 else nn.AdaptiveAvgPool1d(1)
    return Vector([*layers, pool, nn.Flatten()], inputs)


class Encoded(NamedTuple):
    """What an encoder gives: a vector for each position, and one for the sample."""

    sequence: torch.Tensor
    pooled: torch.Tensor


class Encoder(nn.Module):
    """A transformer encoder with norms first (Xiong et al. 2020) and the mean over positions as the sample's vector.

    Args:
        vocabulary: Tokens that there are, or None where the input holds vectors.
        values: Length of those vectors.
        kinds: Kinds of token that there are, 0 where no input tells them apart.
        width: Factor of the values at a position.
        depth: Blocks.
        mask_at: Which input masks positions, or None.
        kind_at: Which input holds the kinds, or None.
        content_at: Which input holds tokens or vectors.
    """

    def __init__(
        self,
        *,
        vocabulary: int | None,
        values: int,
        kinds: int,
        width: float,
        depth: int | None,
        content_at: int,
        mask_at: int | None,
        kind_at: int | None,
    ) -> None:
        super().__init__()
        size = rounded(_ENCODER_WIDTH * width, _VALUES_A_HEAD)
        self.features = size
        self._content_at, self._mask_at, self._kind_at = content_at, mask_at, kind_at
        if vocabulary is not None:
            self.embedding: nn.Module = nn.Embedding(vocabulary, size)
        else:
            self.embedding = nn.Linear(values, size)
        if kind_at is not None:
            self.kind = nn.Embedding(kinds, size)
        self.blocks = nn.ModuleList(EncoderBlock(size) for _ in range(depth or _ENCODER_BLOCKS))
        self.norm = nn.LayerNorm(size)

    def forward(self, *inputs: torch.Tensor) -> Encoded:
        content = inputs[self._content_at]
        value = self.embedding(content if isinstance(self.embedding, nn.Embedding) else content.float())
        value = value + _positions(value)
        if self._kind_at is not None:
            value = value + self.kind(inputs[self._kind_at])
        if self._mask_at is None:
            for block in self.blocks:
                value = block(value, None)
            value = self.norm(value)
            return Encoded(value, value.mean(1))
        seen = (inputs[self._mask_at] != 0).to(value.dtype)
        # Added rather than masked out: a sample without any position would become NaN.
        bias = (seen[:, None, None, :] - 1) * _UNSEEN
        for block in self.blocks:
            value = block(value, bias)
        value = self.norm(value)
        kept = seen[:, :, None]
        return Encoded(value, (value * kept).sum(1) / kept.sum(1).clamp_min(1.0))


class EncoderBlock(nn.Module):
    """Attention, then two dense layers, each added to what comes in.

    Args:
        size: Values at a position, a multiple of 32.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self._heads = size // _VALUES_A_HEAD
        self.norm1 = nn.LayerNorm(size)
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(size, size)
        self.value = nn.Linear(size, size)
        self.out = nn.Linear(size, size)
        self.norm2 = nn.LayerNorm(size)
        self.widen = nn.Linear(size, 4 * size)
        self.act = nn.GELU()
        self.narrow = nn.Linear(4 * size, size)

    def forward(self, value: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        normed = self.norm1(value)
        query, key, content = (self._cut(layer(normed)) for layer in (self.query, self.key, self.value))
        found = functional.scaled_dot_product_attention(query, key, content, bias)
        value = value + self.out(found.transpose(1, 2).flatten(2))
        added: torch.Tensor = self.narrow(self.act(self.widen(self.norm2(value))))
        return value + added

    def _cut(self, value: torch.Tensor) -> torch.Tensor:
        """(n, positions, size) as (n, heads, positions, values a head)."""
        samples, length, _ = value.shape
        return value.reshape(samples, length, self._heads, _VALUES_A_HEAD).transpose(1, 2)


def _positions(value: torch.Tensor) -> torch.Tensor:
    """Sines and cosines of each position (Vaswani et al. 2017, section 3.5).

    Args:
        value: (n, positions, size).

    Returns:
        (positions, size).

    Computed rather than stored: the sequence may be longer than any in training.
    """
    _, length, size = value.shape
    position = torch.arange(length, device=value.device, dtype=torch.float32)[:, None]
    pairs = torch.arange(0, size, 2, device=value.device, dtype=torch.float32)
    phase = position * torch.exp(pairs * (-math.log(_LONGEST) / size))
    return torch.cat([phase.sin(), phase.cos()], 1).to(value.dtype)
