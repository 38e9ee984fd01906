"""What the convolutional students are built of."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

# A picture or signal is not made smaller than this many positions along its shorter side by a stride.
_SMALLEST_SIDE = 4


def strides(places: int, side: int) -> tuple[int, ...]:
    """The stride at each place where a network halves its picture: 2 at the last ones, as many as the picture bears.

    Early strides are the ones to leave out: they throw away detail that a small picture does not have to spare.

    Args:
        places: How often the network halves a large picture.
        side: Positions along the shorter side of the picture.

    >>> strides(5, 224), strides(5, 28), strides(5, 8), strides(5, 3)
    ((2, 2, 2, 2, 2), (1, 1, 2, 2, 2), (1, 1, 1, 1, 2), (1, 1, 1, 1, 1))
    """
    kept = 0
    while kept < places and -(-side // 2 ** (kept + 1)) >= _SMALLEST_SIDE:
        kept += 1
    return (1,) * (places - kept) + (2,) * kept


def rounded(channels: float, to: int = 8) -> int:
    """Channels as a multiple of `to`, never more than a tenth below what was asked (Sandler et al. 2018, code)."""
    found = max(to, int(channels + to / 2) // to * to)
    return found + to if found < 0.9 * channels else found


class ConvNorm(nn.Sequential):
    """Convolution, batch norm, activation; the picture keeps its size but for the stride.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        kernel: Its side, odd.
        stride: 1 or 2.
        groups: As in `nn.Conv2d`.
        activation: Makes the activation; None leaves it out.
        axes: 2 for pictures, 1 for signals.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        stride: int = 1,
        *,
        groups: int = 1,
        activation: Callable[[], nn.Module] | None = nn.ReLU,
        axes: int = 2,
    ) -> None:
        super().__init__()
        convolution = nn.Conv2d if axes == 2 else nn.Conv1d
        norm = nn.BatchNorm2d if axes == 2 else nn.BatchNorm1d
        self.conv = convolution(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm = norm(outputs)
        if activation is not None:
            self.act = activation()


class SqueezeExcite(nn.Module):
    """Channels scaled by what all of them hold on average (Howard et al. 2019, section 5.3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = rounded(channels // 4)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.act = nn.ReLU()
        self.expand = nn.Conv2d(squeezed, channels, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        gate: torch.Tensor = self.gate(self.expand(self.act(self.reduce(self.pool(value)))))
        return value * gate


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow again; added to the input where both have one shape (Sandler et al. 2018).

    Args:
        inputs: Channels that come in.
        inner: Channels in between.
        outputs: Channels that go out.
        kernel: Side of the depthwise convolution.
        stride: Its stride.
        squeeze: With squeeze-and-excitation.
        activation: Makes the activation.
    """

    def __init__(
        self,
        inputs: int,
        inner: int,
        outputs: int,
        kernel: int,
        stride: int,
        *,
        squeeze: bool,
        activation: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        self.residual = stride == 1 and inputs == outputs
        self.widen = ConvNorm(inputs, inner, 1, activation=activation) if inner != inputs else nn.Identity()
        self.filter = ConvNorm(inner, inner, kernel, stride, groups=inner, activation=activation)
        self.squeeze = SqueezeExcite(inner) if squeeze else nn.Identity()
        self.narrow = ConvNorm(inner, outputs, 1, activation=None)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.narrow(self.squeeze(self.filter(self.widen(value))))
        return value + found if self.residual else found


class Fire(nn.Module):
    """Few channels, then many from 1x1 and 3x3 filters side by side (Iandola et al. 2016, section 3.2)."""

    def __init__(self, inputs: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.expand1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3 = nn.Conv2d(squeezed, expanded, 3, padding=1)
        self.act = nn.ReLU()

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        squeezed = self.act(self.squeeze(value))
        return torch.cat([self.act(self.expand1(squeezed)), self.act(self.expand3(squeezed))], 1)


class ShuffleUnit(nn.Module):
    """Two branches whose channels are mixed (Ma et al. 2018, figure 3).

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out, even.
        stride: Of both branches.
        split: Half of the channels pass untouched; only where inputs and outputs are equal and the stride is 1.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, *, split: bool) -> None:
        super().__init__()
        half = outputs // 2
        self.split = split
        if split:
            self.side: nn.Module = nn.Identity()
        else:
            self.side = nn.Sequential(
                ConvNorm(inputs, inputs, 3, stride, groups=inputs, activation=None), ConvNorm(inputs, half, 1)
            )
        self.main = nn.Sequential(
            ConvNorm(half if split else inputs, half, 1),
            ConvNorm(half, half, 3, stride, groups=half, activation=None),
            ConvNorm(half, half, 1),
        )

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        left, right = value.chunk(2, 1) if self.split else (value, value)
        joined = torch.cat([self.side(left), self.main(right)], 1)
        _, channels, height, width = joined.shape
        return joined.view(-1, 2, channels // 2, height, width).transpose(1, 2).reshape(-1, channels, height, width)
