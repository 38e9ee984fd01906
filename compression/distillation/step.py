"""The distill step: a student is made, taught, exported and compared with itself."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import onnx
import torch

from compression.context import Context
from compression.distillation.features import (
    Activation,
    GraphTap,
    Pair,
    Tap,
    Tensors,
    graph_activations,
    matched,
)
from compression.distillation.interface import interface_of
from compression.distillation.objective import Comparison, Distillation, Inside, comparison, describe
from compression.distillation.pupils import GraphPupil, NewPupil, Pupil, slimmed
from compression.distillation.spec import STUDENT_MISSING, Distill, SlimStudent, UploadedStudent
from compression.distillation.students.fit import Interface
from compression.distillation.uploaded import adopted, signature_batch
from compression.errors import StepFailed
from compression.graph.macs import count_macs
from compression.graph.parameters import count_parameters
from compression.graph.to_torch import as_tuple
from compression.training.constraints import NoConstraint, regularizers
from compression.training.dataset import TrainingBatch, TrainingSet, in_order
from compression.training.loop import Lesson, train
from compression.training.spec import Training
from compression.training.step import TrainingMaterial
from compression.training.teacher import Teacher
from compression.training.trainee import batch_norms

# Statistics of fewer samples than this are none.
_FEWEST = 2
# Samples whose outputs show the teacher's shapes and spread.
_SHOWN = 256
# Samples with which losses, agreement and the exported graph are looked at in the end.
_COMPARED = 512


def distill(
    model: onnx.ModelProto, spec: Distill, context: Context, material: TrainingMaterial
) -> tuple[onnx.ModelProto, dict[str, object]]:
    """Teach a student what the model does.

    Args:
        model: The teacher.
        spec: The student, the losses and how to train.
        context: Device, progress, cancellation.
        material: Training samples, with labels or without; the seed.

    Returns:
        The student with the teacher's names of inputs and outputs, and how it learned.

    Raises:
        StepFailed: `student_does_not_fit`, `student_head_untrained`, `batch_too_small`, `no_matching_layers`,
            `operator_not_importable`,
            `loss_not_finite`, `student_not_exportable` or `student_export_differs`.
        DataRejected: `dataset_mismatch`, `dataset_too_small` or `labels_invalid`.
    """
    teacher = _Teaching(model, context.device, material.feed.fixed_batch)
    samples = TrainingSet.read(material.feed, teacher.input_names, context, spec.training.samples)
    _check_taught(spec, samples)
    shown = samples.batch(_first(samples, _SHOWN), context.device)
    outputs = teacher.outputs(shown)
    interface = interface_of(model, teacher.module, shown.inputs, outputs)
    with torch.random.fork_rng([]):
        torch.manual_seed(material.seed)
        pupil = _pupil(
            spec,
            interface,
            model,
            material.student,
            shown=shown.inputs,
            context=context,
            fixed_batch=material.feed.fixed_batch,
        )
        _check_batch(pupil, spec.training, len(samples))
        inside = _inside(spec, pupil, teacher, shown.inputs)
        tap = teacher.tap(inside) if inside.pairs else None
        comparisons = _comparisons(spec, pupil, outputs, shown.target)
        objective = Distillation(
            spec,
            inside,
            forms=pupil.forms,
            comparisons=comparisons,
            samples=outputs,
            student=pupil.tap([pair.student for pair in inside.pairs]),
            teacher=tap,
        )
    # All layers that multiply have their outputs first.
    weights = [(one, 0) for one in pupil.module.parameters() if one.dim() > 1]
    lesson = Lesson(
        samples=samples,
        objective=objective,
        constraints=[_FromScratch(), *regularizers(spec.training, weights)],
        teacher=teacher if tap is None and spec.logits is not None else None,
        fixed_batch=pupil.fixed_batch,
        phase="distilling",
        key=material.key,
    )
    report = train(pupil.module, lesson, spec.training, context, material.seed)
    learned = _learned(objective, teacher, samples, pupil, context)
    result, difference = pupil.finished(shown.inputs)
    return result, {
        "student": spec.student.model_dump(mode="json", exclude_none=True),
        "parameters": {"teacher": count_parameters(model).elements, "student": count_parameters(result).elements},
        "macs": {"teacher": count_macs(model), "student": count_macs(result)},
        "compared": dict(zip((one.name for one in interface.outputs), comparisons, strict=True)),
        "matched": _matched(inside),
        **learned,
        "export_difference": difference,
        "training": report.details(),
        "notes": _notes(spec, samples, pupil, comparisons),
    }


def _pupil(
    spec: Distill,
    teacher: Interface,
    model: onnx.ModelProto,
    student: onnx.ModelProto | None,
    *,
    shown: Tensors,
    context: Context,
    fixed_batch: int | None,
) -> Pupil:
    if isinstance(spec.student, SlimStudent):
        return GraphPupil(slimmed(model, spec.student, context), teacher, context, fixed_batch)
    if isinstance(spec.student, UploadedStudent):
        if student is None:
            raise StepFailed("student_missing", STUDENT_MISSING)
        graph = adopted(student, teacher, shown)
        return GraphPupil(graph, teacher, context, signature_batch(graph))
    return NewPupil(spec.student, teacher, model, context.device)


def _comparisons(spec: Distill, pupil: Pupil, outputs: Tensors, target: torch.Tensor | None) -> list[Comparison]:
    """How each output is compared; where it is by value, the student learns in units of the teacher's."""
    wanted = spec.logits.compare if spec.logits is not None else "auto"
    targets = (target, *[None] * (len(outputs) - 1))
    found = [comparison(form, wanted, one) for form, one in zip(pupil.forms, targets, strict=True)]
    for position, (kind, output) in enumerate(zip(found, outputs, strict=True)):
        if kind == "values":
            pupil.measure_in(position, output)
    return found


class _Teaching(Teacher):
    """The teacher, run in pieces of the batch that its graph fixes, if any.

    Args:
        model: The network, as ONNX.
        device: `cpu` or `cuda`.
        fixed_batch: Samples that it takes at a time, or None.
    """

    def __init__(self, model: onnx.ModelProto, device: str, fixed_batch: int | None) -> None:
        super().__init__(model, device)
        self._fixed_batch = fixed_batch

    @property
    def input_names(self) -> tuple[str, ...]:
        return cast("tuple[str, ...]", self.module.input_names)

    @torch.no_grad()
    def outputs(self, batch: TrainingBatch) -> Tensors:
        return _in_pieces(lambda inputs: as_tuple(self.module(*inputs)), batch.inputs, self._fixed_batch)

    def activations(self, inputs: Tensors) -> list[Activation]:
        """All of them; `inputs` are more samples than a fixed batch has."""
        return graph_activations(self.module, tuple(value[: self._fixed_batch] for value in inputs))

    def tap(self, inside: Inside) -> Tap:
        tap = GraphTap(self.module, [pair.teacher for pair in inside.pairs])
        return _TapInPieces(tap, self._fixed_batch)


class _TapInPieces:
    """A tap on a network whose graph fixes the batch."""

    def __init__(self, tap: Tap, size: int | None) -> None:
        self._tap, self._size = tap, size

    def run(self, inputs: Tensors) -> tuple[Tensors, Tensors]:
        count = 0

        def both(piece: Tensors) -> Tensors:
            nonlocal count
            outputs, activations = self._tap.run(piece)
            count = len(outputs)
            return (*outputs, *activations)

        found = _in_pieces(both, inputs, self._size)
        return found[:count], found[count:]


def _in_pieces(run: Callable[[Tensors], Tensors], inputs: Tensors, size: int | None) -> Tensors:
    """Run samples `size` at a time, the last piece filled up with its own last sample."""
    samples = len(inputs[0])
    if size is None or size == samples:
        return run(inputs)
    found = []
    for begin in range(0, samples, size):
        piece = tuple(value[begin : begin + size] for value in inputs)
        missing = size - len(piece[0])
        if missing:
            piece = tuple(torch.cat([value, value[-1:].expand(missing, *value.shape[1:])]) for value in piece)
        found.append(run(piece))
    return tuple(torch.cat(column)[:samples] for column in zip(*found, strict=True))


class _FromScratch(NoConstraint):
    """The random network before the first step is no result."""

    def is_settled(self, progress: float) -> bool:
        return progress > 0


def _check_taught(spec: Distill, samples: TrainingSet) -> None:
    if spec.logits is None and not (spec.labels and samples.has_target):
        raise StepFailed(
            "student_head_untrained",
            "Activations do not teach the student's last layer: give 'logits', or 'labels' above 0 and a training "
            "dataset with labels.",
        )


def _check_batch(pupil: Pupil, spec: Training, samples: int) -> None:
    training = samples - math.ceil(samples * spec.validation_share)
    size = pupil.fixed_batch or min(spec.batch_size, training)
    if size < _FEWEST and batch_norms(pupil.module):
        raise StepFailed(
            "batch_too_small",
            f"The student has batch norms, which need at least {_FEWEST} samples in a step: set training.batch_size to "
            f"{_FEWEST} or more and give enough samples ({training} are there to train on).",
        )


def _inside(spec: Distill, pupil: Pupil, teacher: _Teaching, inputs: Tensors) -> Inside:
    """The pairs of activations that the spec's losses compare."""
    if spec.features is None and spec.attention is None and spec.relations is None:
        return Inside()
    ours = pupil.activations(inputs)
    theirs = teacher.activations(inputs)
    features: tuple[Pair, ...] = ()
    attention: tuple[Pair, ...] = ()
    relations: tuple[Pair, ...] = ()
    if spec.features is not None:
        features = tuple(matched(ours, theirs, spec.features.layers))
        _check_matched("features", features)
    if spec.attention is not None:
        attention = tuple(matched(ours, theirs, spec.attention.layers, with_positions=True))
        _check_matched("attention", attention)
    if spec.relations is not None:
        relations = tuple(Pair(one, other) for one, other in zip(ours[-1:], theirs[-1:], strict=False))
        _check_matched("relations", relations)
    return Inside(features, attention, *relations)


def _check_matched(loss: str, pairs: Sequence[Pair]) -> None:
    if not pairs:
        needs = (
            "activations with positions, such as pictures, " if loss == "attention" else "activations between layers "
        )
        raise StepFailed(
            "no_matching_layers",
            f"'{loss}' compares {needs}in both networks, and they have none in common; use 'logits'.",
        )


@torch.no_grad()
def _learned(
    objective: Distillation, teacher: _Teaching, samples: TrainingSet, pupil: Pupil, context: Context
) -> dict[str, object]:
    """Every term of the loss, and how often both networks name the same class, on some training samples."""
    size = pupil.fixed_batch or _COMPARED
    sums: dict[str, float] = {}
    same = seen = pieces = 0
    for indices in in_order(_first(samples, max(_COMPARED, size)), size):
        if pupil.fixed_batch is not None and len(indices) < size:
            break
        batch = samples.batch(indices, context.device)
        batch = dataclasses.replace(batch, teacher=teacher.outputs(batch))
        terms, scores = objective.terms(batch)
        for name, (_, term) in terms.items():
            sums[name] = sums.get(name, 0.0) + term.item()
        pieces += 1
        if batch.teacher is not None and objective.comparisons[0] == "softmax":
            agreed = scores[0].argmax(-1) == batch.teacher[0].argmax(-1)
            same, seen = same + int(agreed.sum()), seen + agreed.numel()
    found: dict[str, object] = {"losses": {name: value / pieces for name, value in sums.items()}}
    return found | ({"same_class": same / seen} if seen else {})


def _matched(inside: Inside) -> dict[str, object]:
    groups = {
        "features": inside.features,
        "attention": inside.attention,
        "relations": () if inside.relations is None else (inside.relations,),
    }
    return {
        name: [{"student": describe(pair.student), "teacher": describe(pair.teacher)} for pair in pairs]
        for name, pairs in groups.items()
        if pairs
    }


def _notes(spec: Distill, samples: TrainingSet, pupil: Pupil, comparisons: Sequence[Comparison]) -> list[str]:
    notes = []
    if spec.labels and not samples.has_target:
        notes.append("The training dataset has no labels: the teacher alone taught.")
    form = pupil.forms[0]
    asked = spec.logits is not None and spec.logits.compare == "auto"
    if asked and not samples.has_target and form.ending == "none" and comparisons[0] == "softmax":
        notes.append(
            "The teacher's outputs are taken for scores of classes; if they are numbers in their own right, set "
            "logits.compare to 'values'."
        )
    return notes


def _first(samples: TrainingSet, count: int) -> npt.NDArray[np.int64]:
    return np.arange(min(len(samples), count), dtype=np.int64)
