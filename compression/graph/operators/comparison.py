"""Comparisons, logic and bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from compression.graph.operators.call import OperatorCall
from compression.graph.operators.dtypes import UNSIGNED, widened
from compression.graph.operators.registry import operator


def equal(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.eq(widened(a), widened(b))


def less(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.lt(widened(a), widened(b))


def less_or_equal(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.le(widened(a), widened(b))


def greater(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.gt(widened(a), widened(b))


def greater_or_equal(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.ge(widened(a), widened(b))


def bitwise_and(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.bitwise_and(widened(a), widened(b)).to(a.dtype)


def bitwise_or(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.bitwise_or(widened(a), widened(b)).to(a.dtype)


def bitwise_xor(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.bitwise_xor(widened(a), widened(b)).to(a.dtype)


_BINARY: dict[str, Callable[..., Any]] = {
    "Equal": equal,
    "Less": less,
    "LessOrEqual": less_or_equal,
    "Greater": greater,
    "GreaterOrEqual": greater_or_equal,
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
    "BitwiseAnd": bitwise_and,
    "BitwiseOr": bitwise_or,
    "BitwiseXor": bitwise_xor,
}


@operator(*_BINARY)
def binary(op: OperatorCall) -> Any:
    return op.call(_BINARY[op.node.op_type], op.tensor(0), op.tensor(1))


@operator("Not")
def not_(op: OperatorCall) -> Any:
    return op.call(torch.logical_not, op.tensor(0))


def bitwise_not(x: torch.Tensor) -> torch.Tensor:
    return torch.bitwise_not(widened(x)).to(x.dtype)


@operator("BitwiseNot")
def bitwise_not_(op: OperatorCall) -> Any:
    return op.call(bitwise_not, op.tensor(0))


def shift_left(x: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    return torch.bitwise_left_shift(widened(x), widened(bits)).to(x.dtype)


def shift_right(x: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """Logical shift of unsigned integers. A uint64 is shifted in int64, so its sign bit is masked out afterwards."""
    amount = widened(bits)
    shifted = torch.bitwise_right_shift(widened(x), amount)
    if x.dtype == torch.uint64:
        keep = torch.where(amount > 0, ~(torch.full_like(shifted, -1) << (64 - amount).clamp(max=63)), -1)
        shifted = shifted & keep
    return shifted.to(x.dtype)


@operator("BitShift")
def bit_shift(op: OperatorCall) -> Any:
    function = shift_left if op.attribute("direction") == "LEFT" else shift_right
    return op.call(function, op.tensor(0), op.tensor(1))


def is_infinite(x: torch.Tensor, positive: bool, negative: bool) -> torch.Tensor:
    infinite = torch.isinf(x)
    if not positive:
        infinite = infinite & (x < 0)
    if not negative:
        infinite = infinite & (x > 0)
    return infinite


@operator("IsInf")
def is_inf(op: OperatorCall) -> Any:
    return op.call(
        is_infinite,
        op.tensor(0),
        bool(op.attribute("detect_positive", 1)),
        bool(op.attribute("detect_negative", 1)),
    )


def where(condition: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Choose element by element, in any type that torch stores."""
    if a.dtype in UNSIGNED:
        return torch.where(condition, widened(a), widened(b)).to(a.dtype)
    return torch.where(condition, a, b)


@operator("Where")
def where_(op: OperatorCall) -> Any:
    function = torch.where if op.is_float(1) else where
    return op.call(function, op.tensor(0), op.tensor(1), op.tensor(2))
