"""From what was seen and what is stored to the whole numbers of a plan."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from compression.context import Context
from compression.data.feed import ModelFeed
from compression.graph.weights import Weight
from compression.quantization.integer import bias, gates
from compression.quantization.integer.adaptive import adapt
from compression.quantization.integer.codes import Codes, Layout, Limit, highest, quantize_weight
from compression.quantization.integer.gates import Cut
from compression.quantization.integer.histogram import Extremes
from compression.quantization.integer.observe import Statistics
from compression.quantization.integer.plan import Anatomy, Layer, Plan
from compression.quantization.integer.ranges import Grid, Method, choose, grid, parameters
from compression.quantization.integer.write import Bias, Contents, Quantizer
from compression.quantization.spec import QuantizeStatic

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Bits:
    """Bits of a node.

    Attributes:
        weights: Of its weight.
        activations: Of what it reads; a value that several nodes read gets the most that one wants.
    """

    weights: Literal[4, 8] = 8
    activations: Literal[8, 16] = 8


def tables(model: onnx.ModelProto, weights: Iterable[Weight]) -> dict[str, str]:
    """Nodes that look rows up in a weight of two axes, each with the weight's name."""
    found = {weight.name for weight in weights if weight.is_embedding and len(weight.shape) == 2}
    return {
        node.name: node.input[0] for node in model.graph.node if node.op_type == "Gather" and node.input[0] in found
    }


class Filler:
    """Finds each range and rounds each weight once, however many plans there are.

    Attributes:
        lookups: Nodes that look rows up, with their weights.

    Args:
        anatomy: The float graph.
        lookups: Nodes that look rows up, with their weights.
        statistics: What was seen of the activations.
        spec: The settings.
        limit: What bounds the numbers of weights.
        method: How ranges are read off the statistics.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        lookups: Mapping[str, str],
        statistics: Statistics,
        spec: QuantizeStatic,
        limit: Limit,
        *,
        method: Method,
    ) -> None:
        self._method = method
        self._anatomy = anatomy
        self.lookups = lookups
        self._statistics = statistics
        self._spec = spec
        self._limit = limit
        self._stored = {tensor.name: tensor for tensor in anatomy.model.graph.initializer}
        self._default = Bits(spec.weight_bits, spec.activation_bits)
        self._ranges: dict[tuple[str, Grid], tuple[float, float]] = {}
        self._quantizers: dict[tuple[str, int], Quantizer] = {}
        self._codes: dict[tuple[str, Layout, int, Limit, bool], Codes] = {}

    def fill(
        self, plan: Plan, float_nodes: Collection[str], bits: Mapping[str, Bits], *, unsigned_weights: bool
    ) -> Contents:
        """The contents of a plan.

        Args:
            plan: What is quantized.
            float_nodes: Names of nodes that stay float; tables among them.
            bits: Bits by node, where they are others than the spec's.
            unsigned_weights: Store weights as uint8.
        """
        wanted = self._activation_bits(plan, bits)
        activations = {owner: self._quantizer(owner, wanted[owner]) for owner in wanted}
        cuts = self._take_gates(plan, activations)
        limit: Limit = "full" if unsigned_weights else self._limit
        weights: dict[str, Codes] = {}
        biases: dict[str, Bias] = {}
        for name, layers in _by_weight(plan.layers.values()).items():
            scales = [activations[plan.owners[layer.activation]].parameters.scale for layer in layers]
            count = max(bits.get(layer.node, self._default).weights for layer in layers)
            # Only kernels of 8 bits saturate, and of these not the ones of depthwise convolutions.
            exact = all(layer.is_depthwise or wanted[plan.owners[layer.activation]] > 8 for layer in layers)
            weights[name] = self._weight(layers, scales, count, "full" if exact else limit)
            for layer, scale in zip(layers, scales, strict=True):
                found = self._bias(layer, weights[name], scale)
                if found is not None:
                    biases[layer.node] = found
        lookups = {node: name for node, name in self.lookups.items() if node not in float_nodes}
        for node, name in lookups.items():
            if name not in weights:
                count = bits.get(node, self._default).weights
                weights[name] = self._rounded(name, Layout(1, None), count, "full", per_channel=self._spec.per_channel)
        return Contents(activations, weights, biases, frozenset(lookups), cuts, unsigned_weights)

    def _activation_bits(self, plan: Plan, bits: Mapping[str, Bits]) -> dict[str, int]:
        """Bits of each scale's owner: the most that something in integers that reads it wants."""
        wanted: dict[str, int] = {}
        made: dict[str, int] = {}
        for node in self._anatomy.model.graph.node:
            if node.name not in plan.integer:
                continue
            own = bits.get(node.name, self._default).activations
            layer = plan.layers.get(node.name)
            for value in node.input if layer is None else [layer.activation]:
                owner = plan.owners.get(value)
                if owner is not None:
                    wanted[owner] = max(wanted.get(owner, 0), own)
            for value in (*node.output, self._anatomy.tails.get(node.name, "")):
                owner = plan.owners.get(value)
                if owner is not None:
                    made[owner] = own
        return {owner: wanted.get(owner) or made[owner] for owner in dict.fromkeys(plan.owners.values())}

    def _take_gates(self, plan: Plan, activations: dict[str, Quantizer]) -> dict[str, Cut]:
        """Fit what hard sigmoids read and give to one another; what each does then, by its node's name."""
        gated = {
            owner: one
            for owner, one in gates.gated_values(self._anatomy, plan).items()
            if activations[owner].dtype == "uint8"
        }
        for owner, one in gated.items():
            numbers = grid(8, symmetric=False)
            low, high = self._range(owner, numbers)
            activations[owner] = Quantizer(gates.fitted(low, high, one, numbers), "uint8")
        parameters = {owner: activations[owner].parameters for owner in gated}
        cuts = gates.cuts(self._anatomy, plan, gated, parameters)
        for node in self._anatomy.model.graph.node:
            if node.name in cuts:
                activations[plan.owners[node.output[0]]] = Quantizer(cuts[node.name].parameters, "uint8")
        return cuts

    def _quantizer(self, owner: str, bits: int) -> Quantizer:
        if (owner, bits) not in self._quantizers:
            symmetric = self._spec.symmetric_activations
            numbers = grid(bits, symmetric=symmetric)
            low, high = self._range(owner, numbers)
            dtype = f"int{bits}" if symmetric else f"uint{bits}"
            self._quantizers[owner, bits] = Quantizer(parameters(low, high, numbers), dtype)
        return self._quantizers[owner, bits]

    def _range(self, owner: str, numbers: Grid) -> tuple[float, float]:
        if (owner, numbers) not in self._ranges:
            self._ranges[owner, numbers] = choose(self.seen(owner), self._method, self._spec.percentile, numbers)
        return self._ranges[owner, numbers]

    def seen(self, value: str) -> Extremes:
        """What was seen of a value, or of what it was moved from."""
        return self._statistics.values[self._anatomy.origin(value)]

    def _weight(
        self,
        layers: Sequence[Layer],
        scales: Sequence[float],
        bits: int,
        limit: Limit,
    ) -> Codes:
        """A weight for all layers that share it, with scales that leave room for each one's bias."""
        layout = layers[0].layout
        per_channel = self._spec.per_channel and all(layer.layout == layout and layer.per_channel for layer in layers)
        name = layers[0].weight
        codes = self._rounded(name, layout, bits, limit, per_channel=per_channel)
        biases = [(self._array(layer.bias), scale) for layer, scale in zip(layers, scales, strict=True) if layer.bias]
        lowest = [bias.lowest_scales(values, scale) for values, scale in biases]
        room = np.max(lowest, 0) if per_channel and lowest else np.max(lowest, initial=0.0)
        if np.all(codes.scales >= room):
            return codes
        return quantize_weight(
            self._array(name),
            layout,
            bits,
            limit,
            per_channel=per_channel,
            least_error=self._spec.weight_range == "mse",
            lowest_scales=room,
        )

    def round_adaptively(self, feed: ModelFeed, context: Context) -> list[dict[str, object]]:
        """Round weights of layers by what that does to their outputs from now on; what it did to each.

        A weight whose scales have to leave room for a large bias keeps the nearest numbers.
        """
        layers = {layer.weight: layer for layer in self._anatomy.layers.values()}
        report: list[dict[str, object]] = []
        for bits in self._adaptive_bits():
            nearest = {}
            for name, layer in layers.items():
                per_channel = self._spec.per_channel and layer.per_channel
                limit: Limit = "full" if layer.is_depthwise else self._limit
                nearest[name] = self._rounded(name, layer.layout, bits, limit, per_channel=per_channel)
            weights = {name: self._array(name) for name in layers}
            top = highest(bits, self._limit)
            for name, adapted in adapt(
                self._anatomy, nearest, weights, feed, context, samples=self._spec.calibration_samples, top=top
            ):
                for key, codes in self._codes.items():
                    if codes is nearest[name]:
                        self._codes[key] = adapted.codes
                report.append({"weight": name, "bits": bits, "error_left": adapted.error_left})
        return report

    def _adaptive_bits(self) -> tuple[int, ...]:
        return (4, 8) if self._spec.selection.by == "sensitivity" else (self._spec.weight_bits,)

    def _rounded(self, name: str, layout: Layout, bits: int, limit: Limit, *, per_channel: bool) -> Codes:
        key = (name, layout, bits, limit, per_channel)
        if key not in self._codes:
            self._codes[key] = quantize_weight(
                self._array(name),
                layout,
                bits,
                limit,
                per_channel=per_channel,
                least_error=self._spec.weight_range == "mse",
            )
        return self._codes[key]

    def _bias(self, layer: Layer, codes: Codes, scale: float) -> Bias | None:
        """The layer's bias, corrected where the spec wants it; None where it has none and needs none."""
        values = None if layer.bias is None else self._array(layer.bias).astype(np.float64)
        if self._spec.bias_correction and layer.operator in ("Conv", "Gemm"):
            means = self._statistics.channels[layer.activation].means
            if means.size:
                shift = bias.expected_shift(self._array(layer.weight), codes, layer.layout, layer.groups, means)
                values = -shift if values is None else values - shift
        if values is None:
            return None
        return bias.quantize_bias(values, scale, codes.scales)

    def _array(self, name: str) -> Array:
        return numpy_helper.to_array(self._stored[name])


def _by_weight(layers: Iterable[Layer]) -> dict[str, list[Layer]]:
    found: dict[str, list[Layer]] = {}
    for layer in layers:
        found.setdefault(layer.weight, []).append(layer)
    return found
