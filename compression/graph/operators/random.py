"""Random tensors. A node's own seed makes it repeat itself; otherwise torch's generator decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from compression.graph.operators.call import OperatorCall
from compression.graph.operators.dtypes import torch_dtype
from compression.graph.operators.registry import operator


def _generator(seed: float | None, device: torch.device) -> torch.Generator | None:
    return None if seed is None else torch.Generator(device).manual_seed(int(seed))


def normal(shape: Sequence[int], mean: float, scale: float, dtype: torch.dtype, seed: float | None) -> torch.Tensor:
    return torch.randn(tuple(shape), generator=_generator(seed, torch.device("cpu"))).to(dtype) * scale + mean


def uniform(shape: Sequence[int], low: float, high: float, dtype: torch.dtype, seed: float | None) -> torch.Tensor:
    return torch.rand(tuple(shape), generator=_generator(seed, torch.device("cpu"))).to(dtype) * (high - low) + low


def normal_like(x: torch.Tensor, mean: float, scale: float, dtype: torch.dtype, seed: float | None) -> torch.Tensor:
    return normal(x.shape, mean, scale, dtype, seed).to(x.device)


def uniform_like(x: torch.Tensor, low: float, high: float, dtype: torch.dtype, seed: float | None) -> torch.Tensor:
    return uniform(x.shape, low, high, dtype, seed).to(x.device)


_LIKE = {"RandomNormalLike": normal_like, "RandomUniformLike": uniform_like}


def _bounds(op: OperatorCall) -> tuple[float, float]:
    if "Normal" in op.node.op_type:
        return op.attribute("mean", 0.0), op.attribute("scale", 1.0)
    return op.attribute("low", 0.0), op.attribute("high", 1.0)


@operator("RandomNormalLike", "RandomUniformLike")
def random_like(op: OperatorCall) -> Any:
    dtype = torch_dtype(op.attribute("dtype", 0) or op.element_type(0) or 1)
    return op.call(_LIKE[op.node.op_type], op.tensor(0), *_bounds(op), dtype, op.attribute("seed"))


def bernoulli(x: torch.Tensor, dtype: torch.dtype, seed: float | None) -> torch.Tensor:
    """1 with the probability that `x` holds."""
    return torch.bernoulli(x, generator=_generator(seed, x.device)).to(dtype)


@operator("Bernoulli")
def bernoulli_(op: OperatorCall) -> Any:
    dtype = torch_dtype(op.attribute("dtype", 0) or op.element_type(0) or 1)
    return op.call(bernoulli, op.tensor(0), dtype, op.attribute("seed"))
