"""Quantization-aware training, from a float graph to one of whole numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch

from compression.context import Context
from compression.data.feed import ModelFeed
from compression.graph.weights import Weight, find_weights
from compression.quantization import gemm, prepare
from compression.quantization.aware import export
from compression.quantization.aware.agreement import agreement
from compression.quantization.aware.insert import Quantizers, calibrate, insert
from compression.quantization.aware.pairs import with_pairs
from compression.quantization.aware.placement import Plan, make_plan
from compression.quantization.aware.quantizers import StepsAboveZero
from compression.quantization.integer.observe import batch_size
from compression.quantization.isa import saturates
from compression.quantization.spec import QuantizeAware
from compression.training.constraints import Constraint, KeepZeros
from compression.training.step import TrainingMaterial, train_with
from compression.training.trainee import TrainableWeight, Trainee

# Scales per channel came to QuantizeLinear and DequantizeLinear with operator set 13.
_OPSET = 13
_DTYPES = frozenset({"float32"})


@dataclass(frozen=True)
class FakeQuantized:
    """A model whose module computes as the whole numbers will.

    Attributes:
        trainee: The module, and the graph with pairs that it was imported from.
        plan: What is quantized.
        quantizers: The module's.
        skipped: Chosen weights that stay float, with the reason.
        reduce_range: Whether 8-bit weights that meet 8-bit activations have 7.
    """

    trainee: Trainee
    plan: Plan
    quantizers: Quantizers
    skipped: tuple[dict[str, object], ...]
    reduce_range: bool

    def weights(self) -> list[TrainableWeight]:
        """The quantized weights, for what regularizes them."""
        return self.trainee.parameters_of(one.weight for one in self.plan.weights.values())

    def exported(self) -> onnx.ModelProto:
        """The graph with the module's whole numbers and scales."""
        return export.filled(self.trainee.written_back(), self.plan, self.quantizers)


def quantize_aware(
    model: onnx.ModelProto, spec: QuantizeAware, context: Context, material: TrainingMaterial
) -> tuple[onnx.ModelProto, dict[str, object]]:
    """Train a model under fake quantization and give it with whole numbers (Jacob et al. 2017, sections 2 and 3).

    Weights become int8, symmetric; activations uint8 with a zero point of their own; biases int32. The values before
    training, quantized by calibration alone, count as an epoch: training never ends worse on the validation samples.

    Args:
        model: A canonical float model; it is not changed.
        spec: Bits, ranges and how to train.
        context: The surroundings of the run.
        material: Training data, seed and the original.

    Returns:
        A model that ONNX Runtime has loaded, and details: `weights` with their bits and the number of scales or the
        reason why one was skipped, `activations` with their ranges, `training`, and `agreement` of the model in ONNX
        Runtime with the trained module.

    Raises:
        StepFailed: `already_quantized`, `no_float_weights`, `unknown_name`, `no_weights`, `non_finite_weights`,
            `operator_not_importable`, `loss_not_finite`, `name_taken` or `unsupported_by_runtime`.
        DataRejected: the dataset does not serve this training (`labels_missing`, …).
    """
    fake = calibrated(model, spec, context, material.feed)
    constraints: list[Constraint] = [StepsAboveZero(fake.quantizers.modules())]
    weights = fake.weights()
    if spec.keep_zeros:
        constraints.append(KeepZeros([parameter for weight in weights for parameter in weight.parameters]))
    report = train_with(fake.trainee, spec.training, context, material, weights=weights, constraints=constraints)
    result = prepare.finished(fake.exported(), model, context)
    sample = next(_batches(fake.trainee, material.feed, context, batch_size(model), spec.calibration_samples))
    details: dict[str, object] = {
        "reduce_range": fake.reduce_range,
        "weights": [*export.layers_of(fake.plan), *fake.skipped],
        "activations": _ranges(fake),
        "training": report.details(),
        "agreement": agreement(fake.trainee.module, result, fake.trainee.input_names, sample, context),
    }
    return result, details


def calibrated(model: onnx.ModelProto, spec: QuantizeAware, context: Context, feed: ModelFeed) -> FakeQuantized:
    """The model as a module that is quantized by calibration alone: where training starts from."""
    fake = fake_quantized(model, spec, context)
    read = _batches(fake.trainee, feed, context, batch_size(model), spec.calibration_samples)
    calibrate(fake.trainee.module, fake.quantizers, read, context.check_cancelled)
    return fake


def fake_quantized(model: onnx.ModelProto, spec: QuantizeAware, context: Context) -> FakeQuantized:
    """The model as a module with fake quantizers that wait for calibration.

    Batch norms are folded with their running statistics before anything else, rather than with batch statistics during
    training (Jacob et al. 2017, section 3.2): the models that come here are trained, so the statistics are known; each
    layer then needs one pass instead of two, and what is trained is the very graph that is written.
    """
    graph = prepare.working_copy(model)
    chosen, _ = prepare.choose(graph, spec.include, spec.exclude, _DTYPES)
    graph = prepare.optimized(prepare.at_least_opset(graph, _OPSET), context)
    unfit = gemm.with_plain_biases(graph)
    reduce_range = saturates() if spec.reduce_range is None else spec.reduce_range
    plan = make_plan(graph, _after_folding(graph, chosen), unfit, spec, reduce_range=reduce_range)
    skipped = _skipped(chosen, plan)
    prepare.check_some([*export.layers_of(plan), *skipped])
    trainee = Trainee(with_pairs(graph, plan), context.device)
    quantizers = insert(trainee.module, plan, learned=spec.ranges == "learned")
    return FakeQuantized(trainee, plan, quantizers, tuple(skipped), reduce_range)


def _after_folding(graph: onnx.ModelProto, chosen: Sequence[Weight]) -> list[Weight]:
    """The chosen weights in the folded graph, where some have new names; their nodes keep theirs."""
    nodes = {name for weight in chosen for name in weight.nodes}
    return [weight for weight in find_weights(graph) if nodes.issuperset(weight.nodes) and weight.dtype in _DTYPES]


def _skipped(chosen: Sequence[Weight], plan: Plan) -> list[dict[str, object]]:
    done = {name for weight in plan.weights.values() for name in weight.weight.nodes}
    return [
        {
            "name": weight.name,
            "shape": list(weight.shape),
            "nodes": list(weight.nodes),
            "skipped": "its operator has no integer form in this mode",
        }
        for weight in chosen
        if done.isdisjoint(weight.nodes)
    ]


def _batches(
    trainee: Trainee, feed: ModelFeed, context: Context, size: int, samples: int
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Inputs of the module, from samples evenly over the dataset."""
    for batch in feed.batches(size, samples):
        yield tuple(
            torch.from_numpy(np.ascontiguousarray(batch.inputs[name])).to(context.device)
            for name in trainee.input_names
        )


def _ranges(fake: FakeQuantized) -> list[dict[str, object]]:
    found = []
    for name, quantizer in fake.quantizers.activations.items():
        scale, zero = (float(value.detach()) for value in quantizer.parameters_now())
        grid = quantizer.grid
        found.append(
            {
                "name": name,
                "bits": fake.plan.activations[name].bits,
                "lowest": (grid.low - zero) * scale,
                "highest": (grid.high - zero) * scale,
            }
        )
    return found
