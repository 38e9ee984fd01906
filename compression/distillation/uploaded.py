"""A student that somebody uploaded: whether it can stand in for the teacher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx
import torch

from compression.data.synthetic import fixed_batch
from compression.distillation.interface import interface_of
from compression.distillation.students.export import rename
from compression.distillation.students.fit import Interface
from compression.errors import StepFailed
from compression.graph.inspect import summarize
from compression.graph.to_torch import as_tuple, to_torch


def signature_batch(model: onnx.ModelProto) -> int | None:
    """Samples that a model takes at a time, or None where its batch axis is open."""
    return fixed_batch(summarize(model, 0, 0))


def adopted(student: onnx.ModelProto, teacher: Interface, samples: Sequence[torch.Tensor]) -> onnx.ModelProto:
    """A copy of a student under the teacher's names of inputs and outputs.

    Inputs are matched by name where all names agree, else by position; outputs by position.

    Args:
        student: The uploaded model.
        teacher: What it has to take and to give.
        samples: The teacher's inputs for some samples.

    Raises:
        StepFailed: `student_does_not_fit`, with all that differs; `operator_not_importable`.
    """
    summary = summarize(student, 0, 0)
    if len(summary.inputs) != len(teacher.inputs):
        raise _misfit([f"it takes {len(summary.inputs)} inputs, the teacher {len(teacher.inputs)}"])
    names = {one.name for one in summary.inputs}
    if names == {one.name for one in teacher.inputs}:
        by_name = {one.name: value for one, value in zip(teacher.inputs, samples, strict=True)}
        order = {one.name: one for one in teacher.inputs}
        pairs = [(one, order[one.name]) for one in summary.inputs]
        given = tuple(by_name[one.name] for one in summary.inputs)
    else:
        pairs = list(zip(summary.inputs, teacher.inputs, strict=True))
        given = tuple(samples)
    problems = [
        f"its input '{mine.name}' is {mine.dtype}, the teacher's {theirs.dtype}"
        for mine, theirs in pairs
        if mine.dtype != theirs.dtype
    ]
    size = fixed_batch(summary)
    module = to_torch(student, device=given[0].device)
    found: Interface | None = None
    if not problems:
        try:
            inputs = tuple(value[:size] for value in given)
            with torch.no_grad():
                outputs = module(*inputs)
            found = interface_of(student, module, inputs, as_tuple(outputs))
        except RuntimeError as error:
            shapes = ", ".join(str(list(value.shape)) for value in given)
            problems.append(f"it does not run on the teacher's inputs ({shapes}): {str(error).splitlines()[0][:200]}")
    if found is not None:
        problems += _differences(found, teacher)
    if problems:
        raise _misfit(problems)
    copy = onnx.ModelProto()
    copy.CopyFrom(student)
    new = {mine.name: theirs.name for mine, theirs in pairs}
    new |= {mine.name: theirs.name for mine, theirs in zip(summary.outputs, teacher.outputs, strict=True)}
    rename(copy, new)
    # Batches carry the inputs in the teacher's order.
    place = {one.name: position for position, one in enumerate(teacher.inputs)}
    ordered = sorted(copy.graph.input, key=lambda value: place.get(value.name, len(place)))
    del copy.graph.input[:]
    copy.graph.input.extend(ordered)
    return copy


def _differences(student: Interface, teacher: Interface) -> Iterator[str]:
    if len(student.outputs) != len(teacher.outputs):
        yield f"it gives {len(student.outputs)} outputs, the teacher {len(teacher.outputs)}"
        return
    for mine, theirs in zip(student.outputs, teacher.outputs, strict=True):
        if mine.shape != theirs.shape:
            yield (
                f"its output '{mine.name}' has the shape {list(mine.shape)} for a sample, the teacher's "
                f"'{theirs.name}' {list(theirs.shape)}"
            )
        elif mine.ending != theirs.ending:
            yield (
                f"its output '{mine.name}' ends in {_in_words(mine.ending)}, the teacher's '{theirs.name}' in "
                f"{_in_words(theirs.ending)}, so that they mean different things"
            )


def _in_words(ending: str) -> str:
    return "no activation" if ending == "none" else ending


def _misfit(problems: Sequence[str]) -> StepFailed:
    return StepFailed("student_does_not_fit", f"The student cannot stand in for the teacher: {'; '.join(problems)}.")
