"""What a teacher takes and gives, from its graph and from what it does with real samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx
import torch
from torch import fx

from compression.distillation.students.fit import Interface, TeacherInput, TeacherOutput
from compression.distillation.students.network import Ending
from compression.errors import StepFailed
from compression.graph.inspect import summarize
from compression.signature import TensorSpec

_ENDINGS: dict[str, Ending] = {"Softmax": "softmax", "LogSoftmax": "log_softmax", "Sigmoid": "sigmoid"}
# Nodes that pass values on as they are.
_PASSING = frozenset({"Identity", "Cast"})


def interface_of(
    model: onnx.ModelProto, module: fx.GraphModule, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]
) -> Interface:
    """Describe a teacher.

    Args:
        model: The teacher.
        module: The same, imported.
        inputs: Some samples, one tensor for each input.
        outputs: What the teacher gives for them.

    Raises:
        StepFailed: `student_does_not_fit` when an output does not belong to the samples one by one.
    """
    summary = summarize(model, 0, 0)
    samples = len(inputs[0])
    given = tuple(
        TeacherInput(spec.name, spec.dtype, tuple(value.shape[1:]), _open_axes(spec, value))
        for spec, value in zip(summary.inputs, inputs, strict=True)
    )
    nodes = next(node for node in module.graph.nodes if node.op == "output").args[0]
    if not isinstance(nodes, (tuple, list)):
        nodes = (nodes,)
    wanted = []
    for spec, value, node in zip(summary.outputs, outputs, nodes, strict=True):
        if value.dim() == 0 or len(value) != samples:
            raise StepFailed(
                "student_does_not_fit",
                f"The teacher's output '{spec.name}' has shape {list(value.shape)} for {samples} samples: its first "
                "axis is no batch, and a student cannot learn it sample by sample.",
            )
        ending = _ending(node, value.dim())
        wanted.append(TeacherOutput(spec.name, value.dtype, tuple(value.shape[1:]), _open_axes(spec, value), ending))
    return Interface(given, tuple(wanted), _tables(model))


def _open_axes(spec: TensorSpec, value: torch.Tensor) -> frozenset[int]:
    """Axes behind the batch that the graph leaves open."""
    if spec.shape is None or len(spec.shape) != value.dim():
        return frozenset()
    return frozenset(axis for axis, length in enumerate(spec.shape[1:]) if not isinstance(length, int))


def _ending(node: object, rank: int) -> Ending:
    """What an output comes out of; a softmax counts along the last axis only."""
    while isinstance(node, fx.Node):
        origin = node.meta.get("onnx")
        if origin is None:
            break
        if origin.operator in _ENDINGS:
            ending = _ENDINGS[origin.operator]
            return ending if ending == "sigmoid" or _axis(node, rank) in (-1, rank - 1) else "none"
        if origin.operator not in _PASSING:
            break
        node = next(iter(node.all_input_nodes), None)
    return "none"


def _axis(node: fx.Node, rank: int) -> int:
    """The axis of a softmax as the importer has emitted it, or the last but one where it cannot be read."""
    axes = [value for value in (*node.args[1:], *node.kwargs.values()) if isinstance(value, int)]
    return axes[0] if axes else rank - 1


def _tables(model: onnx.ModelProto) -> dict[str, int]:
    """Rows of the table in which each integer input of the graph is looked up."""
    rows: dict[str, int] = {}
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    behind = dict(_passed_on(model))
    for node in model.graph.node:
        if node.op_type != "Gather" or node.input[0] not in stored:
            continue
        name = node.input[1]
        while name in behind:
            name = behind[name]
        table = stored[node.input[0]]
        if len(table.dims) == 2:
            rows[name] = max(rows.get(name, 0), int(table.dims[0]))
    inputs = {value.name for value in model.graph.input}
    return {name: count for name, count in rows.items() if name in inputs}


def _passed_on(model: onnx.ModelProto) -> Iterator[tuple[str, str]]:
    """Outputs of nodes that pass on their input, each with that input."""
    for node in model.graph.node:
        if node.op_type in _PASSING:
            yield node.output[0], node.input[0]
