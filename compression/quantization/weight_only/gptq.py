"""GPTQ: each weight's rounding error is made up for by the weights after it. Pure functions on arrays.

Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers".
"""

from __future__ import annotations

import numpy as np

from compression.quantization.weight_only.groupwise import Array, Grid, Groups, blocks_of, grid_of

# Columns that are worked on before the others are told of their errors (the paper's lazy batches, section 3.3).
_BATCH = 128
_TRIES = 4


def quantize(
    weight: Array,
    moments: Array,
    bits: int,
    group_size: int,
    *,
    symmetric: bool,
    damping: float,
    act_order: bool,
) -> Groups:
    """Algorithm 1 of the paper, with scales for groups of inputs, and zeros that stay zero.

    Input by input, all outputs at once: round the weights, and change those of the inputs to come by what undoes most
    of the error in the layer's outputs. With `act_order` the inputs that carry most come first, and groups keep the
    grid of the unchanged weights; else a group's grid is that of its weights when its turn comes. Weights that are
    zero, which earlier steps may have pruned, are rounded to zero (as in SparseGPT, Frantar & Alistarh 2023).

    Args:
        weight: (inputs, outputs), finite.
        moments: (inputs, inputs) mean products of the layer's inputs, the Hessian of the squared error up to a factor.
        bits: 2 to 8.
        group_size: 16 to 256, a power of 2.
        symmetric: See `groupwise.grid_of`.
        damping: Added to the diagonal of `moments`, as a share of its mean.
        act_order: Go by descending diagonal of `moments`.

    Returns:
        Groups of one stack, (1, groups, group size, outputs).
    """
    inputs = len(weight)
    order = np.argsort(-np.diagonal(moments), kind="stable") if act_order else np.arange(inputs)
    factor = inverse_factor(moments[np.ix_(order, order)], damping)
    work = weight[order].astype(np.float32)
    blocks = blocks_of(weight[None], group_size)
    grid = grid_of(blocks, bits, weight.dtype, symmetric=symmetric)
    scales, zero_points = grid.scales[0, :, 0], grid.zero_points[0, :, 0]
    codes = np.repeat(zero_points, group_size, axis=0)
    batch = max(_BATCH, group_size)
    for start in range(0, inputs, batch):
        part = work[start : start + batch]
        errors = np.empty_like(part)
        rows = factor[start : start + batch, start : start + batch]
        for index, position in enumerate(order[start : start + batch]):
            group = position // group_size
            if not act_order and position % group_size == 0:
                mine = blocks_of(part[None, index : index + group_size], group_size)
                found = grid_of(mine, bits, weight.dtype, symmetric=symmetric)
                scales[group], zero_points[group] = found.scales[0, 0, 0], found.zero_points[0, 0, 0]
                codes[position : position + group_size] = zero_points[group]
            here = Grid(scales[group], zero_points[group], bits)
            rounded = here.codes(part[index])
            rounded[weight[position] == 0] = zero_points[group][weight[position] == 0]
            codes[position] = rounded
            errors[index] = (part[index] - here.values(rounded)) / rows[index, index]
            part[index + 1 :] -= np.outer(rows[index, index + 1 :], errors[index])
        work[start + batch :] -= factor[start : start + batch, start + batch :].T @ errors
    return grid.groups(codes.reshape(blocks.shape), weight.dtype)


def inverse_factor(moments: Array, damping: float) -> Array:
    """The upper triangular R with R^T R = inverse of the damped moments, float32 (section 3.3, step 3).

    Raises:
        numpy.linalg.LinAlgError: Even strong damping makes no positive matrix of `moments`.
    """
    mean = float(np.diagonal(moments).mean())
    if mean <= 0:
        return np.eye(len(moments), dtype=np.float32)  # inputs that are always zero say nothing about one another
    for attempt in range(_TRIES):
        damped = moments.astype(np.float64)
        damped[np.diag_indices_from(damped)] += damping * mean * 10**attempt
        try:
            # With the order of inputs turned round, the lower factor of the matrix gives the upper one of its inverse.
            lower = np.linalg.cholesky(damped[::-1, ::-1])
        except np.linalg.LinAlgError:
            continue
        return np.ascontiguousarray(np.linalg.inv(lower[::-1, ::-1]), np.float32)
    msg = f"the second moments of {len(moments)} inputs are not positive even when damped"
    raise np.linalg.LinAlgError(msg)
