"""How a model is trained, whatever technique trains it. No heavy imports."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from compression._spec_base import DataRole, Spec, StepSpec


class Augmentation(Spec):
    """Random changes of the inputs that leave their meaning alone. Pictures are inputs of rank 4, (n, c, h, w)."""

    flip: bool = False
    """Mirror pictures left to right, half of the time."""
    shift: int = Field(default=0, ge=0, le=256)
    """Move pictures by up to this many pixels along each axis; what comes in is zero."""
    noise: float = Field(default=0.0, ge=0, le=10, allow_inf_nan=False)
    """Standard deviation of the normal noise added to float inputs, in the inputs' own unit."""

    @property
    def is_active(self) -> bool:
        return self.flip or self.shift > 0 or self.noise > 0


class Training(Spec):
    """One way of training, used by every step that trains.

    The best epoch by the validation score is kept; while a schedule still changes the network, no epoch counts.
    """

    epochs: int = Field(default=5, ge=1, le=10_000)
    """Passes over the training samples."""
    batch_size: int = Field(default=64, ge=1, le=65_536)
    """Samples in a step; all of them where there are fewer. A batch axis that the model fixes wins."""
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    """Stochastic gradient descent with Nesterov momentum, Adam (Kingma and Ba 2015), or Adam with decoupled weight
    decay (Loshchilov and Hutter 2019)."""
    learning_rate: float = Field(default=1e-3, gt=0, le=100, allow_inf_nan=False)
    """Peak learning rate."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of `sgd`."""
    weight_decay: float = Field(default=0.0, ge=0, le=10, allow_inf_nan=False)
    """Weight decay of the optimizer; norms and biases have none."""
    schedule: Literal["constant", "cosine", "step"] = "cosine"
    """Learning rate over time: level, half a cosine down to 0, or times `step_factor` every `step_epochs`."""
    step_epochs: int = Field(default=10, ge=1, le=10_000)
    """Epochs between two drops of schedule `step`."""
    step_factor: float = Field(default=0.1, gt=0, lt=1)
    """What one drop of schedule `step` multiplies the learning rate by."""
    warmup_epochs: float = Field(default=0.0, ge=0, le=1000)
    """Epochs during which the learning rate rises linearly from 0."""
    clip_norm: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Upper bound of the gradient's norm over all parameters; None leaves gradients as they are."""
    loss: Literal["auto", "cross_entropy", "mse", "cosine"] = "auto"
    """What is minimized against `labels` or `targets` of the training dataset. `auto`: cross-entropy for whole
    numbers (classes, or tokens where there is one for each position), mean squared error for floats. `cosine`:
    1 - cosine similarity along the last axis, for embeddings."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the probability spread evenly over all classes (Szegedy et al. 2016, section 7)."""
    teacher: Literal["none", "original"] = "none"
    """`original`: the model as it was uploaded teaches, too (Hinton 2015). It needs no labels."""
    temperature: float = Field(default=2.0, gt=0, le=100)
    """Softens both distributions of the teacher's loss; its gradient is scaled by temperature squared."""
    teacher_weight: float = Field(default=0.7, ge=0, le=1)
    """Share of the teacher's loss in the sum with the labels'; 1 where there are no labels."""
    l1: float = Field(default=0.0, ge=0, le=100, allow_inf_nan=False)
    """Factor of the sum of absolute weights, added to the loss."""
    l2: float = Field(default=0.0, ge=0, le=100, allow_inf_nan=False)
    """Factor of half the sum of squared weights, added to the loss."""
    group_lasso: float = Field(default=0.0, ge=0, le=100, allow_inf_nan=False)
    """Factor of the sum over output channels of their weights' norm times the square root of their number (Wen et
    al. 2016, "Learning Structured Sparsity"), added to the loss: whole channels become small."""
    validation_share: float = Field(default=0.1, ge=0, le=0.5)
    """Share of the training samples that is held out to choose the best epoch, rounded up to whole batches where the
    model fixes its batch; with 0 the last epoch is kept."""
    patience: int | None = Field(default=None, ge=1, le=10_000)
    """Epochs without a better validation score after which training stops; None trains them all."""
    augmentation: Augmentation = Augmentation()
    """Random changes of the inputs."""
    mixed_precision: bool = True
    """On a GPU, compute in bfloat16 (float16 with scaled gradients where that is missing). No effect on a CPU."""
    reestimate_batch_norm: bool = False
    """After training, measure the running statistics of batch norms afresh on the training samples."""
    samples: int | None = Field(default=None, ge=2, le=100_000_000)
    """Train on at most so many samples, taken evenly over the dataset; None takes all."""

    @model_validator(mode="after")
    def _patience_needs_validation(self) -> Self:
        if self.patience is not None and self.validation_share == 0:
            msg = "patience compares validation scores: give a validation_share above 0"
            raise ValueError(msg)
        return self


class Finetune(StepSpec):
    """Train the weights that the patterns select, to recover what earlier steps cost, or for new data."""

    type: Literal["finetune"] = "finetune"
    training: Training = Training()
    """How to train."""
    keep_zeros: bool = True
    """Weights that are exactly zero stay so: what earlier steps have pruned is not undone."""

    @property
    def data_needed(self) -> frozenset[DataRole]:
        return frozenset({"training"})
