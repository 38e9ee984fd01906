"""Norms and pooling: one statistic or one window for each channel, or one over several of them."""

from __future__ import annotations

import onnx

from compression.pruning.channels import label_arrays
from compression.pruning.channels.engine import Engine, GroupedLayer, Rule, Unknown, attribute


def by_channel(engine: Engine, node: onnx.NodeProto) -> None:
    """BatchNormalization and InstanceNormalization: vectors along axis 1."""
    data, *vectors = node.input
    shape = engine.shape(data)
    vector_shape = [length if axis == 1 else 1 for axis, length in enumerate(shape)]
    operands, shapes = [engine.labels(data)], [list(shape)]
    for name in vectors:
        if engine.shape(name) != (shape[1],):
            raise Unknown
        operands.append(engine.labels(name).reshape([-1 if axis == 1 else 1 for axis in range(len(shape))]))
        shapes.append(vector_shape)
    engine.set(node.output[0], engine.combine(operands, shapes))
    if any(node.output[1:]):
        raise Unknown  # running statistics of a graph that still trains


def by_position(engine: Engine, node: onnx.NodeProto) -> None:
    """LayerNormalization, RMSNormalization: one statistic over the last axes, scale and bias along them."""
    data = node.input[0]
    shape = engine.shape(data)
    vectors = [name for name in node.input[1:] if name]
    engine.set(node.output[0], engine.broadcast([data, *vectors], (), shape))
    for name in node.output[1:]:
        if name:
            engine.set_none(name)


def in_groups(engine: Engine, node: onnx.NodeProto) -> None:
    """GroupNormalization: one statistic for each group of channels."""
    data, *vectors = node.input
    groups = attribute(node, "num_groups", 1)
    channels = engine.vector(data, 1)
    for name in vectors:
        if engine.shape(name) != (len(channels),):
            raise Unknown
        engine.join_vector(name, channels)
    if groups > 1:
        rows = channels.reshape(groups, -1)
        engine.grouped.append(GroupedLayer(node, rows, rows, None))
    engine.set(node.output[0], engine.labels(data))


def pool(engine: Engine, node: onnx.NodeProto) -> None:
    """Pooling slides over the axes from 2 on."""
    shape, labels = engine.shape(node.input[0]), engine.labels(node.input[0])
    labels = label_arrays.unify(engine.ids, labels, range(2, len(shape)))
    engine.set(node.output[0], labels)
    for name in node.output[1:]:
        if name:
            raise Unknown  # indices into the flattened input, which channels take part in


def normalize_axis(engine: Engine, node: onnx.NodeProto) -> None:
    """LpNormalization divides by the norm of what is left."""
    engine.set(node.output[0], engine.labels(node.input[0]))


_ALONE: dict[str, Rule] = {
    "BatchNormalization": by_channel,
    "InstanceNormalization": by_channel,
    "LayerNormalization": by_position,
    "RMSNormalization": by_position,
    "GroupNormalization": in_groups,
    "LpNormalization": normalize_axis,
}
RULES: dict[str, Rule] = _ALONE | dict.fromkeys(
    ("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"),
    pool,
)
