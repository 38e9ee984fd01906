"""Dynamic quantization: integer weights, activations quantized at run time by the range of each batch."""

from __future__ import annotations

import onnx

from compression.context import Context
from compression.quantization import gemm, prepare
from compression.quantization.isa import saturates
from compression.quantization.spec import QuantizeDynamic

# DynamicQuantizeLinear came with operator set 11, and takes float32 alone.
_OPSET = 11
_DTYPES = frozenset({"float32"})


def quantize_dynamic(
    model: onnx.ModelProto, spec: QuantizeDynamic, context: Context
) -> tuple[onnx.ModelProto, dict[str, object]]:
    """Convolutions, matrix products, LSTMs and embeddings with int8 weights.

    Convolutions have one scale for each tensor whatever `per_channel` says: ConvInteger knows no other.

    Returns:
        The quantized model (the argument is not changed), and what was quantized.

    Raises:
        StepFailed: `already_quantized`, `no_float_weights`, `unknown_name`, `no_weights`, `non_finite_weights`,
            `name_taken` or `unsupported_by_runtime`.
    """
    graph = prepare.working_copy(model)
    chosen, left = prepare.choose(graph, spec.include, spec.exclude, _DTYPES)
    graph = prepare.optimized(prepare.at_least_opset(graph, _OPSET), context)
    nodes = prepare.nodes_of(chosen, left)
    gemm.to_matmul(graph, nodes)
    reduce_range = saturates() if spec.reduce_range is None else spec.reduce_range
    result = _quantize(graph, nodes, per_channel=spec.per_channel, reduce_range=reduce_range)
    result = prepare.finished(result, model, context)
    reason = "its operator has no integer form in this mode"
    return result, {"reduce_range": reduce_range, "weights": prepare.describe(chosen, result, reason)}


def _quantize(graph: onnx.ModelProto, nodes: list[str], *, per_channel: bool, reduce_range: bool) -> onnx.ModelProto:
    from onnxruntime.quantization import QuantizationMode, QuantType, quant_utils, registry  # noqa: PLC0415
    from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer  # noqa: PLC0415 - imported where it is needed

    with prepare.runtime_failures("quantizing"):
        inferred = onnx.shape_inference.infer_shapes(graph, data_prop=True)
        # Otherwise the quantizer would infer shapes once more, by way of a file in the system's folder for such.
        quant_utils.add_infer_metadata(inferred)
        quantizer = ONNXQuantizer(
            inferred,
            per_channel,
            reduce_range,
            QuantizationMode.IntegerOps,
            False,  # not static: ranges come at run time
            QuantType.QInt8,
            QuantType.QUInt8,
            None,
            nodes,
            [],
            sorted(registry.IntegerOpsRegistry),
            {"MatMulConstBOnly": True},
        )
        quantizer.quantize_model()
    result: onnx.ModelProto = quantizer.model.model
    return result
