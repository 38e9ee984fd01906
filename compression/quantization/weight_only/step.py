"""Weight-only quantization: weights as codes in groups, computed with as floats or in few bits."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx

from compression.context import Context
from compression.data import Dataset
from compression.data.feed import ModelFeed
from compression.errors import DataRejected, StepFailed
from compression.graph.data_file import DataFile, graph_beside
from compression.graph.inspect import summarize
from compression.graph.stored import Stored, hold_all
from compression.graph.tensors import is_external
from compression.graph.weights import Weight, check_finite
from compression.memory import can_map
from compression.quantization import gemm, prepare
from compression.quantization.spec import QuantizeWeightOnly
from compression.quantization.weight_only import gptq, hqq
from compression.quantization.weight_only.assembly import Assembly
from compression.quantization.weight_only.capabilities import IR_VERSIONS, OPSETS
from compression.quantization.weight_only.groupwise import Array, Groups, dequantize, round_to_nearest
from compression.quantization.weight_only.layers import Layer, decibels, find_layers, power, second_moments
from compression.quantization.weight_only.plan import Plan, plan_all
from compression.quantization.weight_only.rewrite import Rewriter

_DTYPES = frozenset({"float32", "float16"})
# Weights that are worked on at a time: a few copies of so many numbers stay in a processor's cache.
_PIECE = 1 << 17
# Weights that are read at a time where outputs lie beside each other.
_SLAB = 1 << 20


def quantize_weight_only(
    model: onnx.ModelProto, spec: QuantizeWeightOnly, context: Context, calibration: Dataset | None = None
) -> tuple[onnx.ModelProto, dict[str, object]]:
    """Store weights as codes in groups.

    Matrices of MatMul and Gemm become codes for MatMulNBits, embeddings for GatherBlockQuantized, and all other weights
    (of convolutions, recurrent layers, stacks of matrices) codes that DequantizeLinear decodes at run time; where that
    operator needs a later operator set than the model has, the model is converted.

    Weights that lie in files (see `compression.graph.stored`) are read, quantized and written one after another, into
    a file in the run's folder, where the result leaves them.

    Returns:
        The quantized model (the argument is not changed), and per weight the method, the form, the bits at rest and
        the mean squared error, or why it was skipped.

    Raises:
        StepFailed: `already_quantized`, `no_float_weights`, `unknown_name`, `no_weights`, `non_finite_weights`,
            `name_taken` or `unsupported_by_runtime`.
        DataRejected: `calibration_data_missing`, `dataset_mismatch` or `non_finite_values`.
    """
    feed = _feed(model, spec, calibration)
    if feed is not None:
        model = hold_all(model)  # calibration runs it
    result = prepare.working_copy(model)
    chosen, _ = prepare.pick(result, spec.include, spec.exclude, _DTYPES)
    gemm.with_plain_biases(result)
    result, plans = _planned(result, chosen, spec)
    report = {weight.name: _entry(weight, plans[weight.name]) for weight in chosen}
    prepare.check_some(report.values())
    able = [plan for plan in plans.values() if isinstance(plan, Plan)]
    rewriter = Rewriter(result, int8_products=spec.int8_products)
    stored = {tensor.name: tensor for tensor in result.graph.initializer}
    done = 0

    def keep(plan: Plan, assembly: Assembly, error: float, details: Mapping[str, object]) -> None:
        nonlocal done
        rewriter.replace(plan, assembly.tensors())
        done += 1
        context.progress("quantizing", done / len(able), plan.weight.name)
        report[plan.weight.name] |= {"mean_squared_error": error / plan.weight.size, **details}

    layers = find_layers(result, able) if feed is not None else {}
    with _file_for(result, context) as beside:
        for plan in able:
            if plan.weight.name not in layers:
                context.check_cancelled()
                assembly, error = _quantized(plan, Stored(stored[plan.weight.name]), spec, beside)
                keep(plan, assembly, error, {"method": "rtn" if spec.method == "gptq" else spec.method})
        if feed is not None:
            for layer, moments in second_moments(result, layers, feed, spec, context):
                context.check_cancelled()
                assembly, error, sqnr = _compensated(layer, Stored(stored[layer.plan.weight.name]), moments, spec)
                keep(layer.plan, assembly, error, {"method": "gptq", "output_sqnr": sqnr})
        rewriter.drop_unread()
        if beside is None:
            prepare.finished(result, model, context)
        else:
            _finish_beside(beside, prepare.tidied(result, model), context)
    return result, {"weights": list(report.values())}


@contextmanager
def _file_for(model: onnx.ModelProto, context: Context) -> Iterator[DataFile | None]:
    """A file for what is made of weights that lie in files; None where all are in memory."""
    if not any(is_external(tensor) for tensor in model.graph.initializer):
        yield None
        return
    folder = Path(tempfile.mkdtemp(prefix="weights-", dir=context.workdir))
    with DataFile(folder / "weights.data") as file:
        yield file


def _finish_beside(beside: DataFile, result: onnx.ModelProto, context: Context) -> None:
    """Move all that is left into the file, and have the runtime load both where it can map them."""
    beside.take_in(result)
    if not can_map(beside.path.stat().st_size):
        return
    graph = beside.path.with_name("model.onnx")
    graph.write_bytes(graph_beside(result, beside.path).SerializeToString())
    prepare.check_loads_mapped(graph, context)
    graph.unlink()


def _feed(model: onnx.ModelProto, spec: QuantizeWeightOnly, calibration: Dataset | None) -> ModelFeed | None:
    if spec.method != "gptq":
        return None
    if calibration is None:
        raise DataRejected(
            "calibration_data_missing",
            "The method 'gptq' runs samples through the model: give a calibration dataset, or use 'rtn' or 'hqq'.",
        )
    return ModelFeed.of(calibration, lambda: summarize(model, 0, 0), "calibration")


def _planned(
    model: onnx.ModelProto, chosen: Sequence[Weight], spec: QuantizeWeightOnly, ceiling: int = max(OPSETS.values())
) -> tuple[onnx.ModelProto, dict[str, Plan | str]]:
    """The model in an operator set that has what the plans need, `ceiling` at most, and the plans; see `plan_all`."""
    have = prepare.opset(model)
    plans = plan_all(model, chosen, spec, max(have, ceiling))
    able = [plan for plan in plans.values() if isinstance(plan, Plan)]
    try:
        converted = prepare.at_least_opset(model, max((plan.opset for plan in able), default=1))
    except StepFailed:
        # What can be held in a wider code needs a less recent operator set, or none beyond the model's own.
        return _planned(model, chosen, spec, max((opset for opset in OPSETS.values() if opset < ceiling), default=have))
    versions = [IR_VERSIONS[plan.stored_bits] for plan in able if plan.form == "DequantizeLinear"]
    converted.ir_version = max([converted.ir_version, *versions])
    return converted, plans


def _entry(weight: Weight, plan: Plan | str) -> dict[str, object]:
    entry: dict[str, object] = {"name": weight.name, "shape": list(weight.shape), "nodes": list(weight.nodes)}
    if isinstance(plan, str):
        return entry | {"skipped": plan}
    stacks, _, columns = plan.layout
    return entry | {
        "form": plan.form,
        "scales": stacks * plan.groups * columns,
        "stored_bits": plan.stored_bits,
        "bits_at_rest": round(8 * plan.bytes_at_rest / weight.size, 3),
    }


def _quantized(plan: Plan, values: Stored, spec: QuantizeWeightOnly, beside: DataFile | None) -> tuple[Assembly, float]:
    """Each group for itself, some at a time; the assembled weight and its sum of squared errors."""
    assembly = Assembly(plan, spec.weight_bits, beside)
    total = 0.0
    for stack, group, column, piece in _pieces(plan, values):
        if spec.method == "hqq":
            groups, error = hqq.quantize(piece, spec.weight_bits, plan.group_size)
        else:
            groups, error = round_to_nearest(piece, spec.weight_bits, plan.group_size, symmetric=plan.symmetric)
        assembly.put(groups, stack, group, column)
        total += error
    return assembly, total


def _pieces(plan: Plan, values: Stored) -> Iterator[tuple[int, int, int, Array]]:
    """A weight, read in the order of its bytes: first stack, group and column, and (stacks, inputs, columns) of it.

    Raises:
        StepFailed: `non_finite_weights`.
    """
    for stack, group, column, piece in _slabs(plan, values):
        check_finite(plan.weight, piece)
        yield stack, group, column, piece if plan.alpha == 1.0 else piece * piece.dtype.type(plan.alpha)


def _slabs(plan: Plan, values: Stored) -> Iterator[tuple[int, int, int, Array]]:
    stacks, inputs, columns = plan.layout
    # Eight of anything fill whole bytes, however few bits each has.
    if plan.form == "MatMulNBits" and columns > 1:
        # The codes of a column lie together: as many of its groups as possible come at once.
        rows = max(1, _SLAB // (columns * plan.group_size)) * plan.group_size
        width = max(1, _PIECE // min(rows, inputs))
        for row in range(0, inputs, rows):
            end = min(row + rows, inputs)
            slab = values.part(row * columns, end * columns).reshape(1, end - row, columns)
            for column in range(0, columns, width):
                yield 0, row // plan.group_size, column, slab[..., column : column + width]
        return
    at_once, rows = max(8, _PIECE // max(1, inputs * columns) // 8 * 8), inputs
    if stacks == 1 or (inputs * columns > _PIECE and inputs * columns % 8 == 0):
        at_once, rows = 1, max(1, _PIECE // (columns * plan.group_size)) * plan.group_size
    for stack in range(0, stacks, at_once):
        last = min(stack + at_once, stacks)
        for row in range(0, inputs, rows):
            end = min(row + rows, inputs)
            start = (stack * inputs + row) * columns
            stop = ((last - 1) * inputs + end) * columns
            yield stack, row // plan.group_size, 0, values.part(start, stop).reshape(last - stack, end - row, columns)


def _compensated(
    layer: Layer, values: Stored, moments: Array, spec: QuantizeWeightOnly
) -> tuple[Assembly, float, float | None]:
    """A whole weight by GPTQ: assembled, its sum of squared errors, and the SQNR of the layer's outputs in dB."""
    plan = layer.plan
    whole = values.whole().reshape(plan.layout)
    check_finite(plan.weight, whole)
    if plan.alpha != 1.0:
        whole = whole * whole.dtype.type(plan.alpha)
    # (inputs, outputs): either stacks or columns are the outputs, and there is one of the others.
    outputs_first = len(whole) > 1
    matrix = whole[..., 0].T if outputs_first else whole[0]
    solved = []
    error = signal = noise = 0.0
    for part, moment in zip(np.split(matrix, len(moments), axis=1), moments, strict=True):
        groups = gptq.quantize(
            part,
            moment,
            spec.weight_bits,
            plan.group_size,
            symmetric=plan.symmetric,
            damping=spec.damping,
            act_order=spec.act_order,
        )
        difference = dequantize(groups, len(part))[0] - part
        error += float(np.vdot(difference, difference))
        signal += power(part, moment)
        noise += power(difference, moment)
        solved.append(groups)
    groups = Groups.side_by_side(solved)
    assembly = Assembly(plan, spec.weight_bits)
    assembly.put(groups.turned() if outputs_first else groups, 0, 0)
    return assembly, error, decibels(signal, noise)
