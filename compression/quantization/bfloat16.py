"""Weights in bfloat16 at rest."""

from __future__ import annotations

import onnx
from ml_dtypes import bfloat16
from onnx import TensorProto, helper, numpy_helper

from compression.context import Context
from compression.graph import walk
from compression.graph.weights import read
from compression.quantization import prepare
from compression.quantization.spec import QuantizeBfloat16

_DTYPES = frozenset({"float32"})
# Cast takes bfloat16 from this operator set on.
_OPSET = 13


def quantize_bfloat16(
    model: onnx.ModelProto, spec: QuantizeBfloat16, context: Context
) -> tuple[onnx.ModelProto, dict[str, object]]:
    """Round weights to the nearest of 8 significant bits (ties to even), and widen them where the graph begins.

    Returns:
        The model (the argument is not changed) with a Cast for each weight, and the largest relative error of each.

    Raises:
        StepFailed: `already_quantized`, `no_float_weights`, `unknown_name`, `no_weights`, `non_finite_weights`,
            `name_taken` or `unsupported_by_runtime`.
    """
    graph = prepare.at_least_opset(prepare.working_copy(model), _OPSET)
    chosen, _ = prepare.choose(graph, spec.include, spec.exclude, _DTYPES)
    stored = {tensor.name: tensor for tensor in graph.graph.initializer}
    casts = []
    report: list[dict[str, object]] = []
    for weight, values in read(graph, chosen):
        context.check_cancelled()
        rounded = numpy_helper.from_array(values.astype(bfloat16), f"{weight.name}_quantized")
        error = abs(values.astype(bfloat16).astype("float64") - values)
        largest = float(abs(values).max(initial=0.0))
        report.append(
            {
                "name": weight.name,
                "shape": list(weight.shape),
                "nodes": list(weight.nodes),
                "largest_error": float(error.max(initial=0.0)) / largest if largest else 0.0,
            }
        )
        stored[weight.name].CopyFrom(rounded)
        casts.append(
            helper.make_node("Cast", [rounded.name], [weight.name], f"{weight.name}_widen", to=TensorProto.FLOAT)
        )
    walk.set_nodes(graph.graph, [*casts, *graph.graph.node])
    return prepare.finished(graph, model, context), {"weights": report}
