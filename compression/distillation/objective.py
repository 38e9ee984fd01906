"""The sum of all that a student is taught by, computed for one batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from compression.distillation import losses
from compression.distillation.features import Activation, Pair, Tap, Tensors, aligned, pooled
from compression.distillation.spec import Distill
from compression.distillation.students.network import Form
from compression.errors import DataRejected
from compression.training.dataset import TrainingBatch
from compression.training.objectives import Supervised, soft_cross_entropy

Comparison = Literal["softmax", "sigmoid", "values"]
"""How outputs are compared: as one distribution, as one yes/no distribution for each, or as numbers."""

# Relations between three of n samples are n³ numbers.
_MOST_RELATED = 64


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
    form: Form, wanted: Literal["auto", "distributions", "values"], target: torch.Tensor | None
) -> Comparison:
    """How to compare an output with the teacher's.

    Args:
        form: What it is.
        wanted: What the spec says.
        target: What the dataset says of this output for some samples, or None.
    """
    if wanted == "values":
        return "values"
    if form.ending in ("softmax", "log_softmax"):
        return "softmax"
    several = bool(form.shape) and form.shape[-1] > 1
    distribution: Comparison = "softmax" if several else "sigmoid"
    if form.ending == "sigmoid":
        return "sigmoid"
    if wanted == "distributions":
        return distribution
    if target is not None:
        return "values" if target.is_floating_point() else distribution
    return "softmax" if several and len(form.shape) == 1 and not form.each_position else "values"


class Distillation:
    """The loss of one student.

    Args:
        spec: Terms and their weights.
        inside: Activations to compare.
        forms: One for each output.
        comparisons: Likewise.
        samples: The teacher's outputs for some samples, in whose spread values are measured.
        student: Gives scores, and the student's side of `inside.pairs`.
        teacher: Gives outputs, and the teacher's side; None where batches carry the outputs and no activations are
            compared.

    Attributes:
        comparisons: One for each output.
    """

    def __init__(
        self,
        spec: Distill,
        inside: Inside,
        *,
        forms: Sequence[Form],
        comparisons: Sequence[Comparison],
        samples: Tensors,
        student: Tap,
        teacher: Tap | None,
    ) -> None:
        self._spec = spec
        self._forms = tuple(forms)
        self._inside = inside
        self.comparisons = tuple(comparisons)
        self._spreads = [_spread(output) for output in samples]
        self._teacher = teacher
        self._student = student
        self._supervised = Supervised(spec.training, normalized=False)
        device = samples[0].device
        self._projections = nn.ModuleList(
            nn.Linear(pair.student.channels, pair.teacher.channels) for pair in inside.features
        ).to(device)

    def parameters(self) -> Iterable[nn.Parameter]:
        return self._projections.parameters()

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
        scores, ours = self._student.run(batch.inputs)
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
        form, target = self._forms[0], batch.target
        if target is None:
            raise ValueError("the batch has no labels")
        if target.is_floating_point():
            found = self._supervised.loss_of((form.finish(scores),), TrainingBatch(batch.inputs, target))
            # Squared errors in the unit of the teacher's, so that both weigh the same whatever is measured.
            return found if self._spec.training.loss == "cosine" else found / self._spreads[0].square()
        if form.ending != "sigmoid" and scores.shape[-1] > 1 and scores.dim() > target.dim():
            return self._supervised.loss_of((scores,), TrainingBatch(batch.inputs, target))
        return _yes_or_no(scores, target)

    def _against_outputs(self, scores: Tensors, outputs: Tensors, temperature: float) -> torch.Tensor:
        found = []
        for form, kind, spread, score, output in zip(
            self._forms, self.comparisons, self._spreads, scores, outputs, strict=True
        ):
            if kind == "values":
                error = (form.finish(score) - output.to(score.dtype)) / spread
                found.append(error.square().mean())
                continue
            wanted = form.scores(output.to(score.dtype))
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
        ours, theirs = ours[:_MOST_RELATED], theirs[:_MOST_RELATED]
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
