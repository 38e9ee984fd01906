"""Pruning while the network trains: masks that grow, and a network that learns to do without."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch

from compression.context import Context
from compression.data.feed import ModelFeed
from compression.graph.weights import Array, Weight
from compression.pruning.activations import input_norms, with_norms
from compression.pruning.masks import masks
from compression.pruning.spec import Prune
from compression.pruning.step import sparsity_report
from compression.training.constraints import NoConstraint
from compression.training.step import TrainingMaterial, train_with
from compression.training.trainee import TrainableWeight, Trainee

# Masks are renewed this many times along a gradual schedule; weights need steps in between to settle.
_RENEWALS = 60
# A criterion that training measures needs some steps before its first word.
_MEASURED_SHARE = 0.02
# Weight of the newest step in Taylor's running mean.
_TAYLOR_MOMENTUM = 0.05


def prune_in_training(
    model: onnx.ModelProto,
    spec: Prune,
    context: Context,
    material: TrainingMaterial,
    calibration: ModelFeed | None = None,
) -> tuple[onnx.ModelProto, dict[str, object]]:
    """Zero the least important weights along the spec's schedule while the network trains.

    Returns:
        The pruned and trained model, its sparsity per weight, and how training went.

    Raises:
        StepFailed: `unknown_name`, `no_weights`, `non_finite_weights`, `operator_not_importable`, `loss_not_finite`.
        DataRejected: the dataset does not serve this training.
    """
    if spec.training is None:
        raise ValueError("the spec has no training")
    trainee = Trainee(model, context.device)
    weights = trainee.weights(spec.include, spec.exclude)
    norms: Mapping[str, Array] = {}
    if spec.criterion == "wanda" and calibration is not None:
        norms = input_norms(model, [weight.weight for weight in weights], calibration, context)
    masking = Masking(weights, spec, norms)
    report = train_with(trainee, spec.training, context, material, weights=weights, constraints=[masking])
    pruned = trainee.written_back()
    details = sparsity_report(model, pruned, [weight.weight for weight in weights], masking.skipped)
    return pruned, details | {"training": report.details()}


class Masking(NoConstraint):
    """Keeps the weights that are pruned so far at zero, and prunes more as the schedule says.

    Args:
        weights: What is pruned.
        spec: Criterion, amount and schedule.
        norms: For `wanda`, the norms of the weights' inputs by weight name.

    Attributes:
        skipped: Why weights are left as they are, by name.
    """

    def __init__(self, weights: Sequence[TrainableWeight], spec: Prune, norms: Mapping[str, Array]) -> None:
        self._weights = weights
        self._spec = spec
        self._norms = norms
        self._share = 0.0
        self._masks: dict[str, tuple[torch.Tensor, ...]] = {}
        self._scores: dict[str, torch.Tensor] = {}
        self.skipped: dict[str, str] = {}

    def before_step(self, progress: float) -> None:
        wanted = share_due(self._spec, progress)
        if wanted > self._share:
            self._share = wanted
            self._renew()

    def is_settled(self, progress: float) -> bool:
        return share_due(self._spec, progress) >= 1 and self._share >= 1

    @torch.no_grad()
    def after_backward(self) -> None:
        if self._share >= 1 or self._spec.criterion not in ("taylor", "movement"):
            return
        for weight in self._weights:
            gradient = weight.gradient()
            if gradient is None:
                continue
            product = weight.values() * gradient
            kept = self._scores.get(weight.weight.name)
            if self._spec.criterion == "movement":  # Sanh et al. 2020, equation 4
                self._scores[weight.weight.name] = -product if kept is None else kept - product
            else:  # Molchanov et al. 2019, equation 8
                new = product.square()
                self._scores[weight.weight.name] = new if kept is None else kept.lerp(new, _TAYLOR_MOMENTUM)

    @torch.no_grad()
    def after_step(self) -> None:
        for weight in self._weights:
            for parameter, kept in zip(weight.parameters, self._masks.get(weight.weight.name, ()), strict=False):
                parameter.mul_(kept)

    def state(self) -> Mapping[str, Any]:
        return {"share": self._share, "masks": self._masks, "scores": self._scores, "skipped": self.skipped}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._share, self._scores, self.skipped = state["share"], state["scores"], state["skipped"]
        self._masks = {name: tuple(parts) for name, parts in state["masks"].items()}
        for weight in self._weights:
            device = weight.parameters[0].device
            name = weight.weight.name
            self._masks[name] = tuple(part.to(device) for part in self._masks.get(name, ()))

    def _renew(self) -> None:
        found, self.skipped = masks(self._saliencies(), self._spec, self._share)
        for weight in self._weights:
            mask = found.get(weight.weight.name)
            if mask is not None:
                kept = torch.from_numpy(np.ascontiguousarray(~mask)).to(weight.parameters[0].dtype)
                self._masks[weight.weight.name] = weight.split(kept)
        self.after_step()

    def _saliencies(self) -> Iterator[tuple[Weight, Array]]:
        if self._spec.criterion in ("magnitude", "wanda"):
            values = ((weight.weight, weight.values().float().numpy()) for weight in self._weights)
            return with_norms(values, self._norms)
        return self._measured()

    def _measured(self) -> Iterator[tuple[Weight, Array]]:
        """Scores that training has measured, above those of what is gone already."""
        lowest = min((float(score.min()) for score in self._scores.values()), default=0.0)
        for weight in self._weights:
            name = weight.weight.name
            score = self._scores.get(name)
            if score is None:
                score = weight.values().abs()
            # Ranking is by absolute value: shift the scores to where that is their own order.
            saliency = (score - lowest + 1e-12).float()
            gone = self._masks.get(name)
            if gone is not None:
                saliency = saliency * weight.layout.join([part.cpu() for part in gone])
            yield weight.weight, saliency.numpy()


def share_due(spec: Prune, progress: float) -> float:
    """How much of the final sparsity is due when a share `progress` of the training is done.

    Gradual: 1 - (1 - t)³ with t from 0 at `begin` to 1 at `end`, in a number of renewals (Zhu and Gupta 2017,
    equation 1).

    >>> share_due(Prune(amount=0.9, schedule="iterative", rounds=2, begin=0.0, end=0.8, training={}), 0.1)
    0.5
    """
    begin = spec.begin
    if spec.criterion in ("taylor", "movement"):
        begin = max(begin, _MEASURED_SHARE)
    if progress < begin:
        return 0.0
    if spec.schedule == "one_shot":
        return 1.0
    if progress >= spec.end:
        return 1.0
    done = (progress - begin) / (spec.end - begin)
    if spec.schedule == "iterative":
        return (math.floor(done * spec.rounds) + 1) / spec.rounds
    done = math.floor(done * _RENEWALS + 1) / _RENEWALS
    return min(1 - (1 - done) ** 3, 1.0)
