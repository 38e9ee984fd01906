"""Activation functions, and softmax with its two conventions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from compression.graph.operators.call import OperatorCall
from compression.graph.operators.dtypes import torch_dtype
from compression.graph.operators.registry import operator

_PLAIN: dict[str, Callable[..., Any]] = {
    "Relu": functional.relu,
    "Sigmoid": torch.sigmoid,
    "Softsign": functional.softsign,
    "HardSwish": functional.hardswish,
    "Mish": functional.mish,
}


@operator(*_PLAIN)
def plain(op: OperatorCall) -> Any:
    return op.call(_PLAIN[op.node.op_type], op.tensor(0))


def softplus(x: torch.Tensor) -> torch.Tensor:
    """log(1 + exp(x)), exact for large x where torch's own switches to the identity."""
    return torch.logaddexp(x, torch.zeros_like(x))


@operator("Softplus")
def softplus_(op: OperatorCall) -> Any:
    return op.call(softplus, op.tensor(0))


@operator("LeakyRelu")
def leaky_relu(op: OperatorCall) -> Any:
    return op.call(functional.leaky_relu, op.tensor(0), op.attribute("alpha", 0.01))


@operator("Elu")
def elu(op: OperatorCall) -> Any:
    return op.call(functional.elu, op.tensor(0), op.attribute("alpha", 1.0))


@operator("Celu")
def celu(op: OperatorCall) -> Any:
    return op.call(functional.celu, op.tensor(0), op.attribute("alpha", 1.0))


def scaled_elu(x: torch.Tensor, alpha: float, gamma: float) -> torch.Tensor:
    """Gamma * (x if x > 0 else alpha * (exp(x) - 1)); torch's selu fixes both factors."""
    return gamma * functional.elu(x, alpha)


@operator("Selu")
def selu(op: OperatorCall) -> Any:
    alpha = op.attribute("alpha", 1.67326319217681884765625)
    gamma = op.attribute("gamma", 1.05070102214813232421875)
    return op.call(scaled_elu, op.tensor(0), alpha, gamma)


def hard_sigmoid(x: torch.Tensor, alpha: float, beta: float) -> torch.Tensor:
    """clamp(alpha * x + beta, 0, 1)."""
    return torch.clamp(alpha * x + beta, 0, 1)


@operator("HardSigmoid")
def hard_sigmoid_(op: OperatorCall) -> Any:
    return op.call(hard_sigmoid, op.tensor(0), op.attribute("alpha", 0.2), op.attribute("beta", 0.5))


def thresholded_relu(x: torch.Tensor, alpha: float) -> torch.Tensor:
    return torch.where(x > alpha, x, torch.zeros_like(x))


@operator("ThresholdedRelu")
def thresholded_relu_(op: OperatorCall) -> Any:
    return op.call(thresholded_relu, op.tensor(0), op.attribute("alpha", 1.0))


def shrink(x: torch.Tensor, lambd: float, bias: float) -> torch.Tensor:
    """X + bias below -lambd, x - bias above lambd, 0 between."""
    moved = torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, torch.zeros_like(x)))
    return moved.to(x.dtype)


@operator("Shrink")
def shrink_(op: OperatorCall) -> Any:
    return op.call(shrink, op.tensor(0), op.attribute("lambd", 0.5), op.attribute("bias", 0.0))


@operator("Gelu")
def gelu(op: OperatorCall) -> Any:
    return op.call(functional.gelu, op.tensor(0), approximate=op.attribute("approximate", "none"))


def swish(x: torch.Tensor, alpha: float) -> torch.Tensor:
    return x * torch.sigmoid(alpha * x)


@operator("Swish")
def swish_(op: OperatorCall) -> Any:
    alpha = op.attribute("alpha", 1.0)
    return op.call(functional.silu, op.tensor(0)) if alpha == 1 else op.call(swish, op.tensor(0), alpha)


def swiglu(gate: torch.Tensor, value: torch.Tensor, alpha: float) -> torch.Tensor:
    """Swish of the gate times the value. Shazeer 2020, "GLU Variants Improve Transformer", section 2."""
    return swish(gate, alpha) * value


@operator("SwiGLU")
def swiglu_(op: OperatorCall) -> Any:
    return op.call(swiglu, op.tensor(0), op.tensor(1), op.attribute("alpha", 1.0))


def prelu(x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """Slope broadcast from the right, as ONNX has it; torch's own takes one slope per channel of axis 1."""
    return torch.where(x < 0, slope * x, x)


@operator("PRelu")
def prelu_(op: OperatorCall) -> Any:
    return op.call(prelu, op.tensor(0), op.tensor(1))


_SOFT = {"Softmax": torch.softmax, "LogSoftmax": torch.log_softmax}


@operator(*_SOFT, since=13)
def softmax(op: OperatorCall) -> Any:
    return op.call(_SOFT[op.node.op_type], op.tensor(0), op.attribute("axis", -1))


def softmax_of_rest(x: torch.Tensor, axis: int) -> torch.Tensor:
    """Softmax over all axes from `axis` on together: the meaning before operator set 13."""
    return torch.softmax(x.flatten(axis), axis).reshape(x.shape)


def log_softmax_of_rest(x: torch.Tensor, axis: int) -> torch.Tensor:
    return torch.log_softmax(x.flatten(axis), axis).reshape(x.shape)


@operator(*_SOFT)
def flattening_softmax(op: OperatorCall) -> Any:
    axis = op.attribute("axis", 1)
    rank = op.rank(0)
    if rank is not None and axis % rank == rank - 1:
        return op.call(_SOFT[op.node.op_type], op.tensor(0), axis)
    return op.call(softmax_of_rest if op.node.op_type == "Softmax" else log_softmax_of_rest, op.tensor(0), axis)


def hardmax(x: torch.Tensor, axis: int) -> torch.Tensor:
    """1 at the first maximum along the axis, 0 elsewhere."""
    return torch.zeros_like(x).scatter_(axis, first_argmax(x, axis), 1)


def first_argmax(x: torch.Tensor, axis: int) -> torch.Tensor:
    """Position of the first maximum along an axis, which is kept; torch leaves open which of equal ones it names."""
    largest = x.amax(axis, keepdim=True)
    return (x == largest).to(torch.uint8).argmax(axis, keepdim=True)


def hardmax_of_rest(x: torch.Tensor, axis: int) -> torch.Tensor:
    return hardmax(x.flatten(axis), axis).reshape(x.shape)


@operator("Hardmax")
def hardmax_(op: OperatorCall) -> Any:
    if op.opset < 13:
        return op.call(hardmax_of_rest, op.tensor(0), op.attribute("axis", 1))
    return op.call(hardmax, op.tensor(0), op.attribute("axis", -1))


def softmax_in(x: torch.Tensor, axis: int, element_type: int) -> torch.Tensor:
    """Softmax computed in a given ONNX element type, in the type of `x`."""
    return torch.softmax(x, axis, dtype=torch_dtype(element_type)).to(x.dtype)
