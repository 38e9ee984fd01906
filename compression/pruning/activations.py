"""How strongly each input of a layer is driven, measured on real samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from compression import publishing, runtime
from compression.context import Context
from compression.data.feed import ModelFeed
from compression.errors import StepFailed
from compression.graph import walk
from compression.graph.weights import Array, Weight

_SAMPLES = 256
_BATCH = 32
_AXES = {"Conv": 1, "Gemm": 1, "MatMul": -1}


def input_norms(
    model: onnx.ModelProto, weights: Sequence[Weight], feed: ModelFeed, context: Context
) -> dict[str, Array]:
    """The root mean square of what each weight is multiplied by (Sun et al. 2023, equation 1, up to a factor).

    Weights of Conv, Gemm and MatMul as the right factor are measured; of others nothing is said.

    Raises:
        StepFailed: `unsupported_by_runtime`.

    Returns:
        By weight name, (inputs,), or (groups x inputs,) for a convolution in groups: the first group's inputs first.
    """
    readers = _activations(model, weights)
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    present = {value.name for value in (*model.graph.output, *model.graph.input)}
    names = sorted({name for name, _ in readers.values()} - present)
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    path = context.workdir / "probe.onnx"
    publishing.write_model(path, probe)
    sums: dict[str, Array] = {}
    counts: dict[str, int] = {}
    for found in _values(path, feed, context):
        for weight, (name, axis) in readers.items():
            squares = np.square(np.moveaxis(found[name].astype(np.float64), axis, -1))
            rows = squares.reshape(-1, squares.shape[-1])
            sums[weight] = sums.get(weight, 0.0) + rows.sum(0)
            counts[weight] = counts.get(weight, 0) + len(rows)
    return {name: np.sqrt(total / counts[name]) for name, total in sums.items()}


def _values(path: Path, feed: ModelFeed, context: Context) -> Iterator[Mapping[str, Array]]:
    """Inputs and outputs of the model by name, batch by batch."""
    try:
        session = runtime.Model(path, context.threads)
        for batch in feed.batches(_BATCH, _SAMPLES):
            context.check_cancelled()
            yield session.tensors(batch.inputs) | batch.inputs
    except runtime.DoesNotRun as error:
        raise StepFailed("unsupported_by_runtime", f"Measuring activations failed: {error}") from error
    finally:
        path.unlink(missing_ok=True)


def with_norms(values: Iterable[tuple[Weight, Array]], norms: Mapping[str, Array]) -> Iterator[tuple[Weight, Array]]:
    """Each weight with its values times the norms of its inputs, where there are any."""
    for weight, value in values:
        norm = norms.get(weight.name)
        if norm is None or weight.input_axis is None:
            yield weight, value
            continue
        # The outputs of a group are multiplied by the group's own inputs.
        groups = norm.reshape(-1, weight.shape[weight.input_axis])
        of_outputs = np.repeat(groups, weight.shape[weight.output_axis] // len(groups), 0)
        last = np.moveaxis(np.abs(value.astype(np.float32)), (weight.output_axis, weight.input_axis), (-2, -1))
        driven = last * of_outputs.astype(np.float32)
        yield weight, np.moveaxis(driven, (-2, -1), (weight.output_axis, weight.input_axis))


def _activations(model: onnx.ModelProto, weights: Sequence[Weight]) -> dict[str, tuple[str, int]]:
    """By weight name, the value that it is multiplied by and that value's axis of inputs."""
    producers = {output: node for node in model.graph.node for output in node.output}
    wanted = {node: weight.name for weight in weights for node in weight.nodes}
    found: dict[str, tuple[str, int]] = {}
    for node in model.graph.node:
        weight = wanted.get(walk.display_name(node))
        if weight is None or node.op_type not in _AXES or weight not in _behind(producers, node.input[1]):
            continue
        transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        found.setdefault(weight, (node.input[0], 0 if transposed else _AXES[node.op_type]))
    return found


def _behind(producers: Mapping[str, onnx.NodeProto], name: str) -> set[str]:
    """A value and those that it is only another layout or type of."""
    names = {name}
    while name in producers and producers[name].op_type in ("Identity", "Cast", "Transpose"):
        name = producers[name].input[0]
        names.add(name)
    return names
