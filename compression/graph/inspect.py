"""What a model is, without running it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx

from compression.errors import ModelRejected
from compression.graph import walk
from compression.graph.limits import DEFAULT_LIMITS, LARGEST_MESSAGE, Limits
from compression.graph.load import load
from compression.graph.macs import count_macs
from compression.graph.parameters import QUANTIZED_OPERATORS, count_parameters
from compression.graph.tensors import dtype_name
from compression.signature import Dimension, ModelSummary, TensorSpec, unfit


def inspect_model(path: Path, *, limits: Limits = DEFAULT_LIMITS, held_bytes: int = LARGEST_MESSAGE) -> ModelSummary:
    """Load and describe an ONNX file; raises `ModelRejected` like `compression.graph.load.load`."""
    loaded = load(path, limits=limits, held_bytes=held_bytes)
    summary = summarize(loaded.model, loaded.file_bytes, loaded.external_data_bytes)
    reason = unfit(summary)
    if reason is not None:
        raise ModelRejected("invalid_model", f"The model cannot be described. {reason}")
    return summary


def summarize(model: onnx.ModelProto, file_bytes: int, external_data_bytes: int) -> ModelSummary:
    """Describe a model that is loaded already.

    Args:
        model: A canonical or quantized model.
        file_bytes: Bytes of its files, external data included.
        external_data_bytes: Bytes of the external data alone.
    """
    parameters = count_parameters(model)
    stored = {tensor.name for tensor in model.graph.initializer}
    operators = Counter(_operator(node) for node in walk.nodes(model))
    return ModelSummary(
        format="onnx",
        ir_version=model.ir_version,
        opsets={entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        producer=" ".join(part for part in (model.producer_name, model.producer_version) if part),
        inputs=tuple(_tensor_spec(value) for value in model.graph.input if value.name not in stored),
        outputs=tuple(_tensor_spec(value) for value in model.graph.output),
        operators=dict(sorted(operators.items())),
        nodes=operators.total(),
        parameters=parameters.elements,
        nonzero_parameters=parameters.nonzero,
        parameter_bytes=parameters.bytes,
        macs=count_macs(model),
        file_bytes=file_bytes,
        external_data_bytes=external_data_bytes,
        quantized=any(node.op_type in QUANTIZED_OPERATORS for node in walk.nodes(model)),
    )


def _operator(node: onnx.NodeProto) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


def _tensor_spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        return TensorSpec(name=value.name, dtype=(kind or "unknown").removesuffix("_type"), shape=None)
    tensor = value.type.tensor_type
    shape = tuple(_dimension(axis) for axis in tensor.shape.dim) if tensor.HasField("shape") else None
    return TensorSpec(name=value.name, dtype=dtype_name(tensor.elem_type), shape=shape)


def _dimension(axis: onnx.TensorShapeProto.Dimension) -> Dimension:
    if axis.HasField("dim_value"):
        return int(axis.dim_value)
    return axis.dim_param or None
