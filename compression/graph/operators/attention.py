"""Attention and rotary position embeddings."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional

from compression.graph.operators.call import OperatorCall
from compression.graph.operators.registry import operator

# Options of Attention that torch's own fused function has; the others go by ONNX's definition of the operator.
_FUSED_ATTRIBUTES = {"q_num_heads", "kv_num_heads", "scale", "is_causal"}


def rotate(
    x: torch.Tensor,
    cosines: torch.Tensor,
    sines: torch.Tensor,
    positions: torch.Tensor | None,
    interleaved: bool,
    rotated: int,
    heads: int,
) -> torch.Tensor:
    """Rotate pairs of features by position. Su et al. 2021, "RoFormer", section 3.2.

    Args:
        x: (batch, heads, steps, features) or (batch, steps, heads x features).
        cosines: (positions, rotated / 2), or (batch, steps, rotated / 2) without `positions`.
        sines: Likewise.
        positions: (batch, steps): rows of the caches.
        interleaved: Pairs are neighbours rather than halves.
        rotated: How many leading features are rotated; 0 for all.
        heads: Needed for the second form of `x`.
    """
    shape = x.shape
    if x.dim() == 3:
        x = x.unflatten(-1, (heads, -1)).transpose(1, 2)
    width = rotated or x.shape[-1]
    turning, fixed = x[..., :width], x[..., width:]
    if positions is not None:
        cosines, sines = cosines[positions], sines[positions]
    cosines, sines = cosines.unsqueeze(1), sines.unsqueeze(1)
    if interleaved:
        first, second = turning[..., 0::2], turning[..., 1::2]
    else:
        first, second = turning.chunk(2, -1)
    real, imaginary = cosines * first - sines * second, sines * first + cosines * second
    turned = torch.stack([real, imaginary], -1).flatten(-2) if interleaved else torch.cat([real, imaginary], -1)
    y = torch.cat([turned, fixed], -1)
    return y.transpose(1, 2).reshape(shape) if len(shape) == 3 else y


@operator("RotaryEmbedding", since=23)
def rotary_embedding(op: OperatorCall) -> Any:
    return op.call(
        rotate,
        op.tensor(0),
        op.tensor(1),
        op.tensor(2),
        op.optional(3),
        bool(op.attribute("interleaved", 0)),
        op.attribute("rotary_embedding_dim", 0),
        op.attribute("num_heads", 0),
    )


def is_fused(attributes: set[str], inputs: int, outputs: int) -> bool:
    """Whether an Attention node asks for no more than `attention` computes."""
    return attributes <= _FUSED_ATTRIBUTES and inputs <= 4 and outputs == 1


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    q_heads: int,
    kv_heads: int,
    scale: float | None,
    causal: bool,
) -> torch.Tensor:
    """softmax(scale * q k' + mask) v by torch's fused kernels. Vaswani et al. 2017, section 3.2.1.

    Args:
        q: (batch, heads, steps, features) or (batch, steps, heads x features); k and v likewise, with their own
            number of heads, which divides that of the queries.
        k: Keys.
        v: Values.
        mask: Boolean (True takes part) or added to the scores; broadcast to (batch, heads, steps, keys).
        q_heads: Needed for three axes.
        kv_heads: Needed for three axes.
        scale: None for 1 / sqrt(features).
        causal: Query i sees keys up to i.
    """
    packed = q.dim() == 3
    if packed:
        q = q.unflatten(-1, (q_heads, -1)).transpose(1, 2)
        k = k.unflatten(-1, (kv_heads, -1)).transpose(1, 2)
        v = v.unflatten(-1, (kv_heads, -1)).transpose(1, 2)
    if causal:
        allowed = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
        bias = torch.zeros_like(allowed, dtype=q.dtype).masked_fill(~allowed, -math.inf)
        if mask is None:
            mask = allowed
        elif mask.dtype == torch.bool:
            mask = mask & allowed
        else:
            mask = mask + bias
    if mask is not None and mask.shape[-1] < k.shape[-2]:
        missing = k.shape[-2] - mask.shape[-1]
        mask = functional.pad(mask, (0, missing), value=False if mask.dtype == torch.bool else -math.inf)
    y = functional.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    return y.transpose(1, 2).flatten(-2) if packed else y


@operator("Attention", since=23)
def attention_(op: OperatorCall) -> Any:
    attributes = {attribute.name for attribute in op.node.attribute}
    if not is_fused(attributes, len(op.node.input), len(op.node.output)):
        op.reject("caches, windows or soft caps, and ONNX's definition cannot be expanded here")
    return op.call(
        attention,
        op.tensor(0),
        op.tensor(1),
        op.tensor(2),
        op.optional(3),
        op.attribute("q_num_heads", 0),
        op.attribute("kv_num_heads", 0),
        op.attribute("scale"),
        bool(op.attribute("is_causal", 0)),
    )
