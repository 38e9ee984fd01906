"""Trained values back into the ONNX graph that they came from."""

from __future__ import annotations

from typing import cast

import onnx
import torch
from torch import fx

from compression.graph.operators.bindings import Binding
from compression.graph.operators.dtypes import raw_bytes, tensor_from_proto


def write_back(module: fx.GraphModule, model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model with the values of a module that `to_torch` made of it.

    Only initializers change, and of those only the ones whose values did; element types stay. Running statistics
    that two layers read from one initializer and that have parted since get an initializer each.

    Raises:
        ValueError: the module was not made from this model, or a shape differs.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    stored = {tensor.name: tensor for tensor in result.graph.initializer}
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    for binding in cast("tuple[Binding, ...]", module.bindings):
        if binding.initializer not in stored:
            continue
        values = binding.layout.join([tensors[target].detach().cpu() for target in binding.targets])
        _store(result, stored[binding.initializer], values, binding)
    return result


def _store(model: onnx.ModelProto, proto: onnx.TensorProto, values: torch.Tensor, binding: Binding) -> None:
    before = tensor_from_proto(proto)
    if values.shape != before.shape:
        msg = f"'{proto.name}' has the shape {tuple(values.shape)} in the module and {tuple(before.shape)} in the model"
        raise ValueError(msg)
    values = values.to(before.dtype)
    if torch.equal(values, before):
        return
    readers = [
        (node, position) for node in model.graph.node for position, name in enumerate(node.input) if name == proto.name
    ]
    if binding.use is not None and len(readers) > 1:
        node, position = next(
            (node, position)
            for node, position in readers
            if node.output[0] == binding.use.output and position == binding.use.position
        )
        own = model.graph.initializer.add()
        own.CopyFrom(proto)
        own.name = f"{proto.name}.{binding.use.output}.{position}"
        node.input[position] = own.name
        proto = own
    name, data_type, dims = proto.name, proto.data_type, list(proto.dims)
    proto.CopyFrom(onnx.TensorProto(name=name, data_type=data_type, dims=dims, raw_data=raw_bytes(values)))
