"""Static quantization of those nodes that a selection chooses."""

from __future__ import annotations

from typing import assert_never

import onnx

from compression.context import Context
from compression.data import Dataset
from compression.quantization.choice.latency import choose_by_latency
from compression.quantization.choice.sensitivity import choose_by_sensitivity
from compression.quantization.choice.spec import SelectAll, SelectByLatency, SelectBySensitivity
from compression.quantization.integer.kernels import kernels
from compression.quantization.spec import QuantizeStatic
from compression.quantization.static import Calibrated, calibrate, describe, quantize_static


def quantize_selected(
    model: onnx.ModelProto, spec: QuantizeStatic, context: Context, calibration: Dataset | None, seed: int
) -> tuple[onnx.ModelProto, dict[str, object]]:
    """Like `quantize_static`, for the nodes that `spec.selection` chooses.

    Returns:
        The quantized model, or the argument itself where all nodes stay float; and details, with a row of `decisions`
        for each node where anything was decided.

    Raises:
        StepFailed, DataRejected: as `quantize_static`.
        Cancelled: The caller asked to stop.
    """
    match spec.selection:
        case SelectAll():
            return quantize_static(model, spec, context, calibration)
        case SelectByLatency():
            calibrated = calibrate(model, spec, context, calibration)
            choice = choose_by_latency(calibrated, spec.selection, context, calibrated.feed, seed)
            if choice.model is None:
                return model, {
                    **_all_float(calibrated, "no choice of nodes was faster than the original"),
                    **choice.details,
                }
            found = kernels(choice.model, context)
            described = describe(calibrated, choice.model, context, choice.left)
            return choice.model, {**described, "runtime": found.details(), **choice.details}
        case SelectBySensitivity():
            calibrated = calibrate(model, spec, context, calibration)
            mixture = choose_by_sensitivity(calibrated, spec.selection, context)
            if mixture.model is None:
                return model, {**_all_float(calibrated, "only float meets the goal"), **mixture.details}
            result = mixture.model
            found = kernels(result, context)
            described = describe(calibrated, result, context, mixture.left)
            return result, {**described, "runtime": found.details(), **mixture.details}
        case _:
            assert_never(spec.selection)


def _all_float(calibrated: Calibrated, reason: str) -> dict[str, object]:
    """What `describe` would say of a model in which nothing is quantized."""
    weights = [
        {"name": weight.name, "shape": list(weight.shape), "nodes": list(weight.nodes), "skipped": reason}
        for weight in calibrated.chosen
    ]
    return {"weights": weights, "activations": []}
