"""Training of shared weights (Han et al. 2015, "Deep Compression", section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import torch

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
        self._clusters = [_Clusters(weight, by_channel=by_channel) for weight in weights]
        self._fixed = [one.values() == 0 if keep_zeros else None for one in self._clusters]

    @torch.no_grad()
    def after_backward(self) -> None:
        for one, fixed in zip(self._clusters, self._fixed, strict=True):
            sums = one.gradients()
            if sums is not None:
                one.set_gradients(sums if fixed is None else sums.masked_fill(fixed, 0.0))

    @torch.no_grad()
    def after_step(self) -> None:
        # Equal gradients give equal steps but for the last bit, which vectorized arithmetic rounds by position.
        for one, fixed in zip(self._clusters, self._fixed, strict=True):
            values = one.values()
            one.set_values(values if fixed is None else values.masked_fill(fixed, 0.0))


class _Clusters:
    """The clusters of one weight, whose elements may lie in several parameters."""

    def __init__(self, weight: TrainableWeight, *, by_channel: bool) -> None:
        self._parameters = weight.parameters
        index = _numbered(weight.values(), weight.weight.output_axis if by_channel else None)
        self._count = int(index.max()) + 1
        # For each element of each parameter the number of its cluster.
        self._index = [part.reshape(-1) for part in weight.split(index)]
        joined = torch.cat(self._index)
        _, first = np.unique(joined.cpu().numpy(), return_index=True)
        self._first = torch.from_numpy(first).to(joined.device)

    def values(self) -> torch.Tensor:
        """(clusters,) the value of each cluster: that of its first element."""
        return torch.cat([parameter.detach().reshape(-1) for parameter in self._parameters])[self._first]

    def set_values(self, values: torch.Tensor) -> None:
        for parameter, index in zip(self._parameters, self._index, strict=True):
            parameter.copy_(values[index].reshape(parameter.shape))

    def gradients(self) -> torch.Tensor | None:
        """(clusters,) the sum of the gradients of each cluster; None without gradients."""
        found = [(parameter.grad, index) for parameter, index in zip(self._parameters, self._index, strict=True)]
        present = [(gradient, index) for gradient, index in found if gradient is not None]
        if not present:
            return None
        sums = torch.zeros(self._count, dtype=present[0][0].dtype, device=present[0][0].device)
        for gradient, index in present:
            sums.index_add_(0, index, gradient.reshape(-1))
        return sums

    def set_gradients(self, sums: torch.Tensor) -> None:
        for parameter, index in zip(self._parameters, self._index, strict=True):
            parameter.grad = sums[index].reshape(parameter.shape)


def _numbered(values: torch.Tensor, channel_axis: int | None) -> torch.Tensor:
    """The number of each element's cluster, int64 of the shape of `values`: equal values have equal numbers.

    Args:
        values: A clustered weight.
        channel_axis: Equal values share a cluster only where they have the same index along this axis; None makes the
            whole tensor one.
    """
    _, index = np.unique(values.numpy(), return_inverse=True)
    index = index.reshape(values.shape)
    if channel_axis is not None:
        lengths = [1] * values.dim()
        lengths[channel_axis] = -1
        channel = np.arange(values.shape[channel_axis]).reshape(lengths)
        _, index = np.unique(index + channel * (int(index.max()) + 1), return_inverse=True)
    return torch.from_numpy(index.reshape(values.shape).astype(np.int64))
