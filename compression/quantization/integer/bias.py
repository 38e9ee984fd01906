"""Biases as integer kernels add them, and what they make good. Pure functions on arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from compression.quantization.integer.codes import Codes, Layout
from compression.quantization.integer.write import Bias

Array = npt.NDArray[Any]

# Half of what an int32 holds: the sums that a bias is added to need room as well.
_LARGEST = 2**30


def lowest_scales(bias: Array, activation_scale: float) -> Array:
    """The weight scales below which a bias would not fit into an int32.

    A channel whose weights have all but died and whose bias has not, as training leaves them, would need more.

    Args:
        bias: (channels,).
        activation_scale: Scale of what the layer reads.
    """
    result: Array = np.abs(bias.astype(np.float64)) / (activation_scale * _LARGEST)
    return result


def quantize_bias(bias: Array, activation_scale: float, weight_scales: Array) -> Bias:
    """Multiples of activation scale times weight scale (Jacob et al. 2017, equation 11).

    Args:
        bias: (channels,).
        activation_scale: Scale of what the layer reads.
        weight_scales: (channels,) or ().
    """
    scales = (np.float32(activation_scale) * weight_scales).astype(np.float32)
    numbers = np.clip(np.rint(bias.astype(np.float64) / scales), -(2**31) + 1, 2**31 - 1)
    return Bias(numbers.astype(np.int32), scales)


def expected_shift(weight: Array, codes: Codes, layout: Layout, groups: int, means: Array) -> Array:
    """How far rounding its weights moves the mean of each of a layer's outputs: E[W'x] - E[Wx] = (W' - W) E[x].

    Nagel et al. 2019, section 4.2, with the means of the inputs measured. Taking it off the bias makes the outputs
    unbiased, save at the edges of padded pictures, where fewer inputs are summed.

    Args:
        weight: The float weight.
        codes: What became of it.
        layout: The weight's axes; `input_axis` is that of the inputs of a group.
        groups: Groups of the convolution.
        means: (inputs,) of all groups.

    Returns:
        (channels,) float64.
    """
    error = codes.values().astype(np.float64) - weight
    if layout.input_axis is None:
        raise ValueError("a table sums nothing")
    others = tuple(axis for axis in range(error.ndim) if axis not in (layout.output_axis, layout.input_axis))
    matrix = error.sum(others)
    if layout.output_axis > layout.input_axis:
        matrix = matrix.T
    # (channels, inputs of a group) times the means of the group that each channel belongs to.
    by_group = matrix.reshape(groups, -1, matrix.shape[1])
    shift: Array = np.einsum("goi,gi->go", by_group, means.reshape(groups, -1))
    return shift.reshape(-1)
