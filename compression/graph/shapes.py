"""Shapes of everything a graph computes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

from compression.graph.skeleton import is_small


@dataclass(frozen=True)
class KnownShape:
    """Element type and shape of one value; an axis of unknown length is None."""

    onnx_type: int
    axes: tuple[int | None, ...]

    @property
    def elements(self) -> int | None:
        lengths = [axis for axis in self.axes if axis is not None]
        return math.prod(lengths) if len(lengths) == len(self.axes) else None

    @property
    def itemsize(self) -> int:
        if self.onnx_type in (TensorProto.UNDEFINED, TensorProto.STRING):
            return 1
        return int(helper.tensor_dtype_to_np_dtype(self.onnx_type).itemsize)


def infer(
    model: onnx.ModelProto, *, one_sample: bool = False, inputs: Mapping[str, Sequence[int]] | None = None
) -> dict[str, KnownShape]:
    """Shapes of inputs, initializers, intermediate values and outputs of the main graph by name.

    Values of unknown rank are absent. Weights are left out of the copy that is analysed, so this takes
    milliseconds and no memory even for a model of 2 GiB.

    Args:
        model: A canonical model; it is not changed.
        one_sample: Give every open first axis of an input the length 1.
        inputs: Shapes to give to inputs, by name.
    """
    light = _without_weights(model)
    if one_sample:
        _fix_batch(light.graph)
    if inputs:
        _fix_inputs(light.graph, inputs)
    graph = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
    known = {
        tensor.name: KnownShape(tensor.data_type, tuple(int(length) for length in tensor.dims))
        for tensor in graph.initializer
    }
    for value in (*graph.input, *graph.value_info, *graph.output):
        shape = _value_shape(value)
        if shape is not None:
            known.setdefault(value.name, shape)
    return known


def _value_shape(value: onnx.ValueInfoProto) -> KnownShape | None:
    if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
        return None
    kind = value.type.tensor_type
    return KnownShape(kind.elem_type, tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim))


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    light = onnx.ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    graph = light.graph
    graph.name = model.graph.name
    graph.node.extend(_plain(model.graph.node, {tensor.name: tensor for tensor in model.graph.initializer}, graph))
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        # Shape inference reads the values of small integer tensors (targets of Reshape, axes, repeats), no others.
        if is_small(tensor):
            graph.initializer.append(tensor)
        else:
            graph.initializer.append(TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims))
    return light


def _plain(
    nodes: Iterable[onnx.NodeProto], weights: dict[str, onnx.TensorProto], graph: onnx.GraphProto
) -> list[onnx.NodeProto]:
    """The nodes with ONNX Runtime's block-quantized operators as the plain ones whose shapes ONNX knows."""
    plain = []
    for node in nodes:
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        if node.domain != "com.microsoft":
            plain.append(node)
        elif node.op_type == "MatMulNBits" and node.input[1] in weights:
            name = _unpacked(graph, node, TensorProto.FLOAT, [attributes["K"], attributes["N"]])
            plain.append(helper.make_node("MatMul", [node.input[0], name], [node.output[0]], node.name))
        elif node.op_type == "GatherBlockQuantized" and {node.input[0], node.input[2]} <= weights.keys():
            codes = weights[node.input[0]]
            packed = 8 // attributes.get("bits", 4) if codes.data_type == TensorProto.UINT8 else 1
            shape = [*codes.dims[:-1], codes.dims[-1] * packed]
            name = _unpacked(graph, node, weights[node.input[2]].data_type, shape)
            axis = attributes.get("gather_axis", 0)
            plain.append(helper.make_node("Gather", [name, node.input[1]], [node.output[0]], node.name, axis=axis))
        else:
            plain.append(node)
    return plain


def _unpacked(graph: onnx.GraphProto, node: onnx.NodeProto, onnx_type: int, shape: Sequence[int]) -> str:
    """The name of a tensor that stands for the weight of a block-quantized node."""
    tensor = TensorProto(name=f"{node.output[0]}.unpacked", data_type=onnx_type, dims=shape)
    graph.initializer.append(tensor)
    return str(tensor.name)


def _fix_batch(graph: onnx.GraphProto) -> None:
    for value in graph.input:
        axes = value.type.tensor_type.shape.dim
        if axes and not axes[0].HasField("dim_value"):
            axes[0].dim_value = 1
    _open_outputs(graph)


def _fix_inputs(graph: onnx.GraphProto, inputs: Mapping[str, Sequence[int]]) -> None:
    for value in graph.input:
        for axis, length in zip(value.type.tensor_type.shape.dim, inputs.get(value.name, ()), strict=False):
            axis.dim_value = length
    _open_outputs(graph)


def _open_outputs(graph: onnx.GraphProto) -> None:
    """Declared output shapes hold the open axes of inputs and would win over what is inferred."""
    for value in graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
