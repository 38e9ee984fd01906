"""Quantization of an ONNX graph, one module a mode."""

from __future__ import annotations

from typing import assert_never

import onnx

from compression.context import Context
from compression.data import Dataset
from compression.quantization.bfloat16 import quantize_bfloat16
from compression.quantization.choice.step import quantize_selected
from compression.quantization.dynamic import quantize_dynamic
from compression.quantization.float16 import quantize_float16
from compression.quantization.spec import (
    Quantize,
    QuantizeBfloat16,
    QuantizeDynamic,
    QuantizeFloat16,
    QuantizeStatic,
    QuantizeWeightOnly,
)
from compression.quantization.weight_only.step import quantize_weight_only


def quantize(
    model: onnx.ModelProto,
    spec: Quantize,
    context: Context,
    calibration: Dataset | None,
    seed: int,
) -> tuple[onnx.ModelProto, dict[str, object]]:
    """Give weights, and in some modes activations, fewer bits.

    Args:
        model: A canonical float model; it is not changed.
        spec: The mode and its settings.
        context: The surroundings of the run.
        calibration: Samples to run through the model; static quantization and GPTQ need them, float16 uses them.
        seed: Of the order in which candidates are timed. The same model, spec and calibration data give the same
            bytes, save where nodes are chosen by measured latency.

    Returns:
        A model that ONNX Runtime has loaded, and details: `weights` with the number of scales or the reason why a
        weight was skipped, and what else the mode has to say.

    Raises:
        StepFailed: `already_quantized`, `no_float_weights`, `unknown_name`, `no_weights`, `non_finite_weights`,
            `name_taken` or `unsupported_by_runtime`.
        DataRejected: `calibration_data_missing`, `dataset_mismatch` or `non_finite_values`.
    """
    context.check_cancelled()
    match spec:
        case QuantizeDynamic():
            return quantize_dynamic(model, spec, context)
        case QuantizeStatic():
            return quantize_selected(model, spec, context, calibration, seed)
        case QuantizeWeightOnly():
            return quantize_weight_only(model, spec, context, calibration)
        case QuantizeFloat16():
            return quantize_float16(model, spec, context, calibration, seed)
        case QuantizeBfloat16():
            return quantize_bfloat16(model, spec, context)
        case _:
            assert_never(spec)
