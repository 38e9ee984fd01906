"""The one training loop of all techniques."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from compression.context import Context
from compression.errors import StepFailed
from compression.training import memory
from compression.training.augmentation import augment
from compression.training.checkpoint import Checkpoints
from compression.training.constraints import Constraint
from compression.training.dataset import Split, TrainingBatch, TrainingSet, in_order, shuffled
from compression.training.objectives import Objective, Score
from compression.training.optimizers import learning_rate, optimizer, set_learning_rate
from compression.training.spec import Training
from compression.training.teacher import Teacher
from compression.training.trainee import reestimate_batch_norms

_SECONDS_BETWEEN_REPORTS = 1.0
_REESTIMATION_BATCHES = 100
# Batch norms need two values a channel.
_ESTIMATED_ON = 2


@dataclass(frozen=True)
class Lesson:
    """What is trained with, beside the module itself.

    Attributes:
        samples: Training samples; a part of them validates.
        objective: What is minimized.
        constraints: The technique's hooks, called in this order.
        teacher: A network whose outputs the batches carry, or None.
        fixed_batch: Samples that the model takes at a time, or None where that is open.
        phase: The name under which progress is reported.
        key: The step's key, under which checkpoints are kept; None keeps none.
    """

    samples: TrainingSet
    objective: Objective
    constraints: Sequence[Constraint] = ()
    teacher: Teacher | None = None
    fixed_batch: int | None = None
    phase: str = "training"
    key: str | None = None


@dataclass(frozen=True)
class Epoch:
    """One pass over the training samples."""

    epoch: int
    loss: float
    validation_loss: float | None
    validation_accuracy: float | None
    learning_rate: float


@dataclass(frozen=True)
class TrainingReport:
    """How a training went.

    Attributes:
        epochs: One entry for each that ran, in order, those of earlier attempts included.
        kept_epoch: The epoch whose values the module has now, counted from 1; 0 for those before training.
        stopped: Why training ended: `finished`, `patience` or `loss_not_finite`.
        notes: Sentences for the report.
    """

    epochs: tuple[Epoch, ...]
    kept_epoch: int
    stopped: str
    notes: tuple[str, ...]

    def details(self) -> dict[str, object]:
        """The report as JSON can hold it."""
        return {
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "kept_epoch": self.kept_epoch,
            "stopped": self.stopped,
            "notes": list(self.notes),
        }


def train(module: nn.Module, lesson: Lesson, spec: Training, context: Context, seed: int) -> TrainingReport:
    """Train a module in place; it is in evaluation mode afterwards, with the values of the best epoch.

    The values before training count as an epoch when every constraint is settled from the start, so that training
    never ends with a network that validates worse than the one that came in.

    Args:
        module: On `context.device`; parameters that need no gradient stay as they are.
        lesson: Data, loss and constraints.
        spec: How to train.
        context: Device, progress, cancellation, checkpoints.
        seed: Same seed, data, spec and machine give the same values.

    Raises:
        StepFailed: `loss_not_finite` when the loss is NaN or infinite before any epoch could be kept,
            `nothing_to_train`, `batch_too_small` for batch norms, `optimizer_needs_float32`, or `out_of_memory` or
            `gpu_out_of_memory` with an estimate of what is needed.
        DataRejected: `dataset_too_small`, `labels_missing` or `labels_invalid`.
        Cancelled: between two steps.
    """
    with _seeded(seed, context.device):
        run = _Run(module, lesson, spec, context, seed)
        try:
            return run.run()
        except (MemoryError, RuntimeError) as error:
            if not memory.is_allocation_failure(error):
                raise
            on_gpu = memory.is_of_gpu(error)
        # Outside the handler: the traceback would keep the tensors of the step that failed.
        raise run.out_of_memory(on_gpu=on_gpu)


class _NotFinite(Exception):
    """The loss is NaN or infinite."""


class _Run:
    """One training under way."""

    def __init__(self, module: nn.Module, lesson: Lesson, spec: Training, context: Context, seed: int) -> None:
        self._module, self._lesson, self._spec, self._context = module, lesson, spec, context
        self._seed = seed
        self._split = Split.of(
            len(lesson.samples), spec.validation_share, np.random.default_rng(seed), lesson.fixed_batch or 1
        )
        self._batch_size = lesson.fixed_batch or min(spec.batch_size, len(self._split.training))
        self._steps_per_epoch = len(self._split.training) // self._batch_size
        self._total = spec.epochs * self._steps_per_epoch
        self._trained = [
            parameter for parameter in (*module.parameters(), *lesson.objective.parameters()) if parameter.requires_grad
        ]
        if not self._trained:
            raise StepFailed("nothing_to_train", "The model has no values that training could change.")
        self._optimizer = optimizer(self._trained, spec)
        self._scaler, self._autocast = _precision(context.device, wanted=spec.mixed_precision)
        self._checkpoints = Checkpoints(context, lesson.key)
        self._epochs: list[Epoch] = []
        self._best: Score | None = None
        self._best_values: dict[str, torch.Tensor] | None = None
        self._kept_epoch = 0
        self._reported = 0.0

    def run(self) -> TrainingReport:
        lesson, spec = self._lesson, self._spec
        if lesson.teacher is not None and not spec.augmentation.is_active:
            lesson.teacher.watch(lesson.samples, self._context, lesson.fixed_batch)
        notes = []
        first = self._resume()
        if first == 0 and all(constraint.is_settled(0.0) for constraint in lesson.constraints):
            self._consider(0, self._validate())
        stopped = "finished"
        for epoch in range(first, spec.epochs):
            try:
                self._epoch(epoch)
            except _NotFinite as error:
                if self._best_values is None:
                    raise StepFailed("loss_not_finite", f"{error} Lower training.learning_rate.") from None
                stopped = "loss_not_finite"
                notes.append(f"{error} Training stopped there; the best epoch before it is kept.")
                break
            if self._out_of_patience():
                stopped = "patience"
                break
            self._checkpoints.save_when_due(self._state(epoch + 1))
        self._take_best()
        self._module.eval()
        if spec.reestimate_batch_norm:
            self._reestimate()
        return TrainingReport(tuple(self._epochs), self._kept_epoch, stopped, tuple(notes))

    def out_of_memory(self, *, on_gpu: bool) -> StepFailed:
        """What there is to say when this training could not get the memory it needs, of its GPU or of the machine."""
        samples = self._lesson.fixed_batch or min(_ESTIMATED_ON, self._batch_size)
        self._optimizer.zero_grad(set_to_none=True)
        try:
            batch = self._lesson.samples.batch(self._split.training[:samples], self._context.device)
            if self._lesson.teacher is not None:
                batch = dataclasses.replace(batch, teacher=self._lesson.teacher.outputs(batch))
            kept = memory.activation_bytes(self._module.train(), self._lesson.objective, batch)
            each: int | None = -(-kept // samples)
        except (MemoryError, RuntimeError, ValueError):
            each = None  # not even that fits
        fixed = memory.weight_bytes(self._trained, self._spec)
        device = "cuda" if on_gpu else "cpu"
        return memory.out_of_memory(fixed, each, self._batch_size, memory.limit_bytes(device), device=device)

    def _epoch(self, epoch: int) -> None:
        lesson, spec = self._lesson, self._spec
        # Every epoch draws from a generator of its own, so that a resumed training sees what it would have seen.
        rng = np.random.default_rng([self._seed, epoch])
        chance = torch.Generator().manual_seed(int(rng.integers(2**63)))
        torch.manual_seed(int(rng.integers(2**63)))
        self._module.train()
        total = torch.zeros((), device=self._context.device, dtype=torch.float64)
        step = epoch * self._steps_per_epoch
        rate = 0.0
        for indices in shuffled(self._split.training, self._batch_size, rng):
            self._context.check_cancelled()
            rate = learning_rate(spec, step, self._steps_per_epoch)
            set_learning_rate(self._optimizer, rate)
            batch = lesson.samples.batch(indices, self._context.device)
            if spec.augmentation.is_active:
                batch = TrainingBatch(augment(batch.inputs, spec.augmentation, chance), batch.target)
            if lesson.teacher is not None:
                batch = lesson.teacher.teach(batch, indices)
            loss = self._step(batch, step / self._total)
            if not math.isfinite(loss.item()):
                msg = f"The loss became {loss.item()} at step {step % self._steps_per_epoch + 1} of epoch {epoch + 1}."
                raise _NotFinite(msg)
            total += loss
            step += 1
            self._report(step, epoch)
        if not all(bool(parameter.isfinite().all()) for parameter in self._trained):
            msg = f"A weight became NaN or infinite in the last step of epoch {epoch + 1}."
            raise _NotFinite(msg)
        if step == self._total:
            for constraint in lesson.constraints:
                constraint.before_step(1.0)
        score = self._validate()
        mean = total.item() / self._steps_per_epoch
        self._epochs.append(
            Epoch(
                epoch=epoch + 1,
                loss=mean,
                validation_loss=None if score is None else score.loss,
                validation_accuracy=None if score is None else score.accuracy,
                learning_rate=rate,
            )
        )
        if all(constraint.is_settled(step / self._total) for constraint in lesson.constraints):
            self._consider(epoch + 1, score)

    def _step(self, batch: TrainingBatch, progress: float) -> torch.Tensor:
        """One step of the optimizer; the loss before it."""
        constraints = self._lesson.constraints
        for constraint in constraints:
            constraint.before_step(progress)
        with self._autocast(), _batch_norms_explained():
            loss = self._lesson.objective.loss(self._module, batch)
        if not loss.requires_grad:
            raise StepFailed(
                "nothing_to_train", "No value that training may change has a share in what the loss looks at."
            )
        penalties = [term for constraint in constraints if (term := constraint.penalty()) is not None]
        whole = torch.stack([loss.float(), *penalties]).sum() if penalties else loss
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(whole).backward()  # type: ignore[no-untyped-call, unused-ignore]
        self._scaler.unscale_(self._optimizer)
        for constraint in constraints:
            constraint.after_backward()
        if self._spec.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._trained, self._spec.clip_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        for constraint in constraints:
            constraint.after_step()
        return whole.detach()

    @torch.no_grad()
    def _validate(self) -> Score | None:
        """The score on the validation samples, None where there are none."""
        indices = self._split.validation
        size = self._lesson.fixed_batch or max(self._batch_size, 256)
        self._module.eval()
        loss = seen = right = predictions = 0.0
        for part in in_order(indices, size):
            if self._lesson.fixed_batch is not None and len(part) < size:
                break
            self._context.check_cancelled()
            batch = self._lesson.samples.batch(part, self._context.device)
            if self._lesson.teacher is not None:
                batch = self._lesson.teacher.teach(batch, part)
            with self._autocast():
                mean, correct = self._lesson.objective.correct(self._module, batch)
            loss += mean.item() * len(part)
            seen += len(part)
            if correct is not None:
                right += int(correct.sum())
                predictions += correct.numel()
        if not seen:
            return None
        return Score(loss / seen, right / predictions if predictions else None)

    def _consider(self, epoch: int, score: Score | None) -> None:
        """Keep the module's values when none before them scored better."""
        if score is not None and not math.isfinite(score.loss):
            return
        if score is None or score.is_better_than(self._best):
            self._best = score
            self._kept_epoch = epoch
            self._best_values = {name: value.detach().clone() for name, value in self._module.state_dict().items()}

    def _take_best(self) -> None:
        """Give the module the values of the best epoch, or leave it those of the last where no epoch counted."""
        if self._best_values is not None:
            self._module.load_state_dict(self._best_values)
        elif self._epochs:
            last = self._epochs[-1]
            if last.validation_loss is not None and not math.isfinite(last.validation_loss):
                raise StepFailed(
                    "loss_not_finite",
                    f"The validation loss is {last.validation_loss} after epoch {last.epoch}, the last one. "
                    "Lower training.learning_rate.",
                )
            self._kept_epoch = last.epoch

    def _out_of_patience(self) -> bool:
        patience = self._spec.patience
        done = self._epochs[-1].epoch
        return patience is not None and self._best is not None and done - self._kept_epoch >= patience

    def _reestimate(self) -> None:
        rng = np.random.default_rng([self._seed, self._spec.epochs])
        drawn = shuffled(self._split.training, self._batch_size, rng)

        def batches() -> Iterator[tuple[torch.Tensor, ...]]:
            for indices in itertools.islice(drawn, _REESTIMATION_BATCHES):
                self._context.check_cancelled()
                yield self._lesson.samples.batch(indices, self._context.device).inputs

        with _batch_norms_explained():
            reestimate_batch_norms(self._module, batches())

    def _report(self, step: int, epoch: int) -> None:
        now = time.monotonic()
        if now - self._reported < _SECONDS_BETWEEN_REPORTS:
            return
        self._reported = now
        message = f"epoch {epoch + 1} of {self._spec.epochs}"
        if self._epochs:
            last = self._epochs[-1]
            message += f"; loss {last.loss:.4g} in the one before"
            if last.validation_accuracy is not None:
                message += f", {100 * last.validation_accuracy:.2f} % right"
        self._context.progress(self._lesson.phase, step / self._total, message)

    def _state(self, epochs_done: int) -> dict[str, Any]:
        return {
            "epochs_done": epochs_done,
            "epochs": [asdict(epoch) for epoch in self._epochs],
            "module": self._module.state_dict(),
            "own": list(self._lesson.objective.parameters()),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "best": None if self._best is None else asdict(self._best),
            "best_values": self._best_values,
            "kept_epoch": self._kept_epoch,
            "constraints": [constraint.state() for constraint in self._lesson.constraints],
        }

    def _resume(self) -> int:
        """Go on where an earlier attempt was; the number of epochs that it had finished."""
        state = self._checkpoints.load()
        if state is None:
            return 0
        self._module.load_state_dict(state["module"])
        with torch.no_grad():
            for parameter, kept in zip(self._lesson.objective.parameters(), state["own"], strict=True):
                parameter.copy_(kept)
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        self._epochs = [Epoch(**epoch) for epoch in state["epochs"]]
        self._best = None if state["best"] is None else Score(**state["best"])
        self._best_values = state["best_values"]
        self._kept_epoch = state["kept_epoch"]
        restored: Sequence[Mapping[str, Any]] = state["constraints"]
        for constraint, kept in zip(self._lesson.constraints, restored, strict=True):
            constraint.restore(kept)
        return int(state["epochs_done"])


@contextlib.contextmanager
def _batch_norms_explained() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise StepFailed(
            "batch_too_small",
            "A batch norm cannot train on one value per channel: give a training.batch_size and samples for at least "
            "2, and a model whose batch axis is open.",
        ) from None


def _precision(device: str, *, wanted: bool) -> tuple[torch.amp.GradScaler, Any]:
    """A gradient scaler and a context for the forward pass; both do nothing on a CPU."""
    if device == "cpu" or not wanted:
        return torch.amp.GradScaler(device, enabled=False), contextlib.nullcontext
    kind = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return (
        torch.amp.GradScaler(device, enabled=kind is torch.float16),
        lambda: torch.autocast(device, dtype=kind),
    )


@contextlib.contextmanager
def _seeded(seed: int, device: str) -> Iterator[None]:
    """Chance that depends on the seed alone, while this lasts; the caller's is as before afterwards."""
    devices = [] if device == "cpu" else [torch.cuda.current_device()]
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield
