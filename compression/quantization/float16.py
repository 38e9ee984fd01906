"""Half precision: weights and computation in IEEE float16."""

from __future__ import annotations

import warnings

import numpy as np
import onnx

from compression.context import Context
from compression.graph.weights import read
from compression.quantization import prepare
from compression.quantization.spec import QuantizeFloat16

_DTYPES = frozenset({"float32"})
_LARGEST = float(np.finfo(np.float16).max)
_SMALLEST_NORMAL = float(np.finfo(np.float16).smallest_normal)


def quantize_float16(
    model: onnx.ModelProto, spec: QuantizeFloat16, context: Context
) -> tuple[onnx.ModelProto, dict[str, object]]:
    """Convert a float32 model; nodes whose weights are excluded compute in float32, with casts around them.

    So do operators that have no float16 form in ONNX Runtime. Weights beyond 65,504 are clipped.

    Returns:
        The converted model (the argument is not changed), and per weight how many values were clipped or lost digits
        for being below the smallest normal number.

    Raises:
        StepFailed: `already_quantized`, `no_float_weights`, `unknown_name`, `no_weights`, `non_finite_weights`,
            `name_taken` or `unsupported_by_runtime`.
    """
    graph = prepare.working_copy(model)
    chosen, left = prepare.choose(graph, spec.include, spec.exclude, _DTYPES)
    report: list[dict[str, object]] = []
    for weight, values in read(graph, chosen):
        context.check_cancelled()
        magnitude = np.abs(values)
        report.append(
            {
                "name": weight.name,
                "shape": list(weight.shape),
                "nodes": list(weight.nodes),
                "clipped": int(np.count_nonzero(magnitude > _LARGEST)),
                "subnormal": int(np.count_nonzero((magnitude > 0) & (magnitude < _SMALLEST_NORMAL))),
            }
        )
    blocked = sorted({name for weight in left for name in weight.nodes})
    with prepare.runtime_failures("converting to float16"):
        result = _convert(graph, blocked, keep_io_types=spec.keep_io_types)
    return prepare.finished(result, model, context), {"weights": report, "float_nodes": blocked}


def _convert(graph: onnx.ModelProto, blocked: list[str], *, keep_io_types: bool) -> onnx.ModelProto:
    from onnxruntime.transformers.float16 import convert_float_to_float16  # noqa: PLC0415 - imported where it is needed

    # The converter warns of each value that it clips; the report counts them.
    with warnings.catch_warnings(action="ignore"):
        converted: onnx.ModelProto = convert_float_to_float16(
            graph, keep_io_types=keep_io_types, node_block_list=blocked
        )
    return converted
