"""Models without their weights: copies that take no memory, whatever the model weighs."""

from __future__ import annotations

from collections.abc import Collection

import onnx
from google.protobuf.message import Message

from compression.graph.tensors import is_external, stored_bytes

# Shape inference and runtimes want the values of small tensors (axes, targets of Reshape) at hand.
_SMALL = 1024


def weight_bytes(model: onnx.ModelProto) -> int:
    """Bytes of the initializers in memory, without counting the model as a whole: protobuf refuses it above 2 GiB."""
    return sum(tensor.ByteSize() for tensor in model.graph.initializer)


def outside_bytes(model: onnx.ModelProto) -> int:
    """Bytes of the initializers whose values lie in files (see `compression.graph.stored`)."""
    return sum(stored_bytes(tensor) for tensor in model.graph.initializer if is_external(tensor))


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without initializers."""
    copy = onnx.ModelProto()
    _copy_fields(model, copy, but="graph")
    _copy_fields(model.graph, copy.graph, but="initializer")
    return copy


def with_weights_as_inputs(
    model: onnx.ModelProto, chosen: Collection[onnx.TensorProto] | None = None
) -> onnx.ModelProto:
    """A copy whose large initializers, or those that are chosen, are inputs of the same name, type and shape."""
    copy = without_weights(model)
    present = {value.name for value in copy.graph.input}
    names = None if chosen is None else {tensor.name for tensor in chosen}
    for tensor in model.graph.initializer:
        if is_small(tensor) if names is None else tensor.name not in names:
            copy.graph.initializer.append(tensor)
        elif tensor.name not in present:
            copy.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    return copy


def is_small(tensor: onnx.TensorProto) -> bool:
    """Whether a tensor stays in the graph where weights are kept beside it."""
    return not is_external(tensor) and bool(tensor.ByteSize() <= _SMALL)


def _copy_fields(source: Message, copy: Message, *, but: str) -> None:
    for field, value in source.ListFields():
        if field.name == but:
            continue
        present = getattr(copy, field.name)
        if hasattr(present, "extend"):
            present.extend(value)
        elif isinstance(value, Message):
            present.CopyFrom(value)
        else:
            setattr(copy, field.name, value)
