"""Static quantization: integer weights and activations, with activation ranges from calibration data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import onnx
from onnx import numpy_helper

from compression.context import Context
from compression.data import Dataset
from compression.data.feed import ModelFeed
from compression.errors import DataRejected
from compression.graph.inspect import summarize
from compression.graph.weights import Weight, find_weights
from compression.quantization import gemm, prepare
from compression.quantization.agreement import Agreement
from compression.quantization.integer import saturation
from compression.quantization.integer.codes import Limit
from compression.quantization.integer.equalize import Equalizer, Link, links
from compression.quantization.integer.fill import Bits, Filler, tables
from compression.quantization.integer.forms import with_integer_forms
from compression.quantization.integer.kernels import kernels
from compression.quantization.integer.observe import Statistics, observe
from compression.quantization.integer.plan import Anatomy, Plan, examine, make_plan
from compression.quantization.integer.ranges import Method, grid
from compression.quantization.integer.saturation import saturations
from compression.quantization.integer.write import write
from compression.quantization.isa import saturates
from compression.quantization.spec import QuantizeStatic

# Scales per channel came to QuantizeLinear and DequantizeLinear with operator set 13.
_OPSET = 13
# ONNX Runtime's CPU kernels compute float16 by way of float32, so nothing of it would be left to quantize.
_DTYPES = frozenset({"float32"})
# Extremes of channels are known after few samples.
_SMOOTHING_SAMPLES = 64
# What outlying channels behind layer norms call for: sentence encoders agree 2 dB better than with the paper's 0.5 or
# without.
_SMOOTHING = 0.7
_BITS_WORTH_CUTTING_FOR = 8
_AGREEMENT_SAMPLES = 128


@dataclass(frozen=True)
class Calibrated:
    """A float graph with all that is needed to quantize any part of it; nothing in it is changed afterwards.

    Attributes:
        original: The model that it was made from, which a result is described like.
        anatomy: The optimized graph, every node named, and the layers in it.
        chosen: The weights that the spec selects, as the original has them.
        float_nodes: Names of the nodes that stay float in any case.
        statistics: What was seen of its activations.
        spec: The settings.
        limit: What bounds the numbers of weights.
        filler: Turns ranges and weights into whole numbers, each once.
        rescaled: What equalization and smoothing did to the channels of each value.
        feed: The calibration samples.
        tried: A row for each way to calibrate that was compared, where there were several.
        adapted: A row for each weight that was rounded adaptively.
    """

    original: onnx.ModelProto
    anatomy: Anatomy
    chosen: tuple[Weight, ...]
    float_nodes: frozenset[str]
    statistics: Statistics
    spec: QuantizeStatic
    limit: Limit
    filler: Filler = field(repr=False)
    feed: ModelFeed = field(repr=False)
    rescaled: tuple[dict[str, object], ...] = ()
    tried: tuple[dict[str, object], ...] = ()
    adapted: tuple[dict[str, object], ...] = ()

    @property
    def graph(self) -> onnx.ModelProto:
        """The optimized float graph."""
        return self.anatomy.model

    def plan(self, float_nodes: Collection[str] = ()) -> Plan:
        """What computes in integers when these nodes, beside `self.float_nodes`, stay float."""
        return make_plan(self.anatomy, self.float_nodes.union(float_nodes))


def quantize_static(
    model: onnx.ModelProto, spec: QuantizeStatic, context: Context, calibration: Dataset | None
) -> tuple[onnx.ModelProto, dict[str, object]]:
    """Insert QuantizeLinear/DequantizeLinear pairs, which runtimes fuse into integer operators (Jacob et al. 2017).

    Weights become int8, symmetric; biases int32. Activations become unsigned with a zero point of their own, or
    signed and symmetric. Nodes without weights compute in integers where their neighbours do.

    Returns:
        The quantized model (the argument is not changed), and what was quantized by which ranges.

    Raises:
        StepFailed: `already_quantized`, `no_float_weights`, `unknown_name`, `no_weights`, `non_finite_weights`,
            `name_taken` or `unsupported_by_runtime`.
        DataRejected: `calibration_data_missing`, `dataset_mismatch` or `non_finite_values`.
    """
    calibrated = calibrate(model, spec, context, calibration)
    result = insert(calibrated)
    found = kernels(result, context)
    return result, {**describe(calibrated, result, context), "runtime": found.details()}


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
    feed = ModelFeed.of(calibration, lambda: summarize(model, 0, 0), "calibration")
    graph = prepare.optimized(prepare.at_least_opset(graph, _OPSET), context)
    graph = with_integer_forms(graph)
    unfit = gemm.with_plain_biases(graph)
    nodes = {name for weight in chosen for name in weight.nodes}
    weights = [weight for weight in find_weights(graph) if nodes.issuperset(weight.nodes) and weight.dtype in _DTYPES]
    float_nodes = frozenset({*unfit, *(name for weight in left for name in weight.nodes)})
    anatomy = examine(graph, weights, unfit)
    found_links = tuple(links(anatomy)) if spec.equalization or spec.smoothing is not None else ()
    material = _Material(
        model, tuple(chosen), tuple(weights), frozenset(unfit), float_nodes, found_links, feed, context
    )
    smoothings = _smoothings(spec, anatomy, found_links)
    found = [one for smoothing in smoothings for one in material.calibrated(anatomy, spec, smoothing)]
    best = found[0] if len(found) == 1 else _best(found, feed, context)
    if spec.rounding == "adaptive":
        return dataclasses.replace(best, adapted=tuple(best.filler.round_adaptively(feed, context)))
    return best


def _smoothings(spec: QuantizeStatic, anatomy: Anatomy, found_links: Collection[Link]) -> list[float | None]:
    if spec.smoothing != "auto":
        return [spec.smoothing]
    norms = {node.name for node in anatomy.model.graph.node if node.op_type == "LayerNormalization"}
    return [None, _SMOOTHING] if any(link.producer in norms for link in found_links) else [None]


@dataclass(frozen=True)
class _Material:
    """What all ways to calibrate a model share.

    Attributes:
        model: The model that was given.
        chosen: Its weights that the spec selects.
        weights: The same in the optimized graph.
        unfit: Names of nodes that are no layers.
        float_nodes: Names of nodes that stay float.
        links: Values whose channels can be rescaled, where any are to be.
        feed: Calibration samples.
        context: The surroundings of the run.
    """

    model: onnx.ModelProto
    chosen: tuple[Weight, ...]
    weights: tuple[Weight, ...]
    unfit: frozenset[str]
    float_nodes: frozenset[str]
    links: tuple[Link, ...]
    feed: ModelFeed
    context: Context

    def calibrated(self, plain: Anatomy, spec: QuantizeStatic, smoothing: float | None) -> Iterator[Calibrated]:
        """Measure activations once, for every calibration method that is to be tried."""
        anatomy, rescaled = self._rescaled(plain, spec, smoothing)
        statistics = observe(
            anatomy.model,
            self.feed,
            self.context,
            values=anatomy.measured(),
            channels={layer.activation: layer.channel_axis for layer in anatomy.layers.values()},
            samples=spec.calibration_samples,
            histograms=spec.calibration != "minmax" and spec.activation_bits == _BITS_WORTH_CUTTING_FOR,
        )
        limit = _limit(spec)
        # With more bits than that, steps are so small that cutting a range gains nothing.
        both: tuple[Method, ...] = ("mse", "minmax") if spec.activation_bits == _BITS_WORTH_CUTTING_FOR else ("minmax",)
        for method in both if spec.calibration == "best" else (spec.calibration,):
            own = spec.model_copy(update={"calibration": method, "smoothing": smoothing})
            filler = Filler(anatomy, tables(anatomy.model, self.weights), statistics, own, limit, method=method)
            yield Calibrated(
                self.model,
                anatomy,
                self.chosen,
                self.float_nodes,
                statistics,
                own,
                limit,
                filler,
                self.feed,
                rescaled,
            )

    def _rescaled(
        self, anatomy: Anatomy, spec: QuantizeStatic, smoothing: float | None
    ) -> tuple[Anatomy, tuple[dict[str, object], ...]]:
        """The graph with its channels rescaled, and what was done to them."""
        if not spec.equalization and smoothing is None:
            return anatomy, ()
        equalizer = Equalizer(anatomy, self.links)
        if spec.equalization:
            equalizer.cross_layers()
        if smoothing is not None:
            seen = observe(
                equalizer.model(),
                self.feed,
                self.context,
                values=[],
                channels={layer.activation: layer.channel_axis for layer in anatomy.layers.values()},
                samples=min(spec.calibration_samples, _SMOOTHING_SAMPLES),
                histograms=False,
            )
            equalizer.smooth({name: channels.largest for name, channels in seen.channels.items()}, smoothing)
        return examine(equalizer.model(), self.weights, self.unfit), tuple(equalizer.details())


def _best(found: Sequence[Calibrated], feed: ModelFeed, context: Context) -> Calibrated:
    """The one whose whole model, quantized, agrees best with the float one; the first of equals."""
    agreement = Agreement(found[0].graph, feed, context, _AGREEMENT_SAMPLES)
    ratios = [agreement.sqnr(insert(one)) for one in found]
    best = max(range(len(found)), key=ratios.__getitem__)
    rows: tuple[dict[str, object], ...] = tuple(
        {
            "calibration": one.spec.calibration,
            "smoothing": one.spec.smoothing,
            "sqnr_db": ratio if math.isfinite(ratio) else None,
            "taken": one is found[best],
        }
        for one, ratio in zip(found, ratios, strict=True)
    )
    return dataclasses.replace(found[best], tried=rows)


def _limit(spec: QuantizeStatic) -> Limit:
    if spec.reduce_range is None:
        return "pairs" if saturates() else "full"
    return "half" if spec.reduce_range else "full"


def insert(
    calibrated: Calibrated,
    float_nodes: Collection[str] = (),
    bits: Mapping[str, Bits] | None = None,
    *,
    unsigned_weights: bool = False,
) -> onnx.ModelProto:
    """The model with pairs, in fractions of a second; no runtime has loaded it yet.

    Args:
        calibrated: What `calibrate` gave.
        float_nodes: Names of nodes of `calibrated.graph` that stay float beside `calibrated.float_nodes`.
        bits: Bits of weights and activations by node name, where they are others than the spec's.
        unsigned_weights: Store weights as uint8 around 128, whose kernels do not saturate on CPUs without VNNI.

    Raises:
        StepFailed: `name_taken`.
    """
    plan = calibrated.plan(float_nodes)
    floats = calibrated.float_nodes.union(float_nodes)
    contents = calibrated.filler.fill(plan, floats, bits or {}, unsigned_weights=unsigned_weights)
    return prepare.tidied(write(calibrated.anatomy, plan, contents), calibrated.original)


def with_pairs(
    calibrated: Calibrated,
    context: Context,
    float_nodes: Collection[str] = (),
    bits: Mapping[str, Bits] | None = None,
    *,
    unsigned_weights: bool = False,
) -> onnx.ModelProto:
    """Like `insert`, and ONNX Runtime has loaded the result.

    Raises:
        StepFailed: `name_taken` or `unsupported_by_runtime`.
    """
    result = insert(calibrated, float_nodes, bits, unsigned_weights=unsigned_weights)
    prepare.check_loads(result, context)
    return result


def describe(
    calibrated: Calibrated, result: onnx.ModelProto, context: Context, float_nodes: Collection[str] = ()
) -> dict[str, object]:
    """What was quantized by which ranges, which nodes stay float, and what other CPUs may compute.

    Raises:
        StepFailed: `no_weights` when not one weight was quantized.
    """
    plan = calibrated.plan(float_nodes)
    stored = {tensor.name: tensor for tensor in result.graph.initializer}
    saturating = saturations(result, plan, calibrated.feed, context)
    activations = _activations(calibrated, plan, stored)
    return {
        "weight_limit": calibrated.limit,
        "weights": _weights(calibrated, plan, stored, frozenset(float_nodes)),
        "float_nodes": sorted(calibrated.float_nodes.union(float_nodes)),
        "activations": activations,
        "rescaled_channels": list(calibrated.rescaled),
        "calibrations_tried": list(calibrated.tried),
        "rounded_adaptively": list(calibrated.adapted),
        "cpus_without_vnni": saturation.summary(saturating),
        "notes": [*saturation.notes(saturating), *_constant(activations)],
    }


def _weights(
    calibrated: Calibrated, plan: Plan, stored: Mapping[str, onnx.TensorProto], float_nodes: frozenset[str]
) -> list[dict[str, object]]:
    """For each chosen weight how many scales it got, or why it was left."""
    names = {**calibrated.filler.lookups, **{node: layer.weight for node, layer in plan.layers.items()}}
    report: list[dict[str, object]] = []
    for weight in calibrated.chosen:
        entry: dict[str, object] = {"name": weight.name, "shape": list(weight.shape), "nodes": list(weight.nodes)}
        name = next((names[node] for node in weight.nodes if node in names), None)
        if name is not None and f"{name}_quantized" in stored:
            entry["scales"] = max(1, math.prod(stored[f"{name}_scale"].dims))
        elif float_nodes.issuperset(weight.nodes):
            entry["skipped"] = "its nodes were chosen to compute in float"
        else:
            entry["skipped"] = "its operator has no integer form in this mode"
        report.append(entry)
    prepare.check_some(report)
    return report


def _constant(activations: Sequence[Mapping[str, object]]) -> list[str]:
    """A sentence on activations that calibration has not seen move: their scale is a guess."""
    names = [str(row["name"]) for row in activations if isinstance(row["seen"], list) and len(set(row["seen"])) == 1]
    if not names:
        return []
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    sentence = (
        f"'{names[0]}'{others} had one and the same value in all calibration samples, so that its range ends there and "
        "at zero: other inputs will be clipped."
    )
    return [sentence]


def _activations(calibrated: Calibrated, plan: Plan, stored: Mapping[str, onnx.TensorProto]) -> list[dict[str, object]]:
    """What each scale was read off, and the range that its whole numbers span, in the order of the graph."""
    found: list[dict[str, object]] = []
    for name in dict.fromkeys(plan.owners.values()):
        scale = float(numpy_helper.to_array(stored[f"{name}_scale"]))
        zero_point = numpy_helper.to_array(stored[f"{name}_zero_point"])
        numbers = grid(8 * zero_point.itemsize, symmetric=zero_point.dtype.kind == "i")
        seen = calibrated.filler.seen(name)
        found.append(
            {
                "name": name,
                "bits": 8 * zero_point.itemsize,
                "lowest": (numbers.low - int(zero_point)) * scale,
                "highest": (numbers.high - int(zero_point)) * scale,
                "seen": [seen.low, seen.high],
            }
        )
    return found
