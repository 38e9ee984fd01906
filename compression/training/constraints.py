"""What a technique adds to training: a say before and after each step, and a term of the loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from compression.training.spec import Training


class Constraint(Protocol):
    """Hooks that the training loop calls in this order at every step. `NoConstraint` has them all, empty."""

    def before_step(self, progress: float) -> None:
        """Prepare for a step; `progress` is the share of all steps that is done.

        After the last step it is called once more, with 1: what is due by the end happens there at the latest.
        """

    def penalty(self) -> torch.Tensor | None:
        """A scalar that is added to the loss, or None."""

    def after_backward(self) -> None:
        """Look at the gradients, or change them."""

    def after_step(self) -> None:
        """Bring the parameters back to where they may be."""

    def is_settled(self, progress: float) -> bool:
        """Whether the network has the form that it will end with, so that an epoch may count as the best."""

    def state(self) -> Mapping[str, Any]:
        """What `restore` needs; tensors, numbers and strings in dicts and lists."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""


class NoConstraint:
    """Empty hooks, to inherit those that a technique does not need."""

    def before_step(self, progress: float) -> None:
        """Nothing to prepare."""

    def penalty(self) -> torch.Tensor | None:
        return None

    def after_backward(self) -> None:
        """Nothing to look at."""

    def after_step(self) -> None:
        """Nothing to bring back."""

    def is_settled(self, progress: float) -> bool:  # noqa: ARG002 - the protocol's signature
        return True

    def state(self) -> Mapping[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing was kept."""


class KeepZeros(NoConstraint):
    """Elements that are zero at the start stay zero.

    Args:
        parameters: Tensors to watch; those without a zero cost nothing.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        with torch.no_grad():
            zeros = [(parameter, parameter == 0) for parameter in parameters]
            self._zeros = [(parameter, zero) for parameter, zero in zeros if bool(zero.any())]

    @torch.no_grad()
    def after_step(self) -> None:
        # Not a product: that makes negative zeros, whose signs are noise that no compressor takes out of the file.
        for parameter, zero in self._zeros:
            parameter.masked_fill_(zero, 0.0)


class Regularizer(NoConstraint):
    """l1, l2 and group lasso on weights, as a term of the loss.

    Args:
        weights: Each with the axis of its output channels.
        l1: Factor of the sum of absolute values.
        l2: Factor of half the sum of squares.
        group_lasso: Factor of the sum over output channels of norm times square root of the channel's size (Wen et al.
            2016, section 3.1).
    """

    def __init__(
        self, weights: Sequence[tuple[nn.Parameter, int]], *, l1: float, l2: float, group_lasso: float
    ) -> None:
        self._weights = weights
        self._l1, self._l2, self._group_lasso = l1, l2, group_lasso

    def penalty(self) -> torch.Tensor | None:
        terms = []
        for weight, axis in self._weights:
            if self._l1:
                terms.append(self._l1 * weight.abs().sum())
            if self._l2:
                terms.append(self._l2 / 2 * weight.square().sum())
            if self._group_lasso:
                terms.append(self._group_lasso * group_norms(weight, axis).sum())
        return torch.stack(terms).sum() if terms else None


def regularizers(spec: Training, weights: Sequence[tuple[nn.Parameter, int]]) -> list[Constraint]:
    """The terms that `spec` adds to the loss, on weights each with the axis of its output channels."""
    if not (spec.l1 or spec.l2 or spec.group_lasso):
        return []
    return [Regularizer(weights, l1=spec.l1, l2=spec.l2, group_lasso=spec.group_lasso)]


def group_norms(weight: torch.Tensor, axis: int) -> torch.Tensor:
    """Norm of each slice along `axis` times the square root of its number of elements; a zero slice has gradient 0.

    >>> group_norms(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), 0).tolist()[1]
    0.0
    """
    groups = weight.movedim(axis, 0).flatten(1)
    squares = groups.square().sum(1)
    # The square root has no finite slope at 0, and pruned channels lie there.
    norms = torch.where(squares > 0, squares, torch.ones_like(squares)).sqrt() * (squares > 0)
    return norms * math.sqrt(groups.shape[1])
