"""Students on their way: made, looked into while they learn, and written as ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import onnx
import torch
from torch import nn

from compression.context import Context
from compression.distillation.features import (
    Activation,
    GraphTap,
    StudentTap,
    Tap,
    Tensors,
    graph_activations,
    student_activations,
)
from compression.distillation.spec import ArchitectureStudent, SlimStudent
from compression.distillation.students.export import check, exported
from compression.distillation.students.fit import Interface, fitted
from compression.distillation.students.network import Form
from compression.graph.memory_format import lay_out
from compression.pruning.channel_spec import PruneChannels
from compression.pruning.channels.step import prune_channels
from compression.training.trainee import Trainee


class Pupil(Protocol):
    """A network that learns.

    Attributes:
        module: What is trained.
        forms: Of its outputs.
        fixed_batch: Samples that it takes at a time, or None.
    """

    module: nn.Module
    forms: tuple[Form, ...]
    fixed_batch: int | None

    def activations(self, inputs: Tensors) -> list[Activation]:
        """Everything inside that may be compared."""

    def tap(self, wanted: Sequence[Activation]) -> Tap:
        """Scores instead of outputs, and the wanted activations."""

    def measure_in(self, position: int, outputs: torch.Tensor) -> None:
        """Work in units of these outputs of the teacher, where that can be taken back afterwards."""

    def finished(self, inputs: Tensors) -> tuple[onnx.ModelProto, float]:
        """The graph, and how far its outputs for some samples are from the module's, relative to the largest."""


class NewPupil:
    """An architecture by name with random weights; exported once.

    Args:
        spec: Which one.
        teacher: What it has to take and to give.
        like: The teacher's graph, for its metadata.
        device: Where it learns.
    """

    fixed_batch: int | None = None

    def __init__(self, spec: ArchitectureStudent, teacher: Interface, like: onnx.ModelProto, device: str) -> None:
        self._teacher, self._like = teacher, like
        self.student = fitted(spec, teacher).to(device)
        lay_out(self.student)
        self.module: nn.Module = self.student
        self.forms = tuple(head.form for head in self.student.all_heads)
        self._tap: StudentTap | None = None

    def activations(self, inputs: Tensors) -> list[Activation]:
        return student_activations(self.student, inputs)

    def tap(self, wanted: Sequence[Activation]) -> Tap:
        self._tap = StudentTap(self.student, wanted)
        return self._tap

    def measure_in(self, position: int, outputs: torch.Tensor) -> None:
        if self.forms[position].ending == "none":
            self.student.all_heads[position].measure_in(outputs)

    def finished(self, inputs: Tensors) -> tuple[onnx.ModelProto, float]:
        if self._tap is not None:
            self._tap.close()
        self.student.cpu().eval().fold()
        graph = exported(self.student, self._teacher, self._like)
        return graph, check(self.student, graph, tuple(value.cpu() for value in inputs), self._teacher)


def slimmed(model: onnx.ModelProto, spec: SlimStudent, context: Context) -> onnx.ModelProto:
    """The teacher without its least important channels."""
    away = 1 - spec.width
    pruning = PruneChannels(amount=away, max_amount=max(away, 0.9), round_to=spec.round_to)
    # Its progress would start from 0 once more.
    quiet = Context(context.workdir, context.device, context.threads, is_cancelled=context.is_cancelled)
    slim, _ = prune_channels(model, pruning, quiet, seed=0)
    return slim


class GraphPupil:
    """A student that comes as a graph; its values are written back into it.

    Args:
        graph: The student, with the teacher's names of inputs and outputs.
        teacher: What it takes and gives.
        context: Device.
        fixed_batch: Samples that the graph takes at a time, or None.
    """

    def __init__(self, graph: onnx.ModelProto, teacher: Interface, context: Context, fixed_batch: int | None) -> None:
        self._teacher = teacher
        self.fixed_batch = fixed_batch
        self._trainee = Trainee(graph, context.device)
        self.module: nn.Module = self._trainee.module
        self.forms = tuple(Form(one.shape, bool(one.open_axes), one.ending) for one in teacher.outputs)

    def activations(self, inputs: Tensors) -> list[Activation]:
        return graph_activations(self._trainee.module, tuple(value[: self.fixed_batch] for value in inputs))

    def tap(self, wanted: Sequence[Activation]) -> Tap:
        return _Scores(GraphTap(self._trainee.module, wanted), self.forms)

    def measure_in(self, position: int, outputs: torch.Tensor) -> None:
        """Its last layer knows the units already."""

    def finished(self, inputs: Tensors) -> tuple[onnx.ModelProto, float]:
        self.module.cpu().eval()
        graph = self._trainee.written_back()
        pieces = tuple(value[: self.fixed_batch].cpu() for value in inputs)
        return graph, check(self.module, graph, pieces, self._teacher)


class _Scores:
    """A tap whose outputs are brought back to what they were before their softmax or sigmoid."""

    def __init__(self, tap: Tap, forms: Sequence[Form]) -> None:
        self._tap, self._forms = tap, forms

    def run(self, inputs: Tensors) -> tuple[Tensors, Tensors]:
        outputs, activations = self._tap.run(inputs)
        return tuple(form.scores(output) for form, output in zip(self._forms, outputs, strict=True)), activations
