"""Fake quantization as parts of a module: what they know, what training changes in them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from compression.quantization.aware.fake_quant import (
    Grid,
    fake_quantize,
    fake_quantize_bias,
    least_error_scale,
    lsq_factor,
    range_parameters,
    symmetric_scale,
)
from compression.training.constraints import NoConstraint

# Ranges that are observed follow the newest batch by this share (Jacob et al. 2017, section 3.1: "close to 1").
_NEWEST = 0.01
# Values of one batch that are looked at for the range that errs least.
_KEPT_VALUES = 8192
# A learned step stays above this share of the one that it started with, and so above zero.
_SMALLEST = 1 / 64


class _LearnedStep(nn.Module):
    """A step size that training moves by shares of its first value.

    Optimizers that normalize gradients move every parameter by about the learning rate; step sizes differ by orders of
    magnitude, shares of a first value do not. The gradient is scaled so that for SGD nothing changes against learning
    the step itself.
    """

    first: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("first", torch.ones(()))
        self.factor = nn.Parameter(torch.ones(()))

    def start(self, scale: torch.Tensor) -> None:
        self.first = scale.detach().clone()
        # One axis: weight decay is for what has more.
        self.factor = nn.Parameter(torch.ones(scale.numel(), device=scale.device))

    def forward(self) -> torch.Tensor:
        return self.first * self.factor.reshape(self.first.shape)

    def gradient_factor(self, lsq: float) -> torch.Tensor:
        return lsq / self.first.square()

    @torch.no_grad()
    def bound(self) -> None:
        self.factor.clamp_(min=_SMALLEST)


class ActivationQuantizer(nn.Module):
    """Fake quantization of one value to an unsigned grid, by a range that is observed or a step that is learned.

    It starts out watching: values pass as they are and their range is noted, until `start`.

    Args:
        grid: The whole numbers.
        learned: Learn the step size; the zero point then stays as observed.
    """

    low: torch.Tensor
    high: torch.Tensor
    zero: torch.Tensor

    def __init__(self, grid: Grid, *, learned: bool) -> None:
        super().__init__()
        self.grid = grid
        self.watching = True
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.register_buffer("zero", torch.zeros(()))
        self.step = _LearnedStep() if learned else None
        self._lows: list[torch.Tensor] = []
        self._highs: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.watching:
            self._watch(x.detach())
            return x
        if self.step is None:
            if self.training:
                self._follow(x.detach())
            scale, zero = self.parameters_now()
            return fake_quantize(x, scale, zero, self.grid)
        elements = x.numel() // max(x.shape[0], 1) if x.dim() > 1 else x.numel()
        factor = self.step.gradient_factor(lsq_factor(max(elements, 1), self.grid))
        return fake_quantize(x, self.step(), self.zero, self.grid, factor)

    def parameters_now(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and zero point, both (); the scale has a gradient where it is learned."""
        if self.step is None:
            return range_parameters(self.low, self.high, self.grid)
        return self.step(), self.zero

    @torch.no_grad()
    def start(self) -> None:
        """End watching: take the mean of the batches' extremes, or learn from the step that errs least on.

        Means of extremes are what a moving average tends to.
        """
        self.watching = False
        if self._lows:
            self.low = torch.stack(self._lows).mean().clamp(max=0)
            self.high = torch.stack(self._highs).mean().clamp(min=0)
        if self.step is not None:
            if self._lows:
                low, high = torch.stack(self._lows).min(), torch.stack(self._highs).max()
            else:
                low, high = self.low, self.high
            scale, self.zero = range_parameters(low, high, self.grid)
            if self._values:
                scale = least_error_scale(torch.cat(self._values), scale, self.zero, self.grid, None)
            self.step.start(scale)
        self._lows, self._highs, self._values = [], [], []

    def _watch(self, x: torch.Tensor) -> None:
        if not x.numel():
            return
        x = x.float()
        self._lows.append(x.min())
        self._highs.append(x.max())
        if self.step is not None:
            flat = x.flatten()
            if flat.numel() > _KEPT_VALUES:
                # At random: every n-th value would be of one column, or one channel.
                chance = torch.Generator().manual_seed(len(self._values))
                flat = flat[torch.randint(flat.numel(), (_KEPT_VALUES,), generator=chance).to(flat.device)]
            self._values.append(flat.clone())

    @torch.no_grad()
    def _follow(self, x: torch.Tensor) -> None:
        self.low.lerp_(x.min().float().clamp(max=0), _NEWEST)
        self.high.lerp_(x.max().float().clamp(min=0), _NEWEST)


class WeightQuantizer(nn.Module):
    """Fake quantization of a weight to a signed, symmetric grid.

    Args:
        grid: The whole numbers.
        axis: Axis along which each slice has a scale; None for one scale.
        learned: Learn the step sizes; otherwise the largest magnitude decides, at every step anew.
    """

    def __init__(self, grid: Grid, axis: int | None, *, learned: bool) -> None:
        super().__init__()
        self.grid = grid
        self.axis = axis
        self.watching = True
        self.register_buffer("zero", torch.zeros(()))
        self.step = _LearnedStep() if learned else None

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        if self.watching:
            return weight
        scale = self.scale(weight)
        factor: torch.Tensor | float = 1.0
        if self.step is not None:
            factor = self.step.gradient_factor(lsq_factor(weight.numel() // scale.numel(), self.grid))
        zero: torch.Tensor = self.zero  # type: ignore[assignment, unused-ignore]
        return fake_quantize(weight, scale, zero, self.grid, factor)

    def scale(self, weight: torch.Tensor) -> torch.Tensor:
        """The step sizes for a weight: () or with length 1 in all axes but one."""
        if self.step is None:
            return symmetric_scale(weight.detach().float(), self.grid, self.axis)
        scale: torch.Tensor = self.step()
        return scale

    @torch.no_grad()
    def start(self, weight: torch.Tensor) -> None:
        """End watching; steps that are learned start where they err least."""
        self.watching = False
        if self.step is not None:
            scale = symmetric_scale(weight.float(), self.grid, self.axis)
            self.step.start(least_error_scale(weight.float(), scale, torch.zeros_like(scale), self.grid, self.axis))


class BiasQuantizer(nn.Module):
    """Fake quantization of a bias to int32 multiples of input scale times weight scale.

    Args:
        activation: Of the layer's input.
        weight: Of the layer's weight.
    """

    def __init__(self, activation: ActivationQuantizer, weight: WeightQuantizer) -> None:
        super().__init__()
        # In a tuple: the module owns neither.
        self._of = (activation, weight)

    def forward(self, bias: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if self._of[0].watching:
            return bias
        return fake_quantize_bias(bias, self.scale(weight))

    @torch.no_grad()
    def scale(self, weight: torch.Tensor) -> torch.Tensor:
        """() or (channels,), as float32 multiplies: runtimes compare it with the product of the other two."""
        scale = self._of[0].parameters_now()[0] * self._of[1].scale(weight)
        return scale.reshape(-1) if scale.numel() > 1 or self._of[1].axis is not None else scale.reshape(())


class StepsAboveZero(NoConstraint):
    """Learned steps stay above zero."""

    def __init__(self, quantizers: Sequence[nn.Module]) -> None:
        self._steps = [part for quantizer in quantizers for part in quantizer.modules() if type(part) is _LearnedStep]

    def after_step(self) -> None:
        for step in self._steps:
            step.bound()
