"""Half precision: weights and computation in IEEE float16, save where it does not suffice."""

from __future__ import annotations

import warnings
from collections.abc import Collection

import numpy as np
import onnx

from compression.context import Context
from compression.data import Dataset, synthetic_batches
from compression.data.feed import ModelFeed
from compression.graph.inspect import summarize
from compression.graph.weights import check_patterns, matches, read
from compression.quantization import half_range, prepare
from compression.quantization.half_range import LARGEST, SMALLEST_NORMAL
from compression.quantization.integer.observe import batch_size
from compression.quantization.spec import QuantizeFloat16

_DTYPES = frozenset({"float32"})


def quantize_float16(
    model: onnx.ModelProto, spec: QuantizeFloat16, context: Context, calibration: Dataset | None, seed: int
) -> tuple[onnx.ModelProto, dict[str, object]]:
    """Convert a float32 model; nodes that float16 does not suffice for compute in float32, with casts around them.

    So do nodes that the spec keeps or whose weights it excludes, and operators that have no float16 form in ONNX
    Runtime.

    Returns:
        The converted model (the argument is not changed), per weight how many values were clipped or lost digits for
        being below the smallest normal number, and the nodes that stay in float32 with the reason.

    Raises:
        StepFailed: `already_quantized`, `no_float_weights`, `unknown_name`, `no_weights`, `non_finite_weights`,
            `name_taken` or `unsupported_by_runtime`.
        DataRejected: `dataset_mismatch`, or `dtype_not_supported` where no inputs can be made up.
    """
    graph = prepare.working_copy(model)
    chosen, left = prepare.choose(graph, spec.include, spec.exclude, _DTYPES)
    names = [node.name for node in graph.graph.node]
    check_patterns(spec.keep, names)
    kept = {name: "its weight was excluded" for weight in left for name in weight.nodes}
    kept |= {name: "named in `keep`" for name in names if any(matches(name, pattern) for pattern in spec.keep)}
    size = min(batch_size(graph), spec.calibration_samples)
    if calibration is None:
        batches = synthetic_batches(summarize(model, 0, 0), size, seed, size)
    else:
        feed = ModelFeed.of(calibration, lambda: summarize(model, 0, 0), "calibration")
        batches = feed.batches(size, spec.calibration_samples)
    measured = half_range.kept_nodes(graph, half_range.reaches(graph, batches, context))
    kept = measured | kept
    converted = {weight.name for weight in chosen if not kept.keys() >= set(weight.nodes)}
    report: list[dict[str, object]] = []
    for weight, values in read(graph, chosen):
        context.check_cancelled()
        entry: dict[str, object] = {"name": weight.name, "shape": list(weight.shape), "nodes": list(weight.nodes)}
        if weight.name in converted:
            magnitude = np.abs(values)
            entry["clipped"] = int(np.count_nonzero(magnitude > LARGEST))
            entry["subnormal"] = int(np.count_nonzero((magnitude > 0) & (magnitude < SMALLEST_NORMAL)))
        else:
            entry["skipped"] = kept[weight.nodes[0]]
        report.append(entry)
    prepare.check_some(report)
    order = [name for name in names if name in kept]
    half_range.with_own_copies(graph, order)
    with prepare.runtime_failures("converting to float16"):
        result = _convert(graph, order, keep_io_types=spec.keep_io_types)
    half_range.without_detours(result)
    return prepare.finished(result, model, context), {
        "weights": report,
        "float_nodes": order,
        "kept": [{"node": name, "reason": kept[name]} for name in order],
        "ranges_from": "made-up inputs" if calibration is None else "calibration",
        "notes": _notes(order, kept, measured),
    }


def _notes(order: Collection[str], kept: dict[str, str], measured: Collection[str]) -> list[str]:
    found = [name for name in order if name in measured]
    if not found:
        return []
    return [f"{len(found)} nodes compute in float32, first '{found[0]}': {kept[found[0]]}."]


def _convert(graph: onnx.ModelProto, blocked: list[str], *, keep_io_types: bool) -> onnx.ModelProto:
    from onnxruntime.transformers.float16 import convert_float_to_float16  # noqa: PLC0415 - imported where it is needed

    # The converter warns of each value that it clips; the report counts them.
    with warnings.catch_warnings(action="ignore"):
        converted: onnx.ModelProto = convert_float_to_float16(
            graph, keep_io_types=keep_io_types, node_block_list=blocked
        )
    return converted
