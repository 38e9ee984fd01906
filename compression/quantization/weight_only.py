"""Weight-only quantization: matrices in 4 or 8 bits by groups, multiplied as floats."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import helper, numpy_helper

from compression.context import Context
from compression.graph import walk
from compression.graph.weights import Weight, read
from compression.quantization import gemm, groupwise, prepare
from compression.quantization.spec import QuantizeWeightOnly

_DOMAIN = "com.microsoft"
_DTYPES = frozenset({"float32", "float16"})


def quantize_weight_only(
    model: onnx.ModelProto, spec: QuantizeWeightOnly, context: Context
) -> tuple[onnx.ModelProto, dict[str, object]]:
    """Store the matrices of MatMul and Gemm as codes in groups, for ONNX Runtime's MatMulNBits to read.

    Rounds to nearest, without data. Convolutions, recurrent layers and embeddings stay as they are.

    Returns:
        The quantized model (the argument is not changed), and per weight the groups and the mean squared error, or why
        it was skipped.

    Raises:
        StepFailed: `already_quantized`, `no_float_weights`, `unknown_name`, `no_weights`, `non_finite_weights`,
            `name_taken` or `unsupported_by_runtime`.
    """
    result = prepare.working_copy(model)
    chosen, left = prepare.choose(result, spec.include, spec.exclude, _DTYPES)
    gemm.to_matmul(result, prepare.nodes_of(chosen, left))
    able = {weight.name: _reason_to_skip(weight, result) for weight in chosen}
    report: list[dict[str, object]] = []
    for done, (weight, values) in enumerate(read(result, chosen)):
        context.check_cancelled()
        context.progress("quantizing", done / len(chosen), weight.name)
        entry: dict[str, object] = {"name": weight.name, "shape": list(weight.shape), "nodes": list(weight.nodes)}
        reason = able[weight.name]
        if reason is None:
            groups = groupwise.quantize(values, spec.weight_bits, spec.group_size, symmetric=spec.symmetric)
            _replace(result, weight.name, values.shape, groups, spec)
            error = groupwise.dequantize(groups, len(values)) - values
            entry |= {"scales": groups.scales.size, "mean_squared_error": float(np.mean(np.square(error)))}
        else:
            entry["skipped"] = reason
        report.append(entry)
    prepare.check_some(report)
    if all(entry.domain != _DOMAIN for entry in result.opset_import):
        result.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
    return prepare.finished(result, model, context), {"weights": report}


def _reason_to_skip(weight: Weight, model: onnx.ModelProto) -> str | None:
    """Why a weight cannot become codes in groups, or None where it can."""
    if any(weight.name == value.name for value in model.graph.output):
        return "it is an output of the model"
    users = [(graph, node) for graph, _ in walk.graphs(model) for node in graph.node if weight.name in node.input]
    reasons = (_reason_at(node, weight.name, in_subgraph=graph is not model.graph) for graph, node in users)
    found = next((reason for reason in reasons if reason is not None), None)
    if found is None and len(weight.shape) != 2:
        return f"it has {len(weight.shape)} axes, and this mode is for matrices"
    return found


def _reason_at(node: onnx.NodeProto, weight: str, *, in_subgraph: bool) -> str | None:
    """Why this node cannot take the weight as codes in groups, or None where it can."""
    name = walk.display_name(node)
    if node.op_type == "Gemm":
        return f"Gemm '{name}' transposes its input, scales an input that is not stored, or shares the weight"
    if node.op_type != "MatMul":
        return f"it serves {node.op_type} '{name}', and this mode is for matrix products"
    if list(node.input).index(weight) != 1:
        return f"node '{name}' multiplies by it from the left"
    return f"node '{name}' lies in a subgraph" if in_subgraph else None


def _replace(
    model: onnx.ModelProto, name: str, shape: Collection[int], groups: groupwise.Groups, spec: QuantizeWeightOnly
) -> None:
    """Store codes, scales and zero points in place of a weight, and turn the MatMul nodes that use it."""
    inputs, outputs = shape
    bits = spec.weight_bits
    parts = {f"{name}_quantized": groupwise.pack(groups.values, bits), f"{name}_scale": groups.scales}
    if not spec.symmetric:
        parts[f"{name}_zero_point"] = groupwise.pack(groups.zero_points, bits)
    codes, *others = (numpy_helper.from_array(values, part) for part, values in parts.items())
    # In place: a list of initializers that is built anew for each weight is a copy of the whole model for each weight.
    next(tensor for tensor in model.graph.initializer if tensor.name == name).CopyFrom(codes)
    model.graph.initializer.extend(others)
    for node in model.graph.node:
        if name in node.input:
            product = helper.make_node(
                "MatMulNBits",
                [node.input[0], *parts],
                node.output,
                node.name,
                domain=_DOMAIN,
                K=inputs,
                N=outputs,
                bits=bits,
                block_size=spec.group_size,
            )
            node.CopyFrom(product)
