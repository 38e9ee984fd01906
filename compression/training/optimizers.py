"""Optimizers and learning rates."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from compression.errors import StepFailed
from compression.training.spec import Training


def optimizer(parameters: Iterable[nn.Parameter], spec: Training) -> torch.optim.Optimizer:
    """The optimizer of `spec` over all parameters that need a gradient.

    Raises:
        StepFailed: `optimizer_needs_float32`.
    """
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    if spec.optimizer != "sgd" and any(parameter.dtype == torch.float16 for parameter in wanted):
        # Squares of gradients below 0.0002 are 0 in float16, and Adam divides by their mean.
        raise StepFailed(
            "optimizer_needs_float32",
            f"The model's weights are float16, which '{spec.optimizer}' cannot train: set training.optimizer to 'sgd', "
            "or train the model in float32 and quantize it to float16 afterwards.",
        )
    # Vectors are biases and norms: decaying them shifts outputs without making the model simpler.
    groups = [
        {"params": [parameter for parameter in wanted if parameter.dim() > 1], "weight_decay": spec.weight_decay},
        {"params": [parameter for parameter in wanted if parameter.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    match spec.optimizer:
        case "sgd":
            nesterov = spec.momentum > 0
            return torch.optim.SGD(groups, lr=spec.learning_rate, momentum=spec.momentum, nesterov=nesterov)
        case "adam":
            return torch.optim.Adam(groups, lr=spec.learning_rate)
        case "adamw":
            return torch.optim.AdamW(groups, lr=spec.learning_rate)


def learning_rate(spec: Training, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step, counted from 0.

    >>> learning_rate(Training(epochs=2, learning_rate=1.0), 10, 10)
    0.5
    """
    total, warmup = spec.epochs * steps_per_epoch, round(spec.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return spec.learning_rate * (step + 1) / warmup
    match spec.schedule:
        case "constant":
            return spec.learning_rate
        case "cosine":
            done = (step - warmup) / max(total - warmup, 1)
            return spec.learning_rate * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        case "step":
            return spec.learning_rate * spec.step_factor ** (step // (spec.step_epochs * steps_per_epoch))


def set_learning_rate(chosen: torch.optim.Optimizer, value: float) -> None:
    for group in chosen.param_groups:
        group["lr"] = value
