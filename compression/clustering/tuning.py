"""Training of shared weights (Han et al. 2015, "Deep Compression", section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import torch
from torch import nn

from compression.clustering.spec import Cluster
from compression.clustering.step import cluster
from compression.context import Context
from compression.training.constraints import NoConstraint
from compression.training.step import TrainingMaterial, train_with
from compression.training.trainee import TrainableWeight, Trainee


def cluster_and_tune(
    model: onnx.ModelProto, spec: Cluster, context: Context, material: TrainingMaterial
) -> tuple[onnx.ModelProto, dict[str, object]]:
    """Let weights share values, then train the values.

    Returns:
        The clustered model, what `cluster` says of each weight, and how training went.

    Raises:
        StepFailed: `unknown_name`, `no_weights`, `non_finite_weights`, `operator_not_importable`, `loss_not_finite`.
        DataRejected: the dataset does not serve this training.
    """
    if spec.training is None:
        raise ValueError("the spec has no training")
    shared, details = cluster(model, spec, context, material.seed)
    trainee = Trainee(shared, context.device)
    weights = trainee.weights(spec.include, spec.exclude, embeddings=True)
    constraint = SharedValues(weights, by_channel=spec.scope == "channel", keep_zeros=spec.keep_zeros)
    report = train_with(trainee, spec.training, context, material, weights=weights, constraints=[constraint])
    return trainee.written_back(), details | {"training": report.details()}


class SharedValues(NoConstraint):
    """Weights that are equal at the start stay equal, and move by the sum of their gradients (equation 3).

    Args:
        weights: Clustered weights.
        by_channel: Values are shared within an output channel rather than in the whole tensor.
        keep_zeros: Zeros stay zero.
    """

    def __init__(self, weights: Sequence[TrainableWeight], *, by_channel: bool, keep_zeros: bool) -> None:
        self._groups = [
            _Group(parameter, index)
            for weight in weights
            for parameter, index in zip(weight.parameters, _clusters(weight, by_channel=by_channel), strict=True)
        ]
        self._zero = [group.values().abs().lt(1e-30) if keep_zeros else None for group in self._groups]

    @torch.no_grad()
    def after_backward(self) -> None:
        for group in self._groups:
            if group.parameter.grad is not None:
                group.parameter.grad.copy_(group.spread(group.sums(group.parameter.grad)))

    @torch.no_grad()
    def after_step(self) -> None:
        # Equal gradients give equal steps but for the last bit, which vectorized arithmetic rounds by position.
        for group, zero in zip(self._groups, self._zero, strict=True):
            values = group.values()
            if zero is not None:
                values = values.masked_fill(zero, 0.0)
            group.parameter.copy_(group.spread(values))


class _Group:
    """A parameter and, for each of its elements, the number of its cluster."""

    def __init__(self, parameter: nn.Parameter, index: torch.Tensor) -> None:
        self.parameter = parameter
        self._index = index.to(parameter.device)
        self._first = _first_of_each(index).to(parameter.device)

    def values(self) -> torch.Tensor:
        """(clusters,) the value of each cluster: that of its first element."""
        return self.parameter.detach().reshape(-1)[self._first]

    def sums(self, elements: torch.Tensor) -> torch.Tensor:
        """(clusters,) sums of the elements of each cluster."""
        return torch.zeros(len(self._first), dtype=elements.dtype, device=elements.device).index_add_(
            0, self._index, elements.reshape(-1)
        )

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """Each element's cluster's value, in the parameter's shape."""
        return values[self._index].reshape(self.parameter.shape)


def _first_of_each(index: torch.Tensor) -> torch.Tensor:
    _, first = np.unique(index.numpy(), return_index=True)
    return torch.from_numpy(first)


def _clusters(weight: TrainableWeight, *, by_channel: bool) -> tuple[torch.Tensor, ...]:
    """For each parameter of a weight, the cluster of every element, numbered from 0 within the parameter."""
    values = weight.values()
    channel = torch.zeros(values.shape, dtype=torch.int64)
    if by_channel:
        lengths = [1] * values.dim()
        lengths[weight.weight.output_axis] = -1
        channel = torch.arange(values.shape[weight.weight.output_axis]).reshape(lengths).expand(values.shape)
    parts = []
    for part, number in zip(weight.layout.split(values), weight.layout.split(channel.contiguous()), strict=True):
        pairs = np.stack([number.reshape(-1).numpy().astype(np.float64), part.reshape(-1).double().numpy()], 1)
        _, index = np.unique(pairs, axis=0, return_inverse=True)
        parts.append(torch.from_numpy(index.reshape(-1).astype(np.int64)))
    return tuple(parts)
