"""Training by itself, and what every step that trains shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx

from compression.context import Context
from compression.data.feed import ModelFeed
from compression.errors import DataRejected
from compression.graph.operators.bindings import AsStored
from compression.training.constraints import Constraint, KeepZeros, regularizers
from compression.training.dataset import TrainingSet
from compression.training.loop import Lesson, TrainingReport, train
from compression.training.objectives import Supervised
from compression.training.spec import Finetune, Training
from compression.training.teacher import Teacher
from compression.training.trainee import TrainableWeight, Trainee


@dataclass(frozen=True)
class TrainingMaterial:
    """What a step that trains gets beside the model.

    Attributes:
        feed: The training dataset.
        original: Gives the model as it was uploaded.
        seed: The run's seed.
        key: The step's key, for checkpoints; None keeps none.
        student: The second uploaded model, where there is one.
    """

    feed: ModelFeed
    original: Callable[[], onnx.ModelProto]
    seed: int
    key: str | None = None
    student: onnx.ModelProto | None = None

    def samples(self, trainee: Trainee, spec: Training, context: Context) -> TrainingSet:
        """All samples that `spec` wants, by index."""
        return TrainingSet.read(
            self.feed,
            trainee.input_names,
            context,
            spec.samples,
            prefer_targets=spec.loss in ("mse", "cosine"),
        )

    def teacher(self, spec: Training, context: Context) -> Teacher | None:
        return Teacher(self.original(), context.device) if spec.teacher == "original" else None


def finetune(
    model: onnx.ModelProto, spec: Finetune, context: Context, material: TrainingMaterial
) -> tuple[onnx.ModelProto, dict[str, object]]:
    """Train the selected weights, with every bias and norm beside them.

    Raises:
        StepFailed: `unknown_name`, `no_weights`, `operator_not_importable` or `loss_not_finite`.
        DataRejected: the dataset does not serve this training.
    """
    trainee = Trainee(model, context.device)
    weights = trainee.weights(spec.include, spec.exclude, embeddings=True)
    if spec.include != ("*",) or spec.exclude:
        freeze_all_but(trainee, weights)
    constraints: list[Constraint] = []
    if spec.keep_zeros:
        constraints.append(KeepZeros([parameter for weight in weights for parameter in weight.parameters]))
    report = train_with(trainee, spec.training, context, material, weights=weights, constraints=constraints)
    return trainee.written_back(), {"training": report.details()}


def train_with(
    trainee: Trainee,
    spec: Training,
    context: Context,
    material: TrainingMaterial,
    *,
    weights: Sequence[TrainableWeight],
    constraints: Sequence[Constraint],
) -> TrainingReport:
    """Train a model under a technique's constraints, with the regularization that the spec asks for.

    Args:
        trainee: The model; its module is trained in place.
        spec: How to train.
        context: Device, progress, cancellation.
        material: Data, seed and the original.
        weights: What regularization acts on.
        constraints: The technique's hooks.
    """
    samples = material.samples(trainee, spec, context)
    teacher = material.teacher(spec, context)
    if teacher is None and not samples.has_target:
        raise DataRejected(
            "labels_missing",
            "Training needs 'labels' or 'targets' in the training dataset, or a teacher: set training.teacher to "
            "'original'.",
        )
    lesson = Lesson(
        samples=samples,
        objective=Supervised(spec, normalized=trainee.gives_probabilities),
        constraints=[*regularization(spec, weights), *constraints],
        teacher=teacher,
        fixed_batch=material.feed.fixed_batch,
        key=material.key,
    )
    return train(trainee.module, lesson, spec, context, material.seed)


def regularization(spec: Training, weights: Sequence[TrainableWeight]) -> list[Constraint]:
    """The terms that `spec` adds to the loss."""
    # Convolutions, matrices and recurrent layers have their outputs first in torch; what keeps the file's layout has
    # them where the graph says.
    found = [
        (parameter, weight.weight.output_axis if isinstance(weight.layout, AsStored) else 0)
        for weight in weights
        for parameter in weight.parameters
    ]
    return regularizers(spec, found)


def freeze_all_but(trainee: Trainee, weights: Sequence[TrainableWeight]) -> None:
    """Let only the given weights be trained, beside vectors (biases and norms), which cost nothing and help."""
    wanted = {id(parameter) for weight in weights for parameter in weight.parameters}
    for parameter in trainee.module.parameters():
        parameter.requires_grad_(id(parameter) in wanted or parameter.dim() <= 1)
