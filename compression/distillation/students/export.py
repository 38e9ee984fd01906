"""A trained student as an ONNX graph with the teacher's names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from compression.distillation.students.fit import Interface
from compression.distillation.students.network import Student
from compression.errors import ModelRejected, StepFailed
from compression.graph import walk
from compression.graph.architectures.export import Network
from compression.graph.architectures.spec import Input
from compression.graph.to_torch import as_tuple

# float32 sums in another order differ by about 1e-6 of the largest value; a wrong graph differs by far more.
_TOLERANCE = 1e-4


def exported(student: Student, teacher: Interface, like: onnx.ModelProto) -> onnx.ModelProto:
    """Export a student once: open batch axis, batch norms as they are, weights under the names of its parameters.

    Args:
        student: On the CPU, in evaluation mode, folded.
        teacher: Gives names of inputs and outputs, and the axes that are to stay open.
        like: The teacher, whose metadata is kept.

    Raises:
        StepFailed: `student_not_exportable`.
    """
    takes = _placeholders("input", [one.name for one in teacher.inputs])
    gives = _placeholders("output", [one.name for one in teacher.outputs])
    try:
        model = _network(student, teacher, takes, keep_open=True).export(list(gives))
    except ModelRejected as error:
        if not any(one.open_axes for one in teacher.inputs):
            raise StepFailed("student_not_exportable", error.message) from None
        try:
            # Not every layer can be traced with an open length.
            model = _network(student, teacher, takes, keep_open=False).export(list(gives))
        except ModelRejected:
            raise StepFailed("student_not_exportable", error.message) from None
    rename(model, takes | gives)
    model.graph.name = "student"
    del model.metadata_props[:]
    model.metadata_props.extend(like.metadata_props)
    return model


def check(student: nn.Module, model: onnx.ModelProto, inputs: Sequence[torch.Tensor], teacher: Interface) -> float:
    """Run torch and ONNX Runtime on the same samples; the largest difference in units of the output's largest value.

    Raises:
        StepFailed: `student_export_differs`.
    """
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    given = {one.name: value.numpy() for one, value in zip(teacher.inputs, inputs, strict=True)}
    found = session.run([one.name for one in teacher.outputs], given)
    with torch.no_grad():
        expected = as_tuple(student(*inputs))
    worst = 0.0
    for one, value, other in zip(teacher.outputs, expected, found, strict=True):
        wanted = value.double().numpy()
        difference = float(np.abs(other.astype(np.float64) - wanted).max(initial=0.0))
        difference /= max(float(np.abs(wanted).max(initial=0.0)), 1e-6)
        if not difference <= _TOLERANCE:
            raise StepFailed(
                "student_export_differs",
                f"The student's output '{one.name}' differs between torch and ONNX Runtime by {difference:.2g} of its "
                "largest value; choose another architecture.",
            )
        worst = max(worst, difference)
    return worst


def _network(student: Student, teacher: Interface, names: Iterable[str], *, keep_open: bool) -> Network:
    inputs = [
        # Not validated: element types that a state_dict's network never takes are fine here.
        Input.model_construct(
            shape=tuple(
                f"axis_{position + 1}" if keep_open and position in one.open_axes else length
                for position, length in enumerate(one.shape)
            ),
            dtype=cast("Any", one.dtype),
            name=name,
        )
        for name, one in zip(names, teacher.inputs, strict=True)
    ]
    return Network(student, inputs, by_name=False)


def _placeholders(kind: str, names: Sequence[str]) -> dict[str, str]:
    """For each of the names one that the exporter gives to nothing else."""
    return {f"__student_{kind}_{position}": name for position, name in enumerate(names)}


def rename(model: onnx.ModelProto, names: Mapping[str, str]) -> None:
    """Give values other names, in place; whatever bears one of the new names already steps aside."""
    taken = set(names.values())
    known = {name for graph, _ in walk.graphs(model) for name in walk.defined(graph)}
    aside = {}
    for name in sorted(known & taken - set(names)):
        number = 1
        while f"{name}_{number}" in known | taken:
            number += 1
        aside[name] = f"{name}_{number}"
        known.add(aside[name])
    walk.rename_values(model, {**aside, **names})
