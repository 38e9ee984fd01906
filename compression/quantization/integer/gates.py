"""Hard sigmoids in integers: the numbers of their input, cut off and read with another scale.

A hard sigmoid is alpha * x + beta between 0 and 1. With x = scale * (number - zero_point), the same number means
alpha * x + beta when it is read as alpha * scale * (number - zero), where `zero` is the number of the x at which the
hard sigmoid leaves 0; so if that is a whole number, cutting off numbers is all there is to compute, and exact. Hard
swish, x times its hard sigmoid (Howard et al. 2019, section 5.2), becomes one integer product.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from compression.graph import walk
from compression.quantization.integer.plan import Anatomy, Plan
from compression.quantization.integer.ranges import Grid, Parameters

OPERATOR = "HardSigmoid"
# Defaults of the operator.
_ALPHA, _BETA = 0.2, 0.5


@dataclass(frozen=True)
class Gate:
    """A hard sigmoid.

    Attributes:
        alpha: Its slope.
        lowest: The x up to which it is 0, below zero.
        highest: The x from which on it is 1, above zero.
    """

    alpha: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class Gated:
    """A value that hard sigmoids read.

    Attributes:
        gate: What they compute, all the same.
        cut_below: Whether nothing changes when the value is cut off where the gate opens.
        cut_above: Whether nothing changes when it is cut off where the gate is wide open.
    """

    gate: Gate
    cut_below: bool
    cut_above: bool


@dataclass(frozen=True)
class Cut:
    """What a hard sigmoid is in integers.

    Attributes:
        low: Numbers below become this one.
        high: Numbers above become this one.
        parameters: How its result is read.
    """

    low: int
    high: int
    parameters: Parameters


def gate_of(node: onnx.NodeProto) -> Gate | None:
    """What a hard sigmoid computes; None where the node is none, or is not closed for some x below 0 and open at 0."""
    if node.op_type != OPERATOR:
        return None
    alpha, beta = walk.real(node, "alpha", _ALPHA), walk.real(node, "beta", _BETA)
    return Gate(alpha, -beta / alpha, (1 - beta) / alpha) if alpha > 0 and 0 < beta < 1 else None


def gated_values(anatomy: Anatomy, plan: Plan) -> dict[str, Gated]:
    """The values that hard sigmoids of a plan read in integers, by the value that owns the scale."""
    found: dict[str, Gated] = {}
    differing: set[str] = set()
    outputs = {value.name for value in anatomy.model.graph.output}
    aliases = {owner for value, owner in plan.owners.items() if value != owner}
    for node in anatomy.model.graph.node:
        gate = gate_of(node) if node.name in plan.integer else None
        if gate is None:
            continue
        value = node.input[0]
        owner = plan.owners[value]
        alone = value == owner and value not in outputs and owner not in aliases
        gates = {
            other.output[0]: other
            for other in anatomy.readers[value]
            if gate_of(other) == gate and other.input[0] == value
        }
        rest = [other for other in anatomy.readers[value] if other.output[0] not in gates]
        swishes = all(other.op_type == "Mul" and gates.keys() & set(other.input) for other in rest)
        new = Gated(gate, cut_below=alone and swishes, cut_above=alone and not rest)
        if found.setdefault(owner, new) != new:
            differing.add(owner)
    return {owner: gated for owner, gated in found.items() if owner not in differing}


def fitted(low: float, high: float, gated: Gated, numbers: Grid) -> Parameters:
    """Scale and zero point of a range whose steps hit the x at which the gate opens.

    Args:
        low: The lowest value to represent.
        high: The highest.
        gated: The value.
        numbers: Unsigned numbers.
    """
    gate = gated.gate
    low = gate.lowest if gated.cut_below else min(low, gate.lowest)
    high = gate.highest if gated.cut_above else max(high, 0.0)
    # Down to whole numbers of steps between the gate's opening and zero makes steps wider, so that all still fits; one
    # number is left free because `low` is rounded to a whole number as well.
    between = math.floor(-gate.lowest * (numbers.steps - (0 if gated.cut_below else 1)) / (high - low))
    scale = float(np.float32(-gate.lowest / max(between, 1)))
    return Parameters(scale, numbers.low + (max(between, 1) if gated.cut_below else math.ceil(-low / scale - 1e-6)))


def cut(parameters: Parameters, gate: Gate, numbers: Grid) -> Cut | None:
    """The hard sigmoid of a value with those parameters; None where no number stands for the gate's opening."""
    opening = parameters.zero_point + gate.lowest / parameters.scale
    low = round(opening)
    if abs(opening - low) > 1e-3 or not numbers.low <= low < numbers.high:
        return None
    high = min(round(low + 1 / (gate.alpha * parameters.scale)), numbers.high)
    return Cut(low, high, Parameters(float(np.float32(gate.alpha * parameters.scale)), low))


def cuts(
    anatomy: Anatomy, plan: Plan, gated: Mapping[str, Gated], parameters: Mapping[str, Parameters]
) -> dict[str, Cut]:
    """What to do for each hard sigmoid of a plan, by its node's name.

    Args:
        anatomy: The graph.
        plan: What is quantized.
        gated: What `gated_values` gave.
        parameters: Of those owners of scales that have unsigned 8-bit numbers.
    """
    found: dict[str, Cut] = {}
    for node in anatomy.model.graph.node:
        if node.op_type != OPERATOR or node.name not in plan.integer:
            continue
        owner = plan.owners[node.input[0]]
        if owner in gated and owner in parameters:
            one = cut(parameters[owner], gated[owner].gate, Grid(0, 255))
            if one is not None:
                found[node.name] = one
    return found
