"""From the name of an architecture to a network that takes and gives what a teacher does."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from compression.distillation.spec import ArchitectureStudent
from compression.distillation.students import pictures
from compression.distillation.students.network import Ending, Form, Head, Student
from compression.distillation.students.pictures import Vector
from compression.distillation.students.plain import Dense, Encoder, convolutions
from compression.errors import StepFailed

_MOST_INPUTS = 4
# A head this wide is no summary of a picture any more, and heavier than the teachers that give such outputs.
_MOST_OUTPUTS = 100_000
# Pictures have this many channels at most; an input with so few along its last axis alone has its channels there.
_FEW_CHANNELS = 4


@dataclass(frozen=True)
class TeacherInput:
    """An input of the teacher.

    Attributes:
        name: In the graph.
        dtype: NumPy name of its element type.
        shape: Of a sample as the dataset holds it, without the batch axis.
        open_axes: Positions in `shape` whose length the graph leaves open.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    open_axes: frozenset[int] = frozenset()

    @property
    def is_integer(self) -> bool:
        return self.dtype in ("int32", "int64")


@dataclass(frozen=True)
class TeacherOutput:
    """An output of the teacher.

    Attributes:
        name: In the graph.
        dtype: Its element type.
        shape: For a sample of the dataset, without the batch axis.
        open_axes: Positions in `shape` whose length the graph leaves open.
        ending: What it comes out of.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    open_axes: frozenset[int] = frozenset()
    ending: Ending = "none"


@dataclass(frozen=True)
class Interface:
    """What a student has to take and to give.

    Attributes:
        inputs: In the teacher's order.
        outputs: In the teacher's order.
        tables: Rows of the tables in which each input is looked up, by the input's name; for tokens and their kinds.
    """

    inputs: tuple[TeacherInput, ...]
    outputs: tuple[TeacherOutput, ...]
    tables: dict[str, int]


def fitted(spec: ArchitectureStudent, teacher: Interface) -> Student:
    """A student with random weights from torch's generator.

    Raises:
        StepFailed: `student_does_not_fit`, saying what the architecture takes or gives, and which one would fit.
    """
    if len(teacher.inputs) > _MOST_INPUTS:
        raise _misfit(spec, f"takes {_MOST_INPUTS} inputs at most, the teacher has {len(teacher.inputs)}")
    reads: _Reads = "as_given"
    length: int | None = None
    backbone: Vector | Dense | Encoder
    if spec.name == "mlp":
        backbone = _dense(spec, teacher)
    elif spec.name == "transformer":
        backbone, length = _encoder(spec, teacher)
    else:
        backbone, reads = _convolutional(spec, teacher)
    heads = [_head(spec, backbone.features, output, length) for output in teacher.outputs]
    return Student(backbone, heads, [output.dtype for output in teacher.outputs], reads)


def _dense(spec: ArchitectureStudent, teacher: Interface) -> Dense:
    tokens = [one.name for one in teacher.inputs if one.name in teacher.tables]
    if tokens:
        raise _misfit(spec, f"cannot look up tokens, which '{tokens[0]}' holds; 'transformer' can")
    return Dense([math.prod(one.shape) for one in teacher.inputs], spec.width, spec.depth)


_Reads = Literal["as_given", "floats", "channels_last"]
_PUBLISHED: dict[str, Callable[[int, int, float], Vector]] = {
    "mobilenet_v2": pictures.mobilenet_v2,
    "mobilenet_v3_small": pictures.mobilenet_v3_small,
    "mobilenet_v3_large": pictures.mobilenet_v3_large,
    "squeezenet": pictures.squeezenet,
    "shufflenet_v2": pictures.shufflenet_v2,
    "efficientnet_lite0": pictures.efficientnet_lite0,
}


def _convolutional(spec: ArchitectureStudent, teacher: Interface) -> tuple[Vector, _Reads]:
    signals = spec.name == "cnn"
    wanted = "pictures (n, channels, height, width)" + (" or signals (n, channels, time)" if signals else "")
    if len(teacher.inputs) != 1:
        names = ", ".join(f"'{one.name}'" for one in teacher.inputs)
        raise _misfit(
            spec,
            f"takes one input of {wanted}, the teacher has {len(teacher.inputs)}: {names}; 'mlp' takes several inputs "
            "of fixed size, 'transformer' tokens with a mask",
        )
    (given,) = teacher.inputs
    shape = given.shape
    if len(shape) != 3 and not (signals and len(shape) == 2):
        raise _misfit(
            spec,
            f"takes {wanted}, the teacher's input '{given.name}' is {['n', *shape]}; 'mlp' takes any fixed size",
        )
    last = len(shape) == 3 and shape[-1] <= _FEW_CHANNELS < shape[0]
    channels, side = (shape[-1], min(shape[:-1])) if last else (shape[0], min(shape[1:]))
    if (len(shape) - 1 if last else 0) in given.open_axes:
        raise _misfit(spec, f"needs a fixed number of channels, the teacher's input '{given.name}' leaves it open")
    reads: _Reads = "channels_last" if last else "floats"
    if signals:
        return convolutions(channels, side, spec.width, spec.depth, len(shape) - 1), reads
    return _PUBLISHED[spec.name](channels, side, spec.width), reads


def _encoder(spec: ArchitectureStudent, teacher: Interface) -> tuple[Encoder, int]:
    """The encoder, and the length of the sequences in the dataset."""
    roles: dict[str, int] = {}
    for position, one in enumerate(teacher.inputs):
        role = _role(one, teacher.tables)
        if role is None or role in roles:
            raise _misfit(
                spec,
                "takes tokens (n, sequence) or vectors (n, sequence, features), with a mask and kinds of token where "
                f"their names say so ('…mask', '…type…'); the teacher's input '{one.name}' is {['n', *one.shape]} of "
                f"{one.dtype}",
            )
        roles[role] = position
    content_at = roles.get("tokens", roles.get("vectors"))
    if content_at is None or ("tokens" in roles and "vectors" in roles):
        raise _misfit(spec, "takes one input of tokens (n, sequence) or vectors (n, sequence, features)")
    content = teacher.inputs[content_at]
    kind_at = roles.get("kinds")
    encoder = Encoder(
        vocabulary=teacher.tables[content.name] if "tokens" in roles else None,
        values=content.shape[-1],
        kinds=0 if kind_at is None else teacher.tables.get(teacher.inputs[kind_at].name, 2),
        width=spec.width,
        depth=spec.depth,
        content_at=content_at,
        mask_at=roles.get("mask"),
        kind_at=kind_at,
    )
    return encoder, content.shape[0]


def _role(given: TeacherInput, tables: dict[str, int]) -> str | None:
    if len(given.shape) == 1 and "mask" in given.name.lower():
        return "mask"
    if len(given.shape) == 1 and given.is_integer and "type" in given.name.lower():
        return "kinds"
    if len(given.shape) == 1 and given.name in tables:
        return "tokens"
    if len(given.shape) == 2 and not given.is_integer and 1 not in given.open_axes:
        return "vectors"
    return None


def _head(spec: ArchitectureStudent, features: int, output: TeacherOutput, length: int | None) -> Head:
    shape = output.shape
    at_positions = (
        length is not None and bool(shape) and (0 in output.open_axes or (len(shape) > 1 and shape[0] == length))
    )
    rest = shape[1:] if at_positions else shape
    still_open = output.open_axes - {0} if at_positions else output.open_axes
    if still_open:
        raise _misfit(
            spec,
            f"gives outputs of fixed length, the teacher's '{output.name}' is open along axis {min(still_open) + 1}",
        )
    if not output.dtype.is_floating_point:
        kind = str(output.dtype).removeprefix("torch.")
        raise _misfit(spec, f"gives floats, the teacher's output '{output.name}' holds {kind}")
    if not 0 < math.prod(rest) <= _MOST_OUTPUTS:
        raise _misfit(
            spec,
            f"gives up to {_MOST_OUTPUTS} values for a sample, the teacher's output '{output.name}' has "
            f"{math.prod(rest)}",
        )
    return Head(features, Form(rest, at_positions, output.ending))


def _misfit(spec: ArchitectureStudent, reason: str) -> StepFailed:
    return StepFailed("student_does_not_fit", f"A student '{spec.name}' {reason}.")
