"""What training minimizes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional

from compression.errors import DataRejected, StepFailed
from compression.graph.to_torch import as_tuple
from compression.training.dataset import TrainingBatch
from compression.training.spec import Training

# What `functional.cross_entropy` leaves out.
_IGNORED = -100


@dataclass(frozen=True)
class Score:
    """How well a model does on validation samples.

    Attributes:
        loss: Mean loss, lower is better.
        accuracy: Share of right classes, where there are classes.
    """

    loss: float
    accuracy: float | None = None

    def is_better_than(self, other: Score | None) -> bool:
        """By accuracy first, by loss where accuracies are equal or missing."""
        if other is None:
            return True
        mine, theirs = self.accuracy or 0.0, other.accuracy or 0.0
        return (mine, -self.loss) > (theirs, -other.loss)


class Objective(Protocol):
    """A loss, with whatever it needs beside the module that is trained."""

    def loss(self, module: nn.Module, batch: TrainingBatch) -> torch.Tensor:
        """Run the module on a batch and give a scalar to minimize."""

    def parameters(self) -> Iterable[nn.Parameter]:
        """Parameters of its own that are trained along, such as projections."""

    def correct(self, module: nn.Module, batch: TrainingBatch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The loss of a batch, and for each prediction whether it is right, or None where nothing can be right."""


def outputs_of(module: nn.Module, batch: TrainingBatch) -> tuple[torch.Tensor, ...]:
    """All outputs of the module, in its order."""
    outputs = module(*batch.inputs)
    return as_tuple(outputs)


class Supervised:
    """The loss against labels or targets, mixed with the loss against a teacher's outputs.

    Args:
        spec: Which loss, and the teacher's share.
        normalized: The model's first output are probabilities rather than logits.
    """

    def __init__(self, spec: Training, *, normalized: bool) -> None:
        self._spec = spec
        self._normalized = normalized

    def parameters(self) -> Iterable[nn.Parameter]:
        return ()

    def loss(self, module: nn.Module, batch: TrainingBatch) -> torch.Tensor:
        return self.loss_of(outputs_of(module, batch), batch)

    def correct(self, module: nn.Module, batch: TrainingBatch) -> tuple[torch.Tensor, torch.Tensor | None]:
        outputs = outputs_of(module, batch)
        loss = self.loss_of(outputs, batch)
        target = batch.target
        if target is None or target.is_floating_point():
            return loss, None
        _check_classes(outputs[0], target)
        return loss, (outputs[0].argmax(-1) == target)[target >= 0]

    def loss_of(self, outputs: tuple[torch.Tensor, ...], batch: TrainingBatch) -> torch.Tensor:
        """The loss of outputs that were computed already.

        Raises:
            DataRejected: `labels_missing`, `labels_invalid` or `labels_out_of_range`.
            StepFailed: `output_not_trainable` when the model's first output holds no floats.
        """
        if not outputs[0].is_floating_point():
            kind = str(outputs[0].dtype).removeprefix("torch.")
            raise StepFailed(
                "output_not_trainable",
                f"The model's first output holds {kind}, which has no gradient; put the scores before it first.",
            )
        terms: list[tuple[float, torch.Tensor]] = []
        share = 0.0 if batch.teacher is None else 1.0 if batch.target is None else self._spec.teacher_weight
        if batch.target is not None and share < 1:
            terms.append((1 - share, self._against_target(outputs[0], batch.target)))
        if batch.teacher is not None and share > 0:
            terms.append((share, self._against_teacher(outputs[0], batch.teacher[0], batch.target)))
        if not terms:
            raise DataRejected(
                "labels_missing",
                "This training needs 'labels' or 'targets' in the training dataset, or a teacher: set "
                "training.teacher to 'original'.",
            )
        return torch.stack([weight * term for weight, term in terms]).sum()

    def _against_target(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        kind = self._spec.loss
        if kind == "auto":
            kind = "mse" if target.is_floating_point() else "cross_entropy"
        if (kind == "cross_entropy") == target.is_floating_point():
            wanted = "whole numbers in 'labels'" if kind == "cross_entropy" else "floats in 'targets'"
            raise DataRejected("labels_invalid", f"Loss '{kind}' needs {wanted} in the training dataset.")
        if kind == "cross_entropy":
            return cross_entropy(self.logits(output), target, self._spec.label_smoothing)
        target = _fitted(target.to(output.dtype), output)
        if kind == "cosine":
            return (1 - functional.cosine_similarity(output, target, dim=-1)).mean()
        return functional.mse_loss(output, target)

    def _against_teacher(
        self, output: torch.Tensor, teacher: torch.Tensor, target: torch.Tensor | None
    ) -> torch.Tensor:
        no_classes = output.dim() < 2 or output.shape[-1] == 1 or (target is not None and target.is_floating_point())
        if self._spec.loss in ("mse", "cosine") or no_classes:
            return functional.mse_loss(output, teacher)
        return soft_cross_entropy(self.logits(output), self.logits(teacher), self._spec.temperature)

    def logits(self, output: torch.Tensor) -> torch.Tensor:
        """The output as logits: the logarithm of probabilities is one choice of them."""
        # A larger bound would take the gradient from samples that the model is surely wrong about.
        return output.clamp_min(torch.finfo(output.dtype).tiny).log() if self._normalized else output


def _fitted(target: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """The target in the output's shape; (n,) serves an output of (n, 1)."""
    if target.numel() != output.numel() or target.shape[:1] != output.shape[:1]:
        raise DataRejected(
            "labels_invalid",
            f"'targets' has samples of shape {list(target.shape[1:])}, the model's output {list(output.shape[1:])}.",
        )
    return target.reshape(output.shape)


def cross_entropy(logits: torch.Tensor, target: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """Mean cross-entropy of classes, or of tokens.

    Args:
        logits: (n, classes), or (n, positions, classes) for tokens.
        target: (n,) or (n, positions) int64; negative entries are left out, and the loss is 0 when all are.
        label_smoothing: Share that is spread over all classes.

    Raises:
        DataRejected: `labels_invalid` or `labels_out_of_range`.
    """
    _check_classes(logits, target)
    wanted = target.masked_fill(target < 0, _IGNORED).flatten()
    total = functional.cross_entropy(
        logits.flatten(0, -2), wanted, ignore_index=_IGNORED, label_smoothing=label_smoothing, reduction="sum"
    )
    return total / (wanted >= 0).sum().clamp_min(1)


def _check_classes(logits: torch.Tensor, target: torch.Tensor) -> None:
    """Raise `DataRejected` where the target's entries are no classes that the logits' last axis tells apart."""
    if logits.shape[:-1] != target.shape:
        raise DataRejected(
            "labels_invalid",
            f"Labels of shape {list(target.shape)} need outputs of shape {[*target.shape, 'classes']}; the model "
            f"gives {list(logits.shape)}.",
        )
    classes = logits.shape[-1]
    if classes == 1:
        raise DataRejected(
            "labels_invalid",
            "The model's first output is a single score, which is no choice of a class; give what it should be as "
            "floats in 'targets' of the training dataset.",
        )
    if target.numel() and (highest := int(target.max())) >= classes:
        raise DataRejected(
            "labels_out_of_range",
            f"The training dataset holds the class {highest}; the model's first output has {classes} classes, "
            f"counted from 0.",
        )


def soft_cross_entropy(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Divergence of the softened distributions (Hinton 2015, "Distilling the Knowledge", section 2).

    Gradients of softened targets shrink with the square of the temperature; the factor T² gives them back their
    weight beside the labels' (end of section 2).

    Args:
        student: (…, classes) logits.
        teacher: Logits of the same shape.
        temperature: Above 0.
    """
    softened = functional.log_softmax(teacher / temperature, -1).flatten(0, -2)
    predicted = functional.log_softmax(student / temperature, -1).flatten(0, -2)
    return functional.kl_div(predicted, softened, reduction="batchmean", log_target=True) * temperature**2
