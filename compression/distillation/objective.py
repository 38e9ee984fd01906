"""The sum of all that a student is taught by, computed for one batch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from compression.distillation import losses
from compression.distillation.features import Activation, Pair, StudentTap, Tap, Tensors, aligned, pooled
from compression.distillation.spec import Distill
from compression.distillation.students.network import Head, Student
from compression.errors import DataRejected
from compression.training.dataset import TrainingBatch
from compression.training.objectives import Supervised, soft_cross_entropy

Comparison = Literal["softmax", "sigmoid", "values"]
"""How outputs are compared: as one distribution, as one yes/no distribution for each, or as numbers."""

# Probabilities closer to 0 or 1 than this have no logarithm worth following in float32.
_SMALLEST_PROBABILITY = 1e-12
_SMALLEST_DOUBT = 1e-6
# Relations between n samples with f features need n² f numbers; batches are cut to this many, and to 64 samples.
_MOST_RELATED, _MOST_SAMPLES, _FEWEST_SAMPLES = 1 << 22, 64, 8


@dataclass(frozen=True)
class Inside:
    """Activations that are compared.

    Attributes:
        features: Pairs for the features' loss.
        attention: Pairs for the attention's.
        relations: The pair for the relations', or None.
    """

    features: tuple[Pair, ...] = ()
    attention: tuple[Pair, ...] = ()
    relations: Pair | None = None

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """All of them, in this order."""
        last = () if self.relations is None else (self.relations,)
        return (*self.features, *self.attention, *last)


def comparison(
    head: Head, wanted: Literal["auto", "distributions", "values"], target: torch.Tensor | None
) -> Comparison:
    """How to compare an output with the teacher's.

    Args:
        head: The student's head for it.
        wanted: What the spec says.
        target: What the dataset says of this output for some samples, or None.
    """
    if wanted == "values":
        return "values"
    if head.ending in ("softmax", "log_softmax"):
        return "softmax"
    several = bool(head.shape) and head.shape[-1] > 1
    distribution: Comparison = "softmax" if several else "sigmoid"
    if head.ending == "sigmoid":
        return "sigmoid"
    if wanted == "distributions":
        return distribution
    if target is not None:
        return "values" if target.is_floating_point() else distribution
    return "softmax" if several and len(head.shape) == 1 and not head.each_position else "values"


def scores_of(output: torch.Tensor, head: Head) -> torch.Tensor:
    """What a teacher had before its softmax or sigmoid; of a softmax up to a constant, which changes nothing."""
    match head.ending:
        case "softmax":
            return output.clamp_min(_SMALLEST_PROBABILITY).log()
        case "sigmoid":
            return torch.logit(output, _SMALLEST_DOUBT)
        case "log_softmax" | "none":
            return output


class Distillation:
    """The loss of one student.

    Args:
        spec: Terms and their weights.
        student: On its device.
        inside: Activations to compare.
        comparisons: One for each output.
        samples: The teacher's outputs for some samples, in whose spread values are measured.
        teacher: Gives outputs and the teacher's side of `inside.pairs`; None where batches carry the outputs and no
            activations are compared.

    Attributes:
        comparisons: One for each output.
    """

    def __init__(
        self,
        spec: Distill,
        student: Student,
        inside: Inside,
        *,
        comparisons: Sequence[Comparison],
        samples: Tensors,
        teacher: Tap | None,
    ) -> None:
        self._spec = spec
        self._student = student
        self._heads = student.all_heads
        self._inside = inside
        self.comparisons = tuple(comparisons)
        self._spreads = [_spread(output) for output in samples]
        self._teacher = teacher
        self._tap = StudentTap(student, [pair.student for pair in inside.pairs])
        self._supervised = Supervised(spec.training, normalized=False)
        device = samples[0].device
        self._projections = nn.ModuleList(
            nn.Linear(pair.student.channels, pair.teacher.channels) for pair in inside.features
        ).to(device)

    def parameters(self) -> Iterable[nn.Parameter]:
        return self._projections.parameters()

    def close(self) -> None:
        """Leave the student as it was: nothing notes its activations any more."""
        self._tap.close()

    def loss(self, module: nn.Module, batch: TrainingBatch) -> torch.Tensor:  # noqa: ARG002 - it is the student
        return _sum(self.terms(batch)[0])

    def correct(self, module: nn.Module, batch: TrainingBatch) -> tuple[torch.Tensor, torch.Tensor | None]:  # noqa: ARG002
        terms, scores = self.terms(batch)
        target = batch.target
        if target is None or target.is_floating_point():
            return _sum(terms), None
        if scores[0].shape[-1] == 1 or scores[0].dim() == target.dim():
            return _sum(terms), (scores[0].reshape(target.shape) > 0) == (target > 0)
        return _sum(terms), scores[0].argmax(-1) == target

    def terms(self, batch: TrainingBatch) -> tuple[dict[str, tuple[float, torch.Tensor]], Tensors]:
        """Every term by name with its factor, and the student's scores."""
        scores, ours = self._tap.run(batch.inputs)
        if self._teacher is not None:
            with torch.no_grad():
                outputs, theirs = self._teacher.run(batch.inputs)
        else:
            outputs, theirs = batch.teacher or (), ()
        spec = self._spec
        terms: dict[str, tuple[float, torch.Tensor]] = {}
        if batch.target is not None and spec.labels:
            terms["labels"] = spec.labels, self._against_labels(scores[0], batch)
        if spec.logits is not None:
            terms["logits"] = spec.logits.weight, self._against_outputs(scores, outputs, spec.logits.temperature)
        pairs = [aligned(one, other) for one, other in zip(ours, theirs, strict=True)]
        features, attention = len(self._inside.features), len(self._inside.attention)
        if spec.features is not None and features:
            terms["features"] = spec.features.weight, self._features(pairs[:features])
        if spec.attention is not None and attention:
            found = [losses.attention_distance(*pair) for pair in pairs[features : features + attention]]
            terms["attention"] = spec.attention.weight, torch.stack(found).mean()
        if spec.relations is not None and self._inside.relations is not None:
            terms["relations"] = spec.relations.weight, self._relations(pooled(ours[-1]), pooled(theirs[-1]))
        return terms, scores

    def _against_labels(self, scores: torch.Tensor, batch: TrainingBatch) -> torch.Tensor:
        head, target = self._heads[0], batch.target
        if target is None:
            raise ValueError("the batch has no labels")
        if target.is_floating_point():
            found = self._supervised.loss_of((head.finish(scores),), TrainingBatch(batch.inputs, target))
            # Squared errors in the unit of the teacher's, so that both weigh the same whatever is measured.
            return found if self._spec.training.loss == "cosine" else found / self._spreads[0].square()
        if head.ending != "sigmoid" and scores.shape[-1] > 1 and scores.dim() > target.dim():
            return self._supervised.loss_of((scores,), TrainingBatch(batch.inputs, target))
        return _yes_or_no(scores, target)

    def _against_outputs(self, scores: Tensors, outputs: Tensors, temperature: float) -> torch.Tensor:
        found = []
        for head, kind, spread, score, output in zip(
            self._heads, self.comparisons, self._spreads, scores, outputs, strict=True
        ):
            if kind == "values":
                error = (head.finish(score) - output.to(score.dtype)) / spread
                found.append(error.square().mean())
                continue
            wanted = scores_of(output.to(score.dtype), head)
            divergence = soft_cross_entropy if kind == "softmax" else losses.soft_binary_cross_entropy
            found.append(divergence(score, wanted, temperature))
        return torch.stack(found).mean()

    def _features(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        found = []
        for projection, (ours, theirs) in zip(self._projections, pairs, strict=True):
            projected = projection(ours.movedim(1, -1)).movedim(-1, 1)
            found.append(losses.relative_squared_error(projected, theirs))
        return torch.stack(found).mean()

    def _relations(self, ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
        spec = self._spec.relations
        if spec is None:
            raise ValueError("the spec has no relations")
        widest = max(ours.shape[1], theirs.shape[1])
        most = min(_MOST_SAMPLES, max(_FEWEST_SAMPLES, math.isqrt(_MOST_RELATED // widest)))
        ours, theirs = ours[:most], theirs[:most]
        found = []
        if spec.distance:
            found.append(spec.distance * losses.relation_distance(ours, theirs))
        if spec.angle:
            found.append(spec.angle * losses.relation_angle(ours, theirs))
        return torch.stack(found).sum()


def _sum(terms: dict[str, tuple[float, torch.Tensor]]) -> torch.Tensor:
    return torch.stack([factor * term.float() for factor, term in terms.values()]).sum()


def _spread(outputs: torch.Tensor) -> torch.Tensor:
    """Standard deviation of all values around their own mean over the samples; 1 where nothing varies."""
    spread = (outputs - outputs.mean(0)).float().square().mean().sqrt()
    return torch.where(spread > 0, spread, torch.ones_like(spread))


def _yes_or_no(scores: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of scores that each say yes or no: one for the sample, or one for each class."""
    classes = scores.shape[-1] if scores.dim() > target.dim() else 1
    most = int(target.max())
    if most >= max(classes, 2) or int(target.min()) < 0:
        raise DataRejected(
            "labels_invalid",
            f"The training dataset has label {most}, the model's first output tells {max(classes, 2)} apart.",
        )
    if classes == 1:
        return functional.binary_cross_entropy_with_logits(scores.reshape(target.shape), target.to(scores.dtype))
    wanted = functional.one_hot(target, classes).to(scores.dtype)
    return functional.binary_cross_entropy_with_logits(scores, wanted)


def describe(activation: Activation) -> dict[str, object]:
    """An activation for the report."""
    return {
        "name": activation.name,
        "channels": activation.channels,
        "positions": list(activation.positions),
        "depth": round(activation.depth, 3),
    }
