"""A small network learns from the job's model and takes its place. No heavy imports."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from compression._spec_base import DataRole, Spec, StepSpec
from compression.training.spec import Training

Weight = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]

STUDENT_MISSING = "The 'distill' step has a student of kind 'model': name an uploaded model as the job's student."
_WITH_DEPTH = frozenset({"mlp", "cnn", "transformer"})
# What a student trained from nothing needs; recovery after pruning needs less.
_TRAINING = Training(epochs=30, learning_rate=2e-3, warmup_epochs=1)


class ArchitectureStudent(Spec):
    """A new network of a known kind, fitted to the teacher's inputs and outputs, with random weights."""

    kind: Literal["architecture"] = "architecture"
    """A network by its name."""
    name: Literal[
        "mobilenet_v2",
        "mobilenet_v3_small",
        "mobilenet_v3_large",
        "squeezenet",
        "shufflenet_v2",
        "efficientnet_lite0",
        "cnn",
        "mlp",
        "transformer",
    ]
    """MobileNetV2 (Sandler et al. 2018), MobileNetV3 (Howard et al. 2019), SqueezeNet 1.1 (Iandola et al. 2016),
    ShuffleNetV2 (Ma et al. 2018) and EfficientNet-Lite0 (Tan and Le 2019, without squeeze-and-excitation) take
    pictures (n, channels, height, width); on small pictures their early strides are left out. `cnn`: plain 3x3
    convolutions, for pictures or signals (n, channels, time). `mlp`: dense layers, for anything of a fixed size.
    `transformer`: a small encoder, for tokens (n, sequence) or vectors (n, sequence, features)."""
    width: float = Field(default=1.0, ge=0.25, le=2)
    """Factor of the channels. At 1: as published; `cnn` starts with 32 channels, `mlp` has 256 neurons a layer,
    `transformer` 128 values a position."""
    depth: int | None = Field(default=None, ge=1, le=48)
    """Convolutions of `cnn` (3), hidden layers of `mlp` (2), blocks of `transformer` (2); the other networks have
    theirs by design."""

    @model_validator(mode="after")
    def _depth_is_used(self) -> Self:
        if self.depth is not None and self.name not in _WITH_DEPTH:
            msg = f"depth has no effect on '{self.name}'; use width, or one of {', '.join(sorted(_WITH_DEPTH))}"
            raise ValueError(msg)
        return self


class SlimStudent(Spec):
    """The teacher itself with fewer channels, starting from the weights of those that matter most.

    The graph keeps its operators and names; `prune_channels` says which channels can go.
    """

    kind: Literal["slim"]
    """A narrower copy of the teacher."""
    width: float = Field(default=0.5, gt=0, lt=1)
    """Share of the channels that stay in each group of layers that share them."""
    round_to: int = Field(default=1, ge=1, le=256)
    """Layers keep a multiple of so many channels, rounded up."""


class UploadedStudent(Spec):
    """A second uploaded model, which the job names as its student; it starts from the weights that it has."""

    kind: Literal["model"]
    """The model in the job's `student_id`."""


def _kind(value: object) -> str | None:
    """What tells the students apart; `architecture` need not be said."""
    kind = value.get("kind", "architecture") if isinstance(value, dict) else getattr(value, "kind", None)
    return kind if isinstance(kind, str) else None


Student = Annotated[
    Annotated[ArchitectureStudent, Tag("architecture")]
    | Annotated[SlimStudent, Tag("slim")]
    | Annotated[UploadedStudent, Tag("model")],
    Discriminator(
        _kind,
        custom_error_type="unknown_student",
        custom_error_message="student.kind must be architecture, slim or model",
    ),
]
"""The network that learns."""


class LogitsLoss(Spec):
    """The student's outputs follow the teacher's."""

    weight: Weight = 1.0
    """Factor of this term."""
    temperature: float = Field(default=4.0, gt=0, le=100, allow_inf_nan=False)
    """Softens both distributions; the term is scaled by its square (Hinton et al. 2015, section 2). No effect on
    values."""
    compare: Literal["auto", "distributions", "values"] = "auto"
    """`distributions`: outputs are scores of classes along the last axis, and their softened distributions are
    compared. `values`: mean squared error, in units of the teacher's own variance, for regression and embeddings.
    `auto`: distributions where the teacher ends in a softmax or sigmoid or the dataset has class labels; values where
    the dataset has `targets` or there is a single output; of the rest, distributions for outputs (n, classes)."""


class FeaturesLoss(Spec):
    """The student's activations follow the teacher's, through linear maps that are trained along and then dropped
    (FitNets, Romero et al. 2015, section 2.2).
    """

    weight: Weight = 1.0
    """Factor of this term, a mean squared error in units of the teacher's mean square."""
    layers: int = Field(default=3, ge=1, le=32)
    """At most so many pairs of layers, spread evenly over the depth and matched by relative depth and spatial size."""


class AttentionLoss(Spec):
    """The student looks where the teacher looks: the positions of large activations agree (Zagoruyko and Komodakis
    2017, equation 2).
    """

    weight: Weight = 10.0
    """Factor of this term, half the squared distance of the normalized maps: 0 to 1 for each layer."""
    layers: int = Field(default=3, ge=1, le=32)
    """Like `features.layers`; only activations with positions take part."""


class RelationsLoss(Spec):
    """Samples lie to each other as they do for the teacher, in the activations before the last layer (Relational
    Knowledge Distillation, Park et al. 2019).
    """

    weight: Weight = 1.0
    """Factor of this term."""
    distance: float = Field(default=1.0, ge=0, le=1e6, allow_inf_nan=False)
    """Factor of the distances between two samples (equation 5)."""
    angle: float = Field(default=2.0, ge=0, le=1e6, allow_inf_nan=False)
    """Factor of the angles between three samples (equation 8)."""

    @model_validator(mode="after")
    def _something_counts(self) -> Self:
        if self.distance == 0 and self.angle == 0:
            msg = "distance and angle are both 0: leave relations out instead"
            raise ValueError(msg)
        return self


class Distill(StepSpec):
    """Train a student to do what the job's model does (Hinton et al. 2015); the student is the result.

    The teacher needs no labels; where the training dataset has some, they help.
    """

    type: Literal["distill"] = "distill"
    student: Student
    """The network that learns."""
    labels: float = Field(default=0.3, ge=0, le=1e6, allow_inf_nan=False)
    """Factor of the loss against the dataset's labels or targets; no effect where it has none."""
    logits: LogitsLoss | None = LogitsLoss()
    """What the outputs teach; null leaves it out."""
    features: FeaturesLoss | None = None
    """What activations inside teach."""
    attention: AttentionLoss | None = None
    """What the places of activations teach."""
    relations: RelationsLoss | None = None
    """What the relations between samples teach."""
    training: Training = _TRAINING
    """How to train. `teacher`, `temperature` and `teacher_weight` are this step's own matter; `loss` is that of the
    labels."""

    @property
    def data_needed(self) -> frozenset[DataRole]:
        return frozenset({"training"})

    @property
    def needs_student(self) -> bool:
        return isinstance(self.student, UploadedStudent)

    @model_validator(mode="after")
    def _fields_have_effect(self) -> Self:
        if self.include != ("*",) or self.exclude:
            msg = "include and exclude have no effect: distill replaces the whole network"
            raise ValueError(msg)
        if not (self.logits or self.features or self.attention or self.relations):
            msg = "nothing is taught: give at least one of logits, features, attention and relations"
            raise ValueError(msg)
        # Compared with the defaults: a spec written out in full is read back.
        for field, instead in (("teacher", ""), ("temperature", "logits.temperature"), ("teacher_weight", "labels")):
            if getattr(self.training, field) != Training.model_fields[field].default:
                hint = f"; use {instead}" if instead else ": the model that arrives at the step teaches"
                msg = f"training.{field} has no effect{hint}"
                raise ValueError(msg)
        return self
