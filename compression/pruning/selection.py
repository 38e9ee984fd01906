"""Which weights to zero, by the absolute value of their saliency. Pure functions on arrays.

With the weights themselves as saliencies this is magnitude pruning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]


def smallest(weights: Sequence[Array], amount: float) -> list[Mask]:
    """True for the `amount` smallest absolute values of all arrays ranked together.

    Exactly `round(amount * total)` elements are True, whatever ties there are: among equal values the first in
    order of arrays and then of elements are taken. Selection, not sorting: linear time, 4 bytes an element.

    Args:
        weights: Arrays of any shapes; floats narrower than 32 bits are ranked as float32.
        amount: Share of all elements, 0 to 1.

    Returns:
        One mask for each array, of its shape.

    >>> smallest([np.array([3.0, -1.0, 2.0, 1.0])], 0.25)[0].tolist()
    [False, True, False, False]
    """
    total = sum(array.size for array in weights)
    count = round(amount * total)
    if count == 0:
        return [np.zeros(array.shape, np.bool_) for array in weights]
    threshold = _kth_smallest(weights, count)
    masks = [_magnitude(array) < threshold for array in weights]
    open_ties = count - sum(int(np.count_nonzero(mask)) for mask in masks)
    for array, mask in zip(weights, masks, strict=True):
        if open_ties == 0:
            break
        ties = np.flatnonzero(_magnitude(array) == threshold)[:open_ties]
        mask.reshape(-1)[ties] = True
        open_ties -= len(ties)
    return masks


def smallest_of_each_output(weight: Array, amount: float, axis: int) -> Mask:
    """Like `smallest`, with the elements of each slice along `axis` ranked by themselves.

    >>> smallest_of_each_output(np.array([[3.0, -1.0], [9.0, 8.0]]), 0.5, axis=0).tolist()
    [[False, True], [False, True]]
    """
    rows = np.moveaxis(_magnitude(weight), axis, 0)
    flat = rows.reshape(len(rows), -1)
    count = round(amount * flat.shape[1])
    mask = np.zeros(flat.shape, np.bool_)
    np.put_along_axis(mask, np.argsort(flat, axis=1, kind="stable")[:, :count], values=True, axis=1)
    return np.moveaxis(mask.reshape(rows.shape), 0, axis)


def block_means(weight: Array, block: tuple[int, int], output_axis: int, input_axis: int) -> Array:
    """The mean absolute value of each block; the two axes become as many times shorter as a block has entries.

    Args:
        weight: Its lengths along the two axes are multiples of the block's sides.
        block: Outputs and inputs in a block.
        output_axis: Axis of the outputs.
        input_axis: Axis of the inputs.

    >>> block_means(np.array([[1.0, -3.0], [5.0, 7.0]]), (1, 2), 0, 1).tolist()
    [[2.0], [6.0]]
    """
    last = np.moveaxis(_magnitude(weight), (output_axis, input_axis), (-2, -1))
    *around, rows, columns = last.shape
    tiles = last.reshape(*around, rows // block[0], block[0], columns // block[1], block[1])
    return np.moveaxis(tiles.mean((-3, -1)), (-2, -1), (output_axis, input_axis))


def of_blocks(mask: Mask, block: tuple[int, int], output_axis: int, input_axis: int) -> Mask:
    """A mask of blocks, as `block_means` has them, spread over the elements of each.

    >>> of_blocks(np.array([[True], [False]]), (1, 2), 0, 1).tolist()
    [[True, True], [False, False]]
    """
    return np.repeat(np.repeat(mask, block[0], output_axis), block[1], input_axis)


def below(weight: Array, threshold: float) -> Mask:
    """True where the absolute value is below `threshold`."""
    return _magnitude(weight) < threshold


def n_of_m(weight: Array, kept: int, group: int, axis: int) -> Mask:
    """True for all but the `kept` largest absolute values of every `group` consecutive elements along `axis`.

    Among equal values the earlier ones are kept (Mishra et al. 2021, "Accelerating Sparse Deep Neural Networks",
    section 3).

    Args:
        weight: Array whose length along `axis` is a multiple of `group`.
        kept: Elements of a group that stay, at least 1.
        group: Consecutive elements that form a group.
        axis: Along which groups lie.

    >>> n_of_m(np.array([[4.0, -1.0, 3.0, 2.0]]), 2, 4, axis=1).tolist()
    [[False, True, False, True]]
    """
    last = np.moveaxis(_magnitude(weight), axis, -1)
    groups = np.ascontiguousarray(last).reshape(-1, group)
    order = np.argsort(-groups, axis=1, kind="stable")
    mask = np.zeros(groups.shape, np.bool_)
    np.put_along_axis(mask, order[:, kept:], values=True, axis=1)
    return np.moveaxis(mask.reshape(last.shape), -1, axis)


def _magnitude(array: Array) -> Array:
    wide = array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)
    magnitude: Array = np.abs(wide)
    return magnitude


def _kth_smallest(weights: Sequence[Array], count: int) -> np.floating[Any]:
    dtype = np.float64 if any(array.dtype == np.float64 for array in weights) else np.float32
    buffer = np.empty(sum(array.size for array in weights), dtype)
    start = 0
    for array in weights:
        buffer[start : start + array.size] = _magnitude(array).reshape(-1)
        start += array.size
    buffer.partition(count - 1)
    found: np.floating[Any] = buffer[count - 1]
    return found
