"""From a module to an ONNX graph whose weights are the module's own, under the names of its `state_dict`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import nn
from torch.utils import _pytree as pytree

from compression.errors import ModelRejected
from compression.graph import walk
from compression.graph.architectures.layer_list import LayerList
from compression.graph.architectures.libraries import quiet, reraise_out_of_memory, sentence
from compression.graph.architectures.spec import Input

# From 23 on attention becomes one operator, whose multiplications nobody counts yet.
OPSET = 22
_TRACED_BATCH = 2
_SPATIAL, _SEQUENCE = 64, 16

Array = npt.NDArray[Any]


class Network:
    """A module with the tensors that it takes.

    Args:
        module: In evaluation mode.
        inputs: Without the batch axis. Named ones are passed by name when there are several, or when the module's
            first parameter has that name.
    """

    def __init__(self, module: nn.Module, inputs: Sequence[Input], *, by_name: bool) -> None:
        self.module = module
        self.inputs = inputs
        self.names = [one.name or "input" for one in inputs]
        self._by_name = by_name

    def example(self, batch: int, seed: int) -> dict[str, Array]:
        """Random inputs: normal floats, integers 0 or 1; open axes get 64 entries in pictures, else 16."""
        rng = np.random.default_rng(seed)
        rank = max(len(one.shape) for one in self.inputs)
        length = _SPATIAL if rank >= 3 else _SEQUENCE
        arrays = {}
        for name, one in zip(self.names, self.inputs, strict=True):
            shape = (batch, *(axis if isinstance(axis, int) else length for axis in one.shape))
            values = rng.standard_normal(shape) if one.dtype == "float32" else rng.integers(0, 2, shape)
            arrays[name] = values.astype(one.dtype)
        return arrays

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs by name.

        Raises:
            ModelRejected: `architecture_invalid` when the module does not take these inputs.
        """
        args, kwargs = self._call(arrays)
        try:
            with torch.inference_mode(), quiet():
                value = self.module.check(*args) if isinstance(self.module, LayerList) else self.module(*args, **kwargs)
        except ModelRejected:
            raise
        except Exception as error:  # noqa: BLE001 - libraries raise what they like
            reraise_out_of_memory(error)
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
            raise ModelRejected(
                "architecture_invalid",
                f"The architecture does not take the input {shapes} (batch first): {sentence(error)} "
                "Give another one in 'input'.",
            ) from None
        return {name: tensor.detach().numpy() for name, tensor in _named(value)}

    def _call(self, arrays: Mapping[str, Array]) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return ((), tensors) if self._by_name else (tuple(tensors.values()), {})

    def export(self, output_names: Sequence[str]) -> onnx.ModelProto:
        """Trace the module once. The batch axis stays open, batch normalization and dropout-free evaluation as in
        `eval`; constants are folded, weights are not touched.

        Raises:
            ModelRejected: `export_failed`.
        """
        args, kwargs = self._call(self.example(_TRACED_BATCH, seed=0))
        axes: dict[str, Any] = {"batch": torch.export.Dim("batch")}
        shapes = []
        for one in self.inputs:
            names = ["batch", *one.shape]
            axes |= {name: torch.export.Dim(name) for name in names if isinstance(name, str) and name not in axes}
            shapes.append({position: axes[name] for position, name in enumerate(names) if isinstance(name, str)})
        try:
            with torch.no_grad(), quiet():
                program: Any = torch.onnx.export(
                    self.module,
                    args,
                    kwargs=kwargs,
                    dynamo=True,
                    optimize=False,
                    opset_version=OPSET,
                    verbose=False,
                    input_names=self.names,
                    output_names=list(output_names),
                    dynamic_shapes=dict(zip(self.names, shapes, strict=True)) if self._by_name else tuple(shapes),
                )
                return _serialize(program.model, self.module.state_dict())
        except Exception as error:  # noqa: BLE001 - libraries raise what they like
            reraise_out_of_memory(error)
            raise ModelRejected(
                "export_failed", f"The architecture cannot be written as an ONNX graph: {sentence(error)}"
            ) from None


def _serialize(model: Any, state: Mapping[str, torch.Tensor]) -> onnx.ModelProto:  # noqa: ANN401 - onnx_ir.Model
    """Fold constants and drop dead nodes, with the weights out of reach meanwhile.

    The optimizer would fold batch normalization into convolutions and transpose matrices under new names. What is an
    input of the graph it leaves alone, so for its time the weights are inputs.
    """
    optimizer = import_module("onnxscript.optimizer")
    graph = model.graph
    weights = [graph.initializers.pop(name) for name in list(graph.initializers) if name in state]
    values = [weight.const_value for weight in weights]
    for weight in weights:
        weight.const_value = None
    names = [weight.name for weight in weights]
    graph.inputs.extend(weights)
    optimizer.optimize_ir(model)
    del graph.inputs[len(graph.inputs) - len(weights) :]
    for weight, value, name in zip(weights, values, names, strict=True):
        if weight.uses():
            weight.name = name
            weight.const_value = value
            graph.register_initializer(weight)
    for node in graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for output in node.outputs:
            output.metadata_props.clear()
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()
    model.metadata_props.clear()
    graph.metadata_props.clear()
    proto: onnx.ModelProto = import_module("onnx_ir").serde.serialize_model(model)
    proto.doc_string = ""
    for node in walk.nodes(proto):
        # They come in the order of a set, which is another one in every process.
        attributes = sorted(node.attribute, key=lambda attribute: attribute.name)
        copies = [onnx.AttributeProto.FromString(attribute.SerializeToString()) for attribute in attributes]
        node.ClearField("attribute")
        node.attribute.extend(copies)
    del proto.graph.value_info[:]
    return proto


def _named(value: object) -> list[tuple[str, torch.Tensor]]:
    """Tensors among a module's outputs: a mapping's by key, one alone as `output`, others by number."""
    pairs = [(path, one) for path, one in pytree.tree_flatten_with_path(value)[0] if isinstance(one, torch.Tensor)]
    if len(pairs) == 1 and not pairs[0][0]:
        return [("output", pairs[0][1])]
    return [("_".join(_part(part) for part in path), one) for path, one in pairs]


def _part(part: object) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(part, attribute):
            found = getattr(part, attribute)
            return f"output_{found}" if isinstance(found, int) else str(found)
    return "output"
