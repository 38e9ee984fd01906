"""The float weights of a graph: which there are, what their axes mean, how they are read and replaced."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from compression.errors import StepFailed
from compression.graph import walk
from compression.graph.load import FLOAT_TYPES
from compression.graph.tensors import dtype_name

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Weight:
    """A stored float tensor that a layer multiplies by or looks rows up in. Biases and norms are none.

    Attributes:
        name: Name of the initializer.
        shape: Lengths of its axes.
        dtype: NumPy name of its element type.
        nodes: Names of the nodes that use it, in graph order; a shared weight has several.
        operators: Their operators: `Conv`, `Gemm`, `Gather`, …
        output_axis: Axis of the output channels (for embeddings: of the entries).
        input_axis: Axis over which one output sums, None where nothing is summed (embeddings).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nodes: tuple[str, ...]
    operators: tuple[str, ...]
    output_axis: int
    input_axis: int | None

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def is_embedding(self) -> bool:
        """True when rows are only looked up, never multiplied by."""
        return self.input_axis is None


_RECURRENT = frozenset({"RNN", "GRU", "LSTM"})


@dataclass(frozen=True)
class _Use:
    node: onnx.NodeProto
    output_axis: int
    input_axis: int | None


def find_weights(model: onnx.ModelProto) -> list[Weight]:
    """The weights of Conv, ConvTranspose, Gemm, MatMul, RNN, GRU, LSTM and Gather in the order of the graph.

    Weights are found through Identity, Cast and Transpose too, with their axes as they are stored, and those of
    recurrent nodes through the cutting and joining that puts gates into ONNX's order. A weight that several nodes
    share is listed once, with the axes of the first node that multiplies by it.
    """
    stored = {
        tensor.name: tensor
        for tensor in model.graph.initializer
        if tensor.data_type in FLOAT_TYPES and len(tensor.dims) > 1 and 0 not in tensor.dims
    }
    producers = {output: node for node in model.graph.node for output in node.output if output}
    uses: dict[str, list[_Use]] = {}
    for node in walk.nodes(model):
        for position in range(len(node.input)):
            name, axes = _resolve(node.input[position], stored, producers)
            meaning = _axes(node, position, len(axes)) if name is not None else None
            if name is not None and meaning is not None:
                output_axis, input_axis = meaning
                use = _Use(node, axes[output_axis], None if input_axis is None else axes[input_axis])
                uses.setdefault(name, []).append(use)
            if node.op_type in _RECURRENT and position in (1, 2) and name is None:
                for part in _joined(node.input[position], stored, producers):
                    uses.setdefault(part, []).append(_Use(node, 0, 1))
    return [_weight(stored[name], found) for name, found in uses.items()]


def _weight(tensor: onnx.TensorProto, uses: Sequence[_Use]) -> Weight:
    main = next((use for use in uses if use.input_axis is not None), uses[0])
    return Weight(
        name=tensor.name,
        shape=tuple(int(length) for length in tensor.dims),
        dtype=dtype_name(tensor.data_type),
        nodes=tuple(dict.fromkeys(walk.display_name(use.node) for use in uses)),
        operators=tuple(dict.fromkeys(use.node.op_type for use in uses)),
        output_axis=main.output_axis,
        input_axis=main.input_axis,
    )


def _resolve(
    name: str, stored: Mapping[str, onnx.TensorProto], producers: Mapping[str, onnx.NodeProto]
) -> tuple[str | None, list[int]]:
    """The stored tensor behind a value, and for each axis of the value the stored axis that it is."""
    order: list[int] | None = None
    while name not in stored:
        node = producers.get(name)
        if node is None or node.op_type not in ("Identity", "Cast", "Transpose") or not node.input:
            return None, []
        if node.op_type == "Transpose":
            permutation = next((list(a.ints) for a in node.attribute if a.name == "perm"), None)
            if permutation is None:
                return None, []
            order = permutation if order is None else [permutation[axis] for axis in order]
        name = node.input[0]
    rank = len(stored[name].dims)
    return name, list(range(rank)) if order is None else order


def _joined(
    name: str, stored: Mapping[str, onnx.TensorProto], producers: Mapping[str, onnx.NodeProto]
) -> Iterator[str]:
    """The stored matrices, (gates x hidden, in), that the weight of a recurrent node is put together from."""
    todo, seen = [name], set[str]()
    while todo:
        part = todo.pop()
        node = producers.get(part)
        if part in seen:
            continue
        seen.add(part)
        if part in stored:
            if len(stored[part].dims) == 2:
                yield part
        elif node is not None and node.op_type in ("Concat", "Slice", "Split", "Unsqueeze", "Squeeze", "Identity"):
            todo += reversed(node.input if node.op_type == "Concat" else node.input[:1])


def _axes(node: onnx.NodeProto, position: int, rank: int) -> tuple[int, int | None] | None:
    """Output and input axis of the tensor at an input position, or None where it is no weight."""
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    meaning: tuple[int, int | None] | None = None
    match node.op_type, position:
        case "Conv", 1:  # (out, in / groups, *kernel)
            meaning = 0, 1
        case "ConvTranspose", 1:  # (in, out / groups, *kernel)
            meaning = 1, 0
        case "Gemm", 1:  # (in, out), or transposed
            meaning = (0, 1) if attributes.get("transB") else (1, 0)
        case "Gemm", 0:  # (out, in), or transposed
            meaning = (1, 0) if attributes.get("transA") else (0, 1)
        case "MatMul", 1:  # (*stack, in, out)
            meaning = rank - 1, rank - 2
        case "MatMul", 0:  # (*stack, out, in)
            meaning = rank - 2, rank - 1
        case operator, (1 | 2) if operator in _RECURRENT:  # (directions, gates x hidden, in)
            meaning = 1, 2
        case "Gather", 0 if attributes.get("axis", 0) == 0:  # (entries, *width)
            meaning = 0, None
    return meaning


def select(weights: Sequence[Weight], include: Iterable[str], exclude: Iterable[str]) -> list[Weight]:
    """The weights whose own name, or the name of a node that uses them, matches `include` and not `exclude`.

    Raises:
        StepFailed: `unknown_name` when a pattern matches nothing, `no_weights` when nothing is left to act on.
    """
    if not weights:
        raise StepFailed("no_weights", "The model has no float weights that this step acts on.")
    known = [name for weight in weights for name in (weight.name, *weight.nodes)]
    include, exclude = tuple(include), tuple(exclude)
    check_patterns((*include, *exclude), known)
    chosen = [weight for weight in weights if _matches(weight, include) and not _matches(weight, exclude)]
    if not chosen:
        raise StepFailed("no_weights", "The patterns of 'exclude' leave no weight of 'include' to act on.")
    return chosen


def _matches(weight: Weight, patterns: Iterable[str]) -> bool:
    return any(matches(name, pattern) for pattern in patterns for name in (weight.name, *weight.nodes))


def matches(name: str, pattern: str) -> bool:
    """Whether a name is the pattern itself (names may hold brackets) or matches it shell-style, by case."""
    return name == pattern or fnmatchcase(name, pattern)


def check_patterns(patterns: Iterable[str], names: Sequence[str]) -> None:
    """Raise `StepFailed` `unknown_name` for the first pattern that matches none of `names`, with the nearest ones."""
    for pattern in patterns:
        if not any(matches(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, dict.fromkeys(names), n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(repr(name) for name in near)}?" if near else _examples(names)
            raise StepFailed("unknown_name", f"No node or weight matches '{pattern}'; {hint}")


def _examples(names: Sequence[str]) -> str:
    some = ", ".join(repr(name) for name in list(dict.fromkeys(names))[:5])
    return f"there are {some} and others." if len(set(names)) > 5 else f"there are {some}."


def read(model: onnx.ModelProto, weights: Iterable[Weight]) -> Iterator[tuple[Weight, Array]]:
    """Each weight with its values, in the element type in which they are stored.

    Raises:
        StepFailed: `non_finite_weights` when a weight holds NaN or infinity, which no ranking or mean survives.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for weight in weights:
        values = numpy_helper.to_array(tensors[weight.name])
        check_finite(weight, values)
        yield weight, values


def check_finite(weight: Weight, values: Array) -> None:
    """Raise `StepFailed` `non_finite_weights` where values of a weight are NaN or infinite."""
    if not np.isfinite(values).all():
        raise StepFailed("non_finite_weights", f"Weight '{weight.name}' holds NaN or infinity.")


def replace(model: onnx.ModelProto, values: Mapping[str, Array]) -> None:
    """Store new values under the names of existing initializers, in place; shape and element type must not change."""
    for tensor in model.graph.initializer:
        if tensor.name in values:
            changed = numpy_helper.from_array(np.ascontiguousarray(values[tensor.name]), tensor.name)
            if changed.data_type != tensor.data_type or list(changed.dims) != list(tensor.dims):
                msg = f"'{tensor.name}' would change its shape or element type"
                raise ValueError(msg)
            tensor.CopyFrom(changed)
