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
from compression.graph.weights import Array, Weight, find_weights, select
from compression.pruning.activations import input_norms, with_norms
from compression.pruning.masks import masks
from compression.pruning.spec import Prune
from compression.pruning.step import sparsity_report, zeros
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
        StepFailed: `unknown_name`, `no_weights`, `operator_not_importable`, `unsupported_by_runtime` (criterion
            `wanda`), or what `compression.training.loop.train` raises.
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
    chosen = select([weight for weight in find_weights(model) if not weight.is_embedding], spec.include, spec.exclude)
    constant = {weight.name for weight in chosen} - {weight.weight.name for weight in weights}
    skipped = dict.fromkeys(constant, "training takes it for a constant") | masking.skipped
    sparsity = sparsity_report(chosen, zeros(model, chosen), zeros(pruned, chosen), skipped)
    return pruned, sparsity | {"training": report.details()}


class Masking(NoConstraint):
    """Keeps the weights that are pruned so far at zero, and prunes more as the schedule says.

    Weights that are zero at the start count as pruned.

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
        # Per weight, and laid out like its parameters: True where it is pruned.
        self._gone = {
            weight.weight.name: tuple(parameter.detach() == 0 for parameter in weight.parameters) for weight in weights
        }
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
        # Not a product: that makes negative zeros, whose signs are noise that no compressor takes out of the file.
        for weight in self._weights:
            for parameter, gone in zip(weight.parameters, self._gone[weight.weight.name], strict=True):
                parameter.masked_fill_(gone, 0.0)

    def state(self) -> Mapping[str, Any]:
        return {"share": self._share, "gone": self._gone, "scores": self._scores, "skipped": self.skipped}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._share, self._scores, self.skipped = state["share"], state["scores"], state["skipped"]
        for weight in self._weights:
            parts = zip(weight.parameters, state["gone"][weight.weight.name], strict=True)
            self._gone[weight.weight.name] = tuple(gone.to(parameter.device) for parameter, gone in parts)

    def _renew(self) -> None:
        found, self.skipped = masks(self._saliencies(), self._spec, self._share)
        for weight in self._weights:
            mask = found.get(weight.weight.name)
            if mask is not None:
                new = weight.split(torch.from_numpy(np.ascontiguousarray(mask)))
                old = self._gone[weight.weight.name]
                self._gone[weight.weight.name] = tuple(one | other for one, other in zip(old, new, strict=True))
        self.after_step()

    def _saliencies(self) -> Iterator[tuple[Weight, Array]]:
        """What weights are ranked by; those that are gone have 0, the others more."""
        plain = ((weight.weight, weight.values().float().numpy()) for weight in self._weights)
        measured = self._spec.criterion in ("taylor", "movement")
        found = self._measured() if measured else with_norms(plain, self._norms)
        for weight, (known, saliency) in zip(self._weights, found, strict=True):
            gone = weight.layout.join(self._gone[known.name]).cpu().numpy()
            yield known, np.where(gone, np.float32(0), np.maximum(np.abs(saliency), np.finfo(np.float32).tiny))

    def _measured(self) -> Iterator[tuple[Weight, Array]]:
        """Scores that training has measured, moved to where the lowest of all is 0: masks rank by absolute value."""
        lowest = min((float(score.min()) for score in self._scores.values()), default=0.0)
        for weight in self._weights:
            score = self._scores.get(weight.weight.name)
            yield weight.weight, (weight.values().abs() if score is None else score - lowest).float().numpy()


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
