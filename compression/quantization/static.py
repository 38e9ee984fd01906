"""Static quantization: integer weights and activations, with activation ranges from calibration data."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from compression.context import Context
from compression.data import Dataset
from compression.data.feed import ModelFeed
from compression.errors import DataRejected
from compression.graph.inspect import summarize
from compression.graph.weights import Weight, find_weights
from compression.quantization import gemm, prepare
from compression.quantization.calibration import activation_ranges
from compression.quantization.isa import saturates
from compression.quantization.spec import QuantizeStatic

# Scales per channel came to QuantizeLinear and DequantizeLinear with operator set 13.
_OPSET = 13
# ONNX Runtime's CPU kernels compute float16 by way of float32, so nothing of it would be left to quantize.
_DTYPES = frozenset({"float32"})


@dataclass(frozen=True)
class Calibrated:
    """A float graph with all that is needed to quantize any part of it; nothing in it is changed afterwards.

    Attributes:
        graph: The optimized graph, every node named.
        original: The model that it was made from, which a result is described like.
        chosen: The weights that the spec selects.
        float_nodes: Names of the nodes that stay float in any case.
        ranges: Lowest and highest value of every activation, as ONNX Runtime's quantizer takes them.
        spec: The settings.
        reduce_range: Whether weights have 7 of 8 bits.
    """

    graph: onnx.ModelProto
    original: onnx.ModelProto
    chosen: tuple[Weight, ...]
    float_nodes: frozenset[str]
    ranges: Any
    spec: QuantizeStatic
    reduce_range: bool


def quantize_static(
    model: onnx.ModelProto, spec: QuantizeStatic, context: Context, calibration: Dataset | None
) -> tuple[onnx.ModelProto, dict[str, object]]:
    """Insert QuantizeLinear/DequantizeLinear pairs, which runtimes fuse into integer operators (Jacob et al. 2017).

    Weights become int8, symmetric; biases int32. Activations become unsigned with a zero point of their own, or
    signed and symmetric. Nodes without weights take part unless they compute on the output of a node that stays float.

    Returns:
        The quantized model (the argument is not changed), and what was quantized by which ranges.

    Raises:
        StepFailed: `already_quantized`, `no_float_weights`, `unknown_name`, `no_weights`, `non_finite_weights`,
            `name_taken` or `unsupported_by_runtime`.
        DataRejected: `calibration_data_missing`, `dataset_mismatch` or `non_finite_values`.
    """
    calibrated = calibrate(model, spec, context, calibration)
    result = with_pairs(calibrated, context)
    return result, describe(calibrated, result)


def calibrate(
    model: onnx.ModelProto, spec: QuantizeStatic, context: Context, calibration: Dataset | None
) -> Calibrated:
    """All that comes before pairs are inserted: the graph prepared, and its activations measured once.

    Raises:
        StepFailed: `already_quantized`, `no_float_weights`, `unknown_name`, `no_weights`, `non_finite_weights` or
            `unsupported_by_runtime`.
        DataRejected: `calibration_data_missing`, `dataset_mismatch` or `non_finite_values`.
    """
    if calibration is None:
        raise DataRejected(
            "calibration_data_missing",
            "Static quantization reads activation ranges from data: give a calibration dataset, or use mode 'dynamic'.",
        )
    graph = prepare.working_copy(model)
    chosen, left = prepare.choose(graph, spec.include, spec.exclude, _DTYPES)
    feed = calibration if isinstance(calibration, ModelFeed) else None
    feed = feed or ModelFeed(calibration, summarize(model, 0, 0), "calibration")
    graph = prepare.optimized(prepare.at_least_opset(graph, _OPSET), context)
    reduce_range = saturates() if spec.reduce_range is None else spec.reduce_range
    unfit = gemm.with_plain_biases(graph)
    float_nodes = frozenset({*unfit, *(name for weight in left for name in weight.nodes)})
    ranges = activation_ranges(graph, _operators(), feed, spec, context)
    return Calibrated(graph, model, tuple(chosen), float_nodes, ranges, spec, reduce_range)


def with_pairs(calibrated: Calibrated, context: Context, float_nodes: Collection[str] = ()) -> onnx.ModelProto:
    """The model with pairs around all nodes but those that stay float; can be called for one choice after another.

    Args:
        calibrated: What `calibrate` gave.
        context: The surroundings of the run.
        float_nodes: Names of nodes of `calibrated.graph` that stay float beside `calibrated.float_nodes`.

    Returns:
        A model that ONNX Runtime has loaded.

    Raises:
        StepFailed: `name_taken` or `unsupported_by_runtime`.
    """
    graph = onnx.ModelProto()
    graph.CopyFrom(calibrated.graph)
    excluded = computed_in_float(graph, calibrated.float_nodes.union(float_nodes))
    result = _insert_pairs(
        graph, calibrated.ranges, _operators(), excluded, calibrated.spec, reduce_range=calibrated.reduce_range
    )
    return prepare.finished(result, calibrated.original, context)


def describe(calibrated: Calibrated, result: onnx.ModelProto, float_nodes: Collection[str] = ()) -> dict[str, object]:
    """What was quantized by which ranges, and which nodes stay float.

    Raises:
        StepFailed: `no_weights` when not one weight was quantized.
    """
    return {
        "reduce_range": calibrated.reduce_range,
        "weights": prepare.describe(calibrated.chosen, result, "its operator has no integer form in this mode"),
        "float_nodes": computed_in_float(calibrated.graph, calibrated.float_nodes.union(float_nodes)),
        "activations": _describe_ranges(result, calibrated.ranges),
    }


def _describe_ranges(result: onnx.ModelProto, ranges: Any) -> list[dict[str, object]]:  # noqa: ANN401
    """The ranges of those activations that are quantized, in the order of the graph."""
    names = dict.fromkeys(node.input[0] for node in result.graph.node if node.op_type == "QuantizeLinear")
    return [
        {"name": name, "lowest": ranges[name].lowest.item(), "highest": ranges[name].highest.item()}
        for name in names
        if name in ranges
    ]


def _operators() -> list[str]:
    from onnxruntime.quantization import registry  # noqa: PLC0415 - imported where it is needed

    return sorted({*registry.QLinearOpsRegistry, *registry.QDQRegistry})


def computed_in_float(graph: onnx.ModelProto, left: Collection[str]) -> list[str]:
    """The nodes in `left`, and those without weights that compute on what such nodes give out.

    An Add or a pool after a layer that stays float would quantize an activation for nothing.
    """
    if not left:
        return []
    with_weights = {name for weight in find_weights(graph) for name in weight.nodes}
    tainted: set[str] = set()
    found = []
    for node in graph.graph.node:
        is_float = node.name in left
        if node.name not in with_weights:
            is_float = is_float or any(name in tainted for name in node.input)
        if is_float:
            found.append(node.name)
            tainted.update(node.output)
    return found


def _insert_pairs(
    graph: onnx.ModelProto,
    ranges: Any,  # noqa: ANN401 - ONNX Runtime is untyped
    operators: Sequence[str],
    excluded: Sequence[str],
    spec: QuantizeStatic,
    *,
    reduce_range: bool,
) -> onnx.ModelProto:
    from onnxruntime.quantization import QDQQuantizer, QuantType, quant_utils  # noqa: PLC0415 - where it is needed

    # Otherwise the quantizer would infer shapes once more, by way of a file in the system's folder for such.
    quant_utils.add_infer_metadata(graph)
    if spec.symmetric_activations:
        activation = QuantType.QInt8 if spec.activation_bits == 8 else QuantType.QInt16
    else:
        activation = QuantType.QUInt8 if spec.activation_bits == 8 else QuantType.QUInt16
    with prepare.runtime_failures("quantizing"):
        quantizer = QDQQuantizer(
            graph,
            per_channel=spec.per_channel,
            reduce_range=reduce_range,
            weight_qType=QuantType.QInt8,
            activation_qType=activation,
            tensors_range=ranges,
            nodes_to_quantize=[],
            nodes_to_exclude=list(excluded),
            op_types_to_quantize=list(operators),
            extra_options={"ActivationSymmetric": spec.symmetric_activations},
        )
        quantizer.quantize_model()
    result: onnx.ModelProto = quantizer.model.model
    return result
