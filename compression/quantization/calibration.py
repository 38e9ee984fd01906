"""Activation ranges, read off real samples by ONNX Runtime's calibrators."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from compression.context import Context
from compression.data import Dataset
from compression.errors import DataRejected
from compression.graph import shapes
from compression.quantization import prepare
from compression.quantization.spec import QuantizeStatic

_LARGEST_BATCH = 32
# Calibrators that make histograms hold the activations of one batch, all tensors at once and some of them twice.
_ACTIVATION_BYTES = 256 << 20


def activation_ranges(
    model: onnx.ModelProto, operators: Sequence[str], dataset: Dataset, spec: QuantizeStatic, context: Context
) -> Any:  # noqa: ANN401 - ONNX Runtime is untyped
    """Run calibration samples through a float model and note the range of every activation.

    Args:
        model: The float model, shapes inferred.
        operators: Operators whose inputs and outputs are of interest.
        dataset: Arrays named like the model's inputs.
        spec: Method and number of samples.
        context: Progress, cancellation, threads.

    Returns:
        `onnxruntime.quantization.TensorsData`: (lowest, highest) by tensor.

    Raises:
        DataRejected: `non_finite_values` when an activation becomes NaN or infinite.
        StepFailed: `unsupported_by_runtime`.
    """
    with prepare.temporary_folder(context) as folder, prepare.runtime_failures("calibrating"):
        size = batch_size(model)
        path = folder / "model.onnx"
        path.write_bytes(model.SerializeToString())
        calibrator = _calibrator(path, operators, spec)
        order = [name for node in calibrator.model.graph.node for name in node.output]
        calibrator.augment_graph()
        calibrator.infer_session = _CheckedSession(Path(calibrator.augmented_model_path), order, context)
        expected = math.ceil(min(spec.calibration_samples, dataset.summary.samples) / size)
        for done, batch in enumerate(dataset.batches(size, spec.calibration_samples)):
            context.check_cancelled()
            context.progress("quantizing", 0.9 * min(done / expected, 1.0), "calibrating")
            # One batch a call: a single call for all would keep all activations in memory (onnxruntime #10503).
            with contextlib.redirect_stdout(io.StringIO()):
                calibrator.collect_data(_Reader(iter([batch.inputs])))
        with contextlib.redirect_stdout(io.StringIO()):
            return calibrator.compute_data()


def batch_size(model: onnx.ModelProto) -> int:
    """Samples to run at a time: 32, or fewer where their activations would take much memory."""
    stored = {tensor.name for tensor in model.graph.initializer}
    known = shapes.infer(model, one_sample=True)
    sample = sum((one.elements or 0) * one.itemsize for name, one in known.items() if name not in stored)
    return max(1, min(_LARGEST_BATCH, _ACTIVATION_BYTES // max(sample, 1)))


def _calibrator(model: Path, operators: Sequence[str], spec: QuantizeStatic) -> Any:  # noqa: ANN401
    from onnxruntime.quantization import calibrate  # noqa: PLC0415 - imported where it is needed

    settings: dict[str, Any] = {
        "op_types_to_calibrate": operators,
        "augmented_model_path": str(model.with_name("augmented.onnx")),
        "symmetric": spec.symmetric_activations,
    }
    match spec.calibration:
        case "minmax":
            return calibrate.MinMaxCalibrater(model, **settings)
        case "percentile":
            return calibrate.PercentileCalibrater(model, percentile=spec.percentile, **settings)
        case "entropy":
            return calibrate.EntropyCalibrater(model, **settings)


class _Reader:
    """What ONNX Runtime calls a CalibrationDataReader."""

    def __init__(self, batches: Iterator[dict[str, Any]]) -> None:
        self._batches = batches

    def get_next(self) -> dict[str, Any] | None:
        return next(self._batches, None)


class _CheckedSession:
    """A session as the calibrators use it, that refuses activations which are not finite.

    The calibrators would skip NaN in silence, and take infinity for a range. The first bad tensor in `order`, which is
    the graph's, is where the trouble starts.
    """

    def __init__(self, model: Path, order: Sequence[str], context: Context) -> None:
        import onnxruntime  # noqa: PLC0415 - half a second that only a run needs

        level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session = prepare.session(model, context, graph_optimization_level=level)
        self._order = order
        self.get_inputs = self._session.get_inputs
        self.get_outputs = self._session.get_outputs

    def run(self, names: Sequence[str] | None, inputs: dict[str, Any]) -> list[Any]:
        outputs: list[Any] = self._session.run(names, inputs)
        bad = {
            description.name.removesuffix("_ReduceMin").removesuffix("_ReduceMax")
            for description, values in zip(self.get_outputs(), outputs, strict=True)
            if values.dtype.kind == "f" and not np.isfinite(values).all()
        }
        if bad:
            first = next((name for name in self._order if name in bad), min(bad))
            raise DataRejected(
                "non_finite_values",
                f"With the calibration samples the model computes NaN or infinity at '{first}', "
                "which no quantized range can hold.",
            )
        return outputs
