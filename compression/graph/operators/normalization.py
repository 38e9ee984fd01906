"""Normalization layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from compression.graph.operators.call import OperatorCall
from compression.graph.operators.dtypes import torch_dtype
from compression.graph.operators.registry import operator

_BATCH_NORM: dict[int, type[Any]] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


class BatchNormOfAnyRank(nn.BatchNorm1d):  # type: ignore[misc, unused-ignore]  # untyped where torch is not installed
    """For inputs whose rank is not known at import."""

    def _check_input_dim(self, _input: torch.Tensor) -> None:
        pass


@operator("BatchNormalization")
def batch_normalization(op: OperatorCall) -> Any:
    """`nn.BatchNorm*d`; ONNX's momentum is the share of the old statistics, torch's that of the new ones."""
    epsilon, momentum = op.attribute("epsilon", 1e-5), op.attribute("momentum", 0.9)
    # Before operator set 14 the number of outputs said which mode is meant.
    if op.attribute("training_mode", 0) or (op.opset < 14 and op.outputs > 1):
        statistics = [_constant_or_tensor(op, position) for position in (3, 4)]
        results = op.call(batch_norm_training, op.tensor(0), op.tensor(1), op.tensor(2), *statistics, epsilon, momentum)
        # The fourth and fifth output of old versions are scratch space whose meaning ONNX leaves open.
        return [op.item(results, index) for index in range(min(op.outputs, 3))]
    stored = [op.stored(position) for position in range(1, 5)]
    weight, bias, mean, variance = stored
    if weight is None or bias is None or mean is None or variance is None:
        statistics = [_constant_or_tensor(op, position) for position in (3, 4)]
        return op.call(normalize_channels, op.tensor(0), *statistics, op.tensor(1), op.tensor(2), epsilon)
    kind = _BATCH_NORM.get(op.rank(0) or 0, BatchNormOfAnyRank)
    (scale,) = op.parameters(weight)
    layer = kind(scale.shape[0], eps=epsilon, momentum=1 - momentum, device="meta")
    layer.weight = scale
    (layer.bias,) = op.parameters(bias)
    layer.running_mean, layer.running_var = op.statistics(mean), op.statistics(variance)
    layer.num_batches_tracked = torch.tensor(0)
    return op.layer(layer, op.tensor(0), named_after=(weight, bias))


def _constant_or_tensor(op: OperatorCall, position: int) -> Any:
    """Stored statistics are no weights, whatever the rest of the node is."""
    known = op.constant(position)
    return op.tensor(position) if known is None else known


def normalize_channels(
    x: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    epsilon: float,
) -> torch.Tensor:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias along axis 1.

    The gradient reaches computed statistics too, as weight standardization needs it and torch's own has it not.
    """
    shape = (1, -1, *[1] * (x.dim() - 2))
    factor = scale * torch.rsqrt(variance + epsilon)
    return x * factor.reshape(shape) + (bias - mean * factor).reshape(shape)


def batch_norm_training(
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
    epsilon: float,
    momentum: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normalize by the batch's own statistics; also gives the updated running ones (biased variance, as in ONNX)."""
    axes = [axis for axis in range(x.dim()) if axis != 1]
    now_mean, now_variance = x.mean(axes), x.var(axes, unbiased=False)
    y = functional.batch_norm(x, None, None, scale, bias, True, 0.0, epsilon)
    return (
        y,
        mean * momentum + now_mean * (1 - momentum),
        variance * momentum + now_variance * (1 - momentum),
    )


@operator("InstanceNormalization")
def instance_normalization(op: OperatorCall) -> Any:
    return op.call(instance_norm, op.tensor(0), op.tensor(1), op.tensor(2), op.attribute("epsilon", 1e-5))


def instance_norm(x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Normalize each channel of each sample; unlike torch's, also where a channel has a single position."""
    return functional.group_norm(x, x.shape[1], scale, bias, epsilon)


@operator("LayerNormalization")
def layer_normalization(op: OperatorCall) -> Any:
    """`nn.LayerNorm` where all trailing axes carry stored scale and bias."""
    epsilon, axis = op.attribute("epsilon", 1e-5), op.attribute("axis", -1)
    stash = torch_dtype(op.attribute("stash_type", 1))
    weight, bias = op.stored(1), op.stored(2)
    shape, rank = op.shape(1), op.rank(0)
    trailing = rank is not None and shape is not None and len(shape) == rank - axis % rank
    if op.outputs == 1 and weight and trailing and (bias or not op.has(2)):
        (scale,) = op.parameters(weight)
        layer = nn.LayerNorm(scale.shape, eps=epsilon, bias=bias is not None, device="meta")
        layer.weight = scale
        if bias is not None:
            (layer.bias,) = op.parameters(bias)
        return op.layer(layer, op.tensor(0), named_after=(weight, bias))
    results = op.call(layer_norm, op.tensor(0), op.tensor(1), op.optional(2), axis, epsilon, stash)
    return [op.item(results, index) for index in range(op.outputs)]


def layer_norm(
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    axis: int,
    epsilon: float,
    stash: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normalize over the axes from `axis` on; statistics in the type `stash`, scale and bias broadcast.

    Returns:
        The result, the mean and the inverse standard deviation.
    """
    axes = list(range(axis % x.dim(), x.dim()))
    wide = x.to(stash)
    mean = wide.mean(axes, keepdim=True)
    inverse = torch.rsqrt((wide - mean).square().mean(axes, keepdim=True) + epsilon)
    y = ((wide - mean) * inverse).to(x.dtype) * scale
    return (y if bias is None else y + bias), mean, inverse


@operator("RMSNormalization")
def rms_normalization(op: OperatorCall) -> Any:
    stash = torch_dtype(op.attribute("stash_type", 1))
    return op.call(rms_norm, op.tensor(0), op.tensor(1), op.attribute("axis", -1), op.attribute("epsilon", 1e-5), stash)


def rms_norm(x: torch.Tensor, scale: torch.Tensor, axis: int, epsilon: float, stash: torch.dtype) -> torch.Tensor:
    """X / sqrt(mean(x^2) + epsilon) * scale. Zhang and Sennrich 2019, "Root Mean Square Layer Normalization"."""
    axes = list(range(axis % x.dim(), x.dim()))
    wide = x.to(stash)
    return (wide * torch.rsqrt(wide.square().mean(axes, keepdim=True) + epsilon)).to(x.dtype) * scale


@operator("GroupNormalization", since=21)
def group_normalization(op: OperatorCall) -> Any:
    groups, epsilon = op.attribute("num_groups"), op.attribute("epsilon", 1e-5)
    weight, bias = op.stored(1), op.stored(2)
    if weight and bias:
        (scale,) = op.parameters(weight)
        layer = nn.GroupNorm(groups, scale.shape[0], eps=epsilon, device="meta")
        layer.weight = scale
        (layer.bias,) = op.parameters(bias)
        return op.layer(layer, op.tensor(0), named_after=(weight, bias))
    return op.call(functional.group_norm, op.tensor(0), groups, op.tensor(1), op.tensor(2), epsilon)


@operator("GroupNormalization")
def group_normalization_per_group(op: OperatorCall) -> Any:
    """Operator set 18: one scale and bias per group rather than per channel."""
    return op.call(
        group_norm_per_group,
        op.tensor(0),
        op.tensor(1),
        op.tensor(2),
        op.attribute("num_groups"),
        op.attribute("epsilon", 1e-5),
    )


def group_norm_per_group(
    x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, groups: int, epsilon: float
) -> torch.Tensor:
    channels = x.shape[1] // groups
    return functional.group_norm(
        x, groups, scale.repeat_interleave(channels), bias.repeat_interleave(channels), epsilon
    )


@operator("LpNormalization")
def lp_normalization(op: OperatorCall) -> Any:
    return op.call(lp_normalize, op.tensor(0), op.attribute("p", 2), op.attribute("axis", -1))


def lp_normalize(x: torch.Tensor, p: int, axis: int) -> torch.Tensor:
    """Divide by the norm along an axis; where the norm is zero, so is the result."""
    norm = x.norm(p, axis, keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / torch.where(norm == 0, torch.ones_like(norm), norm))


@operator("LRN")
def local_response_normalization(op: OperatorCall) -> Any:
    return op.call(
        local_response_norm,
        op.tensor(0),
        op.attribute("size"),
        op.attribute("alpha", 0.0001),
        op.attribute("beta", 0.75),
        op.attribute("bias", 1.0),
    )


def local_response_norm(x: torch.Tensor, size: int, alpha: float, beta: float, bias: float) -> torch.Tensor:
    """Divide by a power of the energy in neighbouring channels; an even window reaches one further up than torch's."""
    before = (size - 1) // 2
    flat = x.square().flatten(2).transpose(1, 2) if x.dim() > 2 else x.square().unsqueeze(1)
    windows = functional.pad(flat, (before, size - 1 - before)).unfold(-1, size, 1).sum(-1)
    energy = windows.transpose(1, 2).reshape(x.shape) if x.dim() > 2 else windows.squeeze(1)
    return x / (bias + alpha / size * energy) ** beta


@operator("MeanVarianceNormalization")
def mean_variance_normalization(op: OperatorCall) -> Any:
    return op.call(mean_variance_normalize, op.tensor(0), op.attribute("axes", [0, 2, 3]))


def mean_variance_normalize(x: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    """(x - mean) / sqrt(variance), with the small constant inside the quotient that ONNX's definition has."""
    centred = x - x.mean(list(axes), keepdim=True)
    return centred / (centred.square().mean(list(axes), keepdim=True).sqrt() + 1e-9)


@operator("Dropout")
def dropout(op: OperatorCall) -> Any:
    """`nn.Dropout`: active when the module trains; an input `training_mode` that is true or computed decides itself."""
    ratio = op.attribute("ratio", 0.5) if op.opset < 12 else op.number(1, 0.5)
    training = op.number(2, False)
    x = op.tensor(0)
    if training is not False or not isinstance(ratio, (int, float)):
        results = op.call(drop, x, ratio, training)
        return [op.item(results, index) for index in range(op.outputs)]
    y = op.layer(nn.Dropout(ratio), x)
    return [y, op.call(torch.ones_like, x, dtype=torch.bool)] if op.wants(1) else y


def drop(x: torch.Tensor, ratio: float, training: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Zero a share of the elements and scale up the others; also the mask of those kept."""
    if not training or ratio == 0:
        return x, torch.ones_like(x, dtype=torch.bool)
    kept = torch.rand_like(x) >= ratio
    return torch.where(kept, x / (1 - ratio), torch.zeros_like(x)), kept
