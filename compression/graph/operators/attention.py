"""Attention and rotary position embeddings."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional

from compression.graph.operators.call import OperatorCall
from compression.graph.operators.dtypes import torch_dtype
from compression.graph.operators.registry import operator


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


def allowed_keys(
    queries: int,
    keys: int,
    offset: torch.Tensor,
    causal: bool,
    left: int,
    right: int,
) -> torch.Tensor:
    """(batch or 1, 1, queries, keys): which keys a query may see by position alone.

    Args:
        queries: How many there are.
        keys: How many there are.
        offset: (batch,) or (1,): position of the first query among the keys.
        causal: No key after the query's own position.
        left: Keys before the own position that are seen at most; negative for all.
        right: Likewise after it.
    """
    ahead = torch.arange(keys, device=offset.device) - torch.arange(queries, device=offset.device).unsqueeze(1)
    ahead = ahead - offset.reshape(-1, 1, 1, 1)
    seen = torch.ones_like(ahead, dtype=torch.bool)
    if causal:
        seen = seen & (ahead <= 0)
    if left >= 0:
        seen = seen & (ahead >= -left)
    if right >= 0:
        seen = seen & (ahead <= right)
    return seen


def general_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    past_k: torch.Tensor | None,
    past_v: torch.Tensor | None,
    filled: torch.Tensor | None,
    *,
    q_heads: int,
    kv_heads: int,
    scale: float | None,
    causal: bool,
    softcap: float,
    left: int,
    right: int,
    softmax_type: int | None,
    shown: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Attention with all that ONNX's operator allows, step by step.

    Args:
        q: As in `attention`; k, v and mask likewise.
        k: Keys.
        v: Values.
        mask: May be shorter than the keys, which are then left out.
        past_k: (batch, kv heads, past, features): keys of earlier calls, before `k`.
        past_v: Their values.
        filled: (batch,): how many keys of a cache held outside are real.
        q_heads: Needed for three axes.
        kv_heads: Needed for three axes.
        scale: None for 1 / sqrt(features).
        causal: Query i of the sequence sees keys up to its own position.
        softcap: Scores become softcap * tanh(score / softcap); 0 leaves them.
        left: Width of the window of seen keys before a query; negative for all.
        right: Likewise after it.
        softmax_type: ONNX element type in which the softmax is computed; None for that of the scores.
        shown: Which scores come out last: 0 raw, 1 capped, 2 with mask, 3 after the softmax.

    Returns:
        The result, all keys, all values and the scores. A query that sees no key gives zeros.
    """
    packed = q.dim() == 3
    if packed:
        q = q.unflatten(-1, (q_heads, -1)).transpose(1, 2)
        k = k.unflatten(-1, (kv_heads, -1)).transpose(1, 2)
        v = v.unflatten(-1, (kv_heads, -1)).transpose(1, 2)
    past = 0 if past_k is None else past_k.shape[2]
    k = k if past_k is None else torch.cat([past_k, k], 2)
    v = v if past_v is None else torch.cat([past_v, v], 2)
    present = (k, v)
    queries, keys, groups = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    offset = torch.tensor([past], device=q.device) if filled is None else filled.reshape(-1) - queries
    seen = allowed_keys(queries, keys, offset, causal, left, right)
    if filled is not None:
        seen = seen & (torch.arange(keys, device=q.device) < filled.reshape(-1, 1, 1, 1))
    bias = torch.zeros_like(seen, dtype=q.dtype).masked_fill(~seen, -math.inf)
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -math.inf)
        bias = bias + functional.pad(mask, (0, keys - mask.shape[-1]), value=-math.inf)
    factor = math.sqrt(scale if scale is not None else 1 / math.sqrt(q.shape[-1]))
    wide_k, wide_v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = (q * factor) @ (wide_k * factor).transpose(-1, -2)
    capped = softcap * torch.tanh(scores / softcap) if softcap else scores
    biased = capped + bias
    blind = (bias == -math.inf).all(-1, keepdim=True)
    shares = torch.softmax(
        biased.masked_fill(blind, 0), -1, dtype=torch_dtype(softmax_type) if softmax_type else None
    ).to(q.dtype)
    shares = shares.masked_fill(blind, 0)
    y = shares @ wide_v
    y = y.transpose(1, 2).flatten(-2) if packed else y
    return y, *present, (scores, capped, biased, shares)[shown]


@operator("Attention", since=23)
def attention_(op: OperatorCall) -> Any:
    """Torch's fused kernels, unless caches, windows, soft caps or scores are asked for."""
    heads = op.attribute("q_num_heads", 0), op.attribute("kv_num_heads", 0)
    scale, causal = op.attribute("scale"), bool(op.attribute("is_causal", 0))
    left, right = op.attribute("left_window_size", -1), op.attribute("right_window_size", -1)
    softcap, softmax_type = op.attribute("softcap", 0.0), op.attribute("softmax_precision")
    q, k, v, mask = op.tensor(0), op.tensor(1), op.tensor(2), op.optional(3)
    plain = not softcap and left < 0 and right < 0 and not softmax_type
    if plain and op.outputs == 1 and not any(op.has(position) for position in (4, 5, 6)):
        return op.call(attention, q, k, v, mask, *heads, scale, causal)
    results = op.call(
        general_attention,
        q,
        k,
        v,
        mask,
        op.optional(4),
        op.optional(5),
        op.optional(6),
        q_heads=heads[0],
        kv_heads=heads[1],
        scale=scale,
        causal=causal,
        softcap=softcap,
        left=left,
        right=right,
        softmax_type=softmax_type,
        shown=op.attribute("qk_matmul_output_mode", 0),
    )
    return [op.item(results, index) for index in range(op.outputs)]


def linear_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    state: torch.Tensor | None,
    decay: torch.Tensor | None,
    beta: torch.Tensor | None,
    q_heads: int,
    kv_heads: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A recurrent sum of outer products of keys and values, read by the queries.

    Katharopoulos et al. 2020, "Transformers are RNNs"; with `beta` the delta rule of Yang et al. 2024, "Gated Delta
    Networks".

    Args:
        q: (batch, steps, q_heads x features); k and v likewise with kv_heads, which divides q_heads.
        k: Keys.
        v: Values.
        state: (batch, kv_heads, features, value features); zeros when None.
        decay: (batch, steps, kv_heads or kv_heads x features): the state is multiplied by its exponential.
        beta: (batch, steps, kv_heads or 1): how much of what the key retrieves is replaced.
        q_heads: Number of heads of the queries.
        kv_heads: Number of heads of keys and values.
        scale: Factor of the result; 0 for 1 / sqrt(features).

    Returns:
        (batch, steps, q_heads x value features) and the last state, computed in float32.
    """
    dtype = q.dtype if state is None else state.dtype
    queries = q.float().unflatten(-1, (q_heads, -1))
    keys, values = (x.float().unflatten(-1, (kv_heads, -1)) for x in (k, v))
    if state is None:
        memory = queries.new_zeros(q.shape[0], kv_heads, keys.shape[-1], values.shape[-1])
    else:
        memory = state.float()
    rows = []
    for step in range(q.shape[1]):
        key, value = keys[:, step], values[:, step]
        if decay is not None:
            memory = memory * decay[:, step].float().unflatten(-1, (kv_heads, -1)).exp().unsqueeze(-1)
        if beta is not None:
            value = beta[:, step].float().unsqueeze(-1) * (value - torch.einsum("bhdm,bhd->bhm", memory, key))
        memory = memory + key.unsqueeze(-1) * value.unsqueeze(-2)
        read = memory.repeat_interleave(q_heads // kv_heads, 1)
        rows.append(torch.einsum("bhd,bhdm->bhm", queries[:, step], read))
    factor = scale or 1 / math.sqrt(keys.shape[-1])
    return (torch.stack(rows, 1) * factor).flatten(-2).to(q.dtype), memory.to(dtype)


@operator("LinearAttention")
def linear_attention_(op: OperatorCall) -> Any:
    heads = op.attribute("q_num_heads"), op.attribute("kv_num_heads")
    optional = [op.optional(position) for position in (3, 4, 5)]
    results = op.call(
        linear_attention, op.tensor(0), op.tensor(1), op.tensor(2), *optional, *heads, op.attribute("scale", 0.0)
    )
    return [op.item(results, index) for index in range(op.outputs)]
