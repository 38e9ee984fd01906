"""Low-rank decompositions of matrices and convolution kernels. Pure functions on arrays, in double precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Array = npt.NDArray[Any]
_HOOI_ITERATIONS = 10


def rank_for_energy(singular: Floats, energy: float) -> int:
    """The smallest rank that keeps a share `energy` of the sum of squares; at least 1.

    >>> rank_for_energy(np.array([3.0, 2.0, 1.0]), 0.9)
    2
    """
    kept = np.cumsum(np.square(singular))
    if kept[-1] == 0:
        return 1
    # The last sum may miss 1 by rounding.
    return min(int(np.searchsorted(kept / kept[-1], energy - 1e-12)) + 1, singular.size)


def rounded(rank: int, multiple: int, largest: int) -> int:
    """The rank rounded up to a multiple, but not above the largest.

    >>> rounded(9, 8, 12), rounded(9, 8, 64)
    (12, 16)
    """
    return min(-(-rank // multiple) * multiple, largest)


def split_matrix(matrix: Array, rank: int) -> tuple[Floats, Floats]:
    """The best product of rank `rank` (Eckart and Young 1936).

    Args:
        matrix: (rows, columns).
        rank: At most the smaller side.

    Returns:
        (rows, rank) and (rank, columns), the singular values shared evenly between them, which keeps both in the range
        of the original: training and quantization need that.
    """
    left, singular, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    root = np.sqrt(singular[:rank])
    return left[:, :rank] * root, root[:, None] * right[:rank]


def channel_spectra(kernel: Array) -> tuple[Floats, Floats]:
    """Singular values of a convolution kernel unfolded by output and by input channels.

    Args:
        kernel: (outputs, inputs, *window).
    """
    wide = kernel.astype(np.float64)
    return tuple(  # type: ignore[return-value]
        np.linalg.svd(np.moveaxis(wide, axis, 0).reshape(wide.shape[axis], -1), compute_uv=False) for axis in (0, 1)
    )


def tucker(kernel: Array, output_rank: int, input_rank: int) -> tuple[Floats, Floats, Floats]:
    """Tucker-2 decomposition by higher-order orthogonal iteration (De Lathauwer et al. 2000, algorithm 4.2).

    Args:
        kernel: (outputs, inputs, *window).
        output_rank: Channels of the core's outputs.
        input_rank: Channels of the core's inputs.

    Returns:
        (outputs, output_rank), the core (output_rank, input_rank, *window), and (inputs, input_rank); the kernel is
        about core x_0 first x_1 last.
    """
    wide = kernel.astype(np.float64)
    outer, inner = _basis(wide, 0, output_rank), _basis(wide, 1, input_rank)
    for _ in range(_HOOI_ITERATIONS):
        outer = _basis(np.einsum("oi...,ir->or...", wide, inner), 0, output_rank)
        inner = _basis(np.einsum("oi...,or->ri...", wide, outer), 1, input_rank)
    core = np.einsum("oi...,or,is->rs...", wide, outer, inner)
    return outer, core, inner


def _basis(tensor: Floats, axis: int, rank: int) -> Floats:
    """Leading left singular vectors of an unfolding; signs are fixed, so that results are the same everywhere."""
    unfolded = np.moveaxis(tensor, axis, 0).reshape(tensor.shape[axis], -1)
    vectors = np.linalg.svd(unfolded, full_matrices=False)[0][:, :rank]
    largest = np.abs(vectors).argmax(0)
    signs = np.sign(vectors[largest, np.arange(vectors.shape[1])])
    return vectors * np.where(signs == 0, 1, signs)
