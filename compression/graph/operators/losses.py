"""Loss operators, which a graph may hold although Levity adds its own."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from compression.graph.operators.call import OperatorCall
from compression.graph.operators.registry import operator


def negative_log_likelihood(
    log_probabilities: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    ignore_index: int | None,
    reduction: str,
) -> torch.Tensor:
    """-log_probabilities[target], times the class weight; `mean` divides by the sum of the weights.

    Args:
        log_probabilities: (batch, classes, *positions).
        target: (batch, *positions).
        weight: (classes,).
        ignore_index: A target that counts nothing.
        reduction: `none`, `sum` or `mean`.
    """
    ignored = -100 if ignore_index is None else ignore_index
    return functional.nll_loss(
        log_probabilities, target.to(torch.int64), weight, ignore_index=ignored, reduction=reduction
    )


@operator("NegativeLogLikelihoodLoss")
def negative_log_likelihood_loss(op: OperatorCall) -> Any:
    return op.call(
        negative_log_likelihood,
        op.tensor(0),
        op.tensor(1),
        op.optional(2),
        op.attribute("ignore_index"),
        op.attribute("reduction", "mean"),
    )


def softmax_cross_entropy(
    scores: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    ignore_index: int | None,
    reduction: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of log-softmaxed scores, and those."""
    log_probabilities = torch.log_softmax(scores, 1)
    return negative_log_likelihood(log_probabilities, target, weight, ignore_index, reduction), log_probabilities


@operator("SoftmaxCrossEntropyLoss")
def softmax_cross_entropy_loss(op: OperatorCall) -> Any:
    results = op.call(
        softmax_cross_entropy,
        op.tensor(0),
        op.tensor(1),
        op.optional(2),
        op.attribute("ignore_index"),
        op.attribute("reduction", "mean"),
    )
    return [op.item(results, index) for index in range(op.outputs)]
