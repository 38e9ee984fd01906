"""Trained values back into the ONNX graph that they came from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import onnx
import torch
from torch import fx

from compression.graph.operators.bindings import Binding, Use
from compression.graph.operators.dtypes import raw_bytes, tensor_from_proto
from compression.graph.operators.scopes import Scope, count_uses, first_output, scopes


def write_back(module: fx.GraphModule, model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model with the values of a module that `to_torch` made of it.

    Only initializers change, those of If, Loop and Scan bodies too, and of those only the ones whose values did;
    element types stay. What several layers read from one initializer and hold apart (running statistics, and vectors
    that were equal at first, see `Binding.use`) gets an initializer per layer once it differs.

    Args:
        module: Made from this model.
        model: May hold initializers that the module does not know.

    Raises:
        ValueError: the module was not made from this model: an initializer is missing, or has another shape. All that
            are missing are named.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    changes: list[tuple[Binding, onnx.TensorProto, torch.Tensor]] = []
    same: list[tuple[Binding, onnx.TensorProto, torch.Tensor]] = []
    for binding, proto in _stored(cast("tuple[Binding, ...]", module.bindings), result):
        before = tensor_from_proto(proto)
        values = binding.layout.join([tensors[target].detach().cpu() for target in binding.targets]).to(before.dtype)
        if values.shape != before.shape:
            msg = f"'{proto.name}' has shape {tuple(values.shape)} in the module and {tuple(before.shape)} in the model"
            raise ValueError(msg)
        (same if torch.equal(values, before) else changes).append((binding, proto, values))
    # What a reader holds apart stays apart when the others change.
    in_place = {(binding.scope, binding.initializer) for binding, _, _ in changes if binding.use is None}
    changes += [held for held in same if held[0].use and (held[0].scope, held[0].initializer) in in_place]
    separator = _Separator(result)
    # Readers that keep the first values get their copies before these change.
    for binding, proto, _ in changes:
        for use in binding.constants:
            separator.separate(proto, use, binding.scope)
    for binding, proto, values in sorted(changes, key=lambda change: change[0].use is None):
        shared = binding.use is not None and separator.uses[proto.name] > 1
        own = separator.separate(proto, binding.use, binding.scope) if shared and binding.use else proto
        _set(own, values)
    separator.drop_unread()
    return result


def _stored(bindings: Sequence[Binding], model: onnx.ModelProto) -> list[tuple[Binding, onnx.TensorProto]]:
    """Every binding with its initializer."""
    stored = {(scope, tensor.name): tensor for scope, graph in scopes(model.graph) for tensor in graph.initializer}
    missing = [binding.initializer for binding in bindings if (binding.scope, binding.initializer) not in stored]
    if missing:
        names = ", ".join(repr(name) for name in missing)
        msg = f"the model is another than was imported: it has no initializer {names}"
        raise ValueError(msg)
    return [(binding, stored[binding.scope, binding.initializer]) for binding in bindings]


class _Separator:
    """Gives readers of shared initializers copies of their own."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.uses = count_uses(model)
        self._model = model
        self._graphs = dict(scopes(model.graph))
        self._left: list[tuple[Scope, str]] = []
        self._taken = {
            name
            for graph in self._graphs.values()
            for name in (
                *(tensor.name for tensor in graph.initializer),
                *(value.name for value in graph.input),
                *(output for node in graph.node for output in node.output),
            )
        }

    def separate(self, proto: onnx.TensorProto, use: Use, scope: Scope) -> onnx.TensorProto:
        """A copy of an initializer, stored beside it, that one reader takes instead of it."""
        nodes: Sequence[onnx.NodeProto] = self._graphs[use.scope].node if use.scope in self._graphs else ()
        reader = next((node for node in nodes if first_output(node) == use.output), None)
        if reader is None:
            msg = f"the model is another than was imported: nothing computes '{use.output}' from '{proto.name}'"
            raise ValueError(msg)
        graph = self._graphs[scope]
        own: onnx.TensorProto = graph.initializer.add()
        own.CopyFrom(proto)
        own.name = self._new_name(reader.input[use.position])
        reader.input[use.position] = own.name
        if self._model.ir_version < 4:
            # Before IR 4 an initializer had to be an input too.
            graph.input.append(onnx.helper.make_tensor_value_info(own.name, own.data_type, own.dims))
        self._left.append((scope, proto.name))
        return own

    def _new_name(self, read_as: str) -> str:
        count = 1
        while f"{read_as}_{count}" in self._taken:
            count += 1
        self._taken.add(f"{read_as}_{count}")
        return f"{read_as}_{count}"

    def drop_unread(self) -> None:
        """Remove initializers whose last reader has got a copy."""
        if not self._left:
            return
        read = {name for graph in self._graphs.values() for node in graph.node for name in node.input}
        read |= {value.name for graph in self._graphs.values() for value in graph.output}
        for scope, name in dict.fromkeys(self._left):
            graph = self._graphs[scope]
            if name not in read and name not in {value.name for value in graph.input}:
                graph.initializer.remove(next(tensor for tensor in graph.initializer if tensor.name == name))


def _set(proto: onnx.TensorProto, values: torch.Tensor) -> None:
    name, data_type, dims = proto.name, proto.data_type, list(proto.dims)
    proto.CopyFrom(onnx.TensorProto(name=name, data_type=data_type, dims=dims, raw_data=raw_bytes(values)))
