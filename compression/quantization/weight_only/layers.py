"""The layers that GPTQ can work on, and the order in which it does."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from compression.context import Context
from compression.data.feed import ModelFeed
from compression.quantization import prepare
from compression.quantization.integer.observe import batch_size
from compression.quantization.spec import QuantizeWeightOnly
from compression.quantization.weight_only.groupwise import Array
from compression.quantization.weight_only.moments import Taken, collect, taken_by
from compression.quantization.weight_only.plan import Plan

_MOMENT_BYTES = 512 << 20
"""Second moments that are collected in one go over the samples."""
_PASSES = 8
"""Goes over the samples, save that more are needed for the memory's sake."""


@dataclass(frozen=True)
class Layer:
    """A weight that multiplies something known.

    Attributes:
        plan: How the weight will be held.
        taken: What the nodes that share the weight multiply it by.
        level: Layers before it on the longest way from an input.
    """

    plan: Plan
    taken: tuple[Taken, ...]
    level: int

    @property
    def convolution_groups(self) -> int:
        window = self.taken[0].window
        return 1 if window is None else window.groups

    @property
    def moment_bytes(self) -> int:
        return int(4 * self.convolution_groups * self.plan.layout[1] ** 2 * len(self.taken))


def find_layers(model: onnx.ModelProto, plans: Sequence[Plan]) -> dict[str, Layer]:
    """By weight name, the layers whose inputs can be collected: products, and convolutions of the main graph.

    Args:
        model: The float model, its nodes in order.
        plans: Of all weights that will be quantized.
    """
    wanted = {plan.weight.name: plan for plan in plans}
    products = {product.node: plan.weight.name for plan in plans for product in plan.products}
    taken: dict[str, list[Taken | None]] = {}
    depth: dict[str, int] = {}
    levels: dict[str, int] = {}
    for node in model.graph.node:
        here = max((depth.get(name, 0) for name in prepare.needs(node)), default=0)
        name = products.get(node.output[0])
        read = [name] if name is not None else [one for one in prepare.needs(node) if one in wanted]
        for weight in read:
            plan = wanted[weight]
            if plan.form == "DequantizeLinear":
                convolves = node.op_type == "Conv" and list(node.input[1:2]) == [weight]
                one = taken_by(node, plan.weight.shape[2:]) if convolves else None
            else:
                one = taken_by(node, ()) if weight == name else None
            # A Transpose between a weight and its products is no use of its own.
            if name is not None or plan.form != "MatMulNBits":
                taken.setdefault(weight, []).append(one)
            levels[weight] = max(here, levels.get(weight, 0))
        for output in node.output:
            depth[output] = here + bool(read)
    found = {}
    for weight, uses in taken.items():
        known = tuple(dict.fromkeys(use for use in uses if use is not None))
        if len(known) == len(set(uses)) and len({use.window and use.window.groups for use in known}) == 1:
            found[weight] = Layer(wanted[weight], known, levels[weight])
    return found


def second_moments(
    model: onnx.ModelProto,
    layers: Mapping[str, Layer],
    feed: ModelFeed,
    spec: QuantizeWeightOnly,
    context: Context,
) -> Iterator[tuple[Layer, Array]]:
    """The layers from the first to the last, each with the mean products of its inputs, (groups, inputs, inputs).

    Layers that do not feed one another are measured together. A layer must be quantized in `model` before the next one
    is asked for: later ones are measured on what the quantized ones give them (Frantar et al. 2022, section 4).

    Raises:
        StepFailed: `unsupported_by_runtime`.
        DataRejected: `non_finite_values`.
    """
    batch = batch_size(model)
    for together in _passes(list(layers.values())):
        wanted = {taken for layer in together for taken in layer.taken}
        found = collect(model, wanted, feed, spec.calibration_samples, batch, context)
        for layer in together:
            yield layer, np.mean([found[taken] for taken in layer.taken], axis=0)


def _passes(layers: Sequence[Layer]) -> Iterator[list[Layer]]:
    """Layers by level, several levels together where there are many, and no more than memory holds."""
    levels = sorted({layer.level for layer in layers})
    per_pass = math.ceil(len(levels) / _PASSES)
    rank = {level: position // per_pass for position, level in enumerate(levels)}
    together: list[Layer] = []
    held = 0
    for layer in sorted(layers, key=lambda layer: layer.level):
        full = held + layer.moment_bytes > _MOMENT_BYTES
        if together and (full or rank[layer.level] != rank[together[0].level]):
            yield together
            together, held = [], 0
        together.append(layer)
        held += layer.moment_bytes
    if together:
        yield together


def power(matrix: Array, moments: Array) -> float:
    """Sum over the columns of (inputs, outputs) of what they give on inputs of these moments, squared."""
    return float(np.vdot(matrix, moments @ matrix))


def decibels(signal: float, noise: float) -> float | None:
    """A ratio of powers in dB; None where one of them is nothing."""
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None
