"""Arithmetic element by element, with NumPy's broadcasting."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.nn import functional

from compression.graph.operators.call import OperatorCall
from compression.graph.operators.dtypes import UNSIGNED, widened
from compression.graph.operators.registry import operator

_UNARY: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Det": torch.det,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Neg": torch.neg,
    "Reciprocal": torch.reciprocal,
    "Round": torch.round,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}


def _narrowed(function: Callable[..., Any], *operands: Any) -> Any:
    """Apply a function to integers that torch only stores, in int64, and give the result in their type."""
    dtype = next(operand.dtype for operand in operands if isinstance(operand, torch.Tensor))
    if dtype not in UNSIGNED:
        return function(*operands)
    wide = [widened(operand) if isinstance(operand, torch.Tensor) else operand for operand in operands]
    return function(*wide).to(dtype)


@operator(*_UNARY)
def unary(op: OperatorCall) -> Any:
    return op.call(_UNARY[op.node.op_type], op.tensor(0))


@operator("Identity")
def identity(op: OperatorCall) -> Any:
    return op.tensor(0)


def add(a: Any, b: Any) -> Any:
    return _narrowed(torch.add, a, b)


def subtract(a: Any, b: Any) -> Any:
    return _narrowed(torch.sub, a, b)


def multiply(a: Any, b: Any) -> Any:
    return _narrowed(torch.mul, a, b)


def divide(a: Any, b: Any) -> Any:
    """Division; that of integers rounds toward zero, as in C."""
    tensor = a if isinstance(a, torch.Tensor) else b
    if tensor.dtype.is_floating_point:
        return torch.div(a, b)
    return _narrowed(functools.partial(torch.div, rounding_mode="trunc"), a, b)


_PLAIN: dict[str, Callable[..., Any]] = {"Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": torch.div}
_ANY_INTEGER: dict[str, Callable[..., Any]] = {"Add": add, "Sub": subtract, "Mul": multiply, "Div": divide}


@operator("Add", "Sub", "Mul", "Div")
def arithmetic(op: OperatorCall) -> Any:
    """Floats go to torch's own functions, so that the fx graph reads as a person would write it."""
    table = _PLAIN if op.is_float(0) else _ANY_INTEGER
    a, b = op.operand(0), op.operand(1)
    if not isinstance(a, fx.Node) and not isinstance(b, fx.Node):
        a, b = op.tensor(0), op.tensor(1)
    if not isinstance(a, (int, float)):
        return op.call(table[op.node.op_type], a, b)
    return op.call(table[op.node.op_type], op.tensor(0), b)


def power(base: torch.Tensor, exponent: Any) -> torch.Tensor:
    """`base ** exponent` in the type of the base, whatever the exponent's: integer bases take float exponents."""
    if isinstance(exponent, torch.Tensor) and exponent.dtype != base.dtype:
        wide = torch.promote_types(widened(base).dtype, widened(exponent).dtype)
        return torch.pow(base.to(wide), exponent.to(wide)).to(base.dtype)
    return _in_type_of_base(base, exponent)


def _in_type_of_base(base: torch.Tensor, exponent: Any) -> torch.Tensor:
    if base.dtype.is_floating_point:
        return torch.pow(base, exponent)
    if isinstance(exponent, float):
        return torch.pow(base.to(torch.float64), exponent).to(base.dtype)
    result: torch.Tensor = _narrowed(torch.pow, base, exponent)
    return result


@operator("Pow")
def pow_(op: OperatorCall) -> Any:
    """A stored exponent is a constant, never learnt: its gradient is NaN at negative bases."""
    exponent = op.constant(1)
    if exponent is None:
        return op.call(power, op.tensor(0), op.tensor(1))
    if exponent.dim() == 0 and exponent.dtype not in UNSIGNED:
        return op.call(torch.pow if op.is_float(0) else power, op.tensor(0), exponent.item())
    return op.call(power, op.tensor(0), exponent)


def modulo(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Remainder with the sign of the divisor, as Python's `%`."""
    result: torch.Tensor = _narrowed(torch.remainder, a, b)
    return result


def float_modulo(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Remainder with the sign of the dividend, as C's `fmod`."""
    result: torch.Tensor = _narrowed(torch.fmod, a, b)
    return result


@operator("Mod")
def mod(op: OperatorCall) -> Any:
    return op.call(float_modulo if op.attribute("fmod", 0) else modulo, op.tensor(0), op.tensor(1))


def maximum(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = _narrowed(torch.maximum, a, b)
    return result


def minimum(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = _narrowed(torch.minimum, a, b)
    return result


@operator("Max", "Min", "Sum", "Mean")
def variadic(op: OperatorCall) -> Any:
    combine = {"Max": maximum, "Min": minimum, "Sum": add, "Mean": add}[op.node.op_type]
    first, *others = op.tensors()
    total = functools.reduce(lambda left, right: op.call(combine, left, right), others, first)
    return op.call(torch.div, total, len(op.node.input)) if op.node.op_type == "Mean" else total


def clip(x: torch.Tensor, low: Any, high: Any) -> torch.Tensor:
    """Limit to [low, high], either of which may be missing; `high` wins where low > high."""
    wide = widened(x)
    if low is None and high is None:
        return x
    return torch.clamp(wide, low, high).to(x.dtype)


@operator("Clip")
def clip_(op: OperatorCall) -> Any:
    """Bounds are attributes before operator set 11 and inputs after; stored ones are constants."""
    if op.opset < 11:
        low, high = op.attribute("min"), op.attribute("max")
    else:
        low, high = op.number(1), op.number(2)
    if low is None and high is None:
        return op.tensor(0)
    if op.is_float(0) and isinstance(low, float) and isinstance(high, float) and low < high:
        # The same values as clamp, with a cheaper backward pass: every MobileNet has dozens of ReLU6.
        return op.call(functional.hardtanh, op.tensor(0), low, high)
    return op.call(torch.clamp if op.is_float(0) else clip, op.tensor(0), low, high)


def cumulative_sum(x: torch.Tensor, axis: int, exclusive: bool, reverse: bool) -> torch.Tensor:
    """Running sum along an axis; `exclusive` leaves an element itself out, `reverse` starts from the end."""
    return _cumulative(torch.cumsum, 0, x, axis, exclusive, reverse)


def cumulative_product(x: torch.Tensor, axis: int, exclusive: bool, reverse: bool) -> torch.Tensor:
    return _cumulative(torch.cumprod, 1, x, axis, exclusive, reverse)


def _cumulative(
    function: Callable[..., torch.Tensor], neutral: int, x: torch.Tensor, axis: int, exclusive: bool, reverse: bool
) -> torch.Tensor:
    source = widened(x)
    ordered = source.flip(axis) if reverse else source
    if exclusive:
        length = ordered.shape[axis]
        start = torch.full_like(ordered.narrow(axis, 0, min(1, length)), neutral)
        ordered = torch.cat([start, ordered.narrow(axis, 0, max(length - 1, 0))], axis)
    result = function(ordered, axis)
    return (result.flip(axis) if reverse else result).to(x.dtype)


@operator("CumSum", "CumProd")
def cumulative(op: OperatorCall) -> Any:
    function = cumulative_sum if op.node.op_type == "CumSum" else cumulative_product
    return op.call(
        function, op.tensor(0), op.number(1), bool(op.attribute("exclusive", 0)), bool(op.attribute("reverse", 0))
    )
