"""Elements of a tensor as bytes of like meaning: all exponents together, all of what is noise together.

    float     exponent, sign, mantissa from the highest bit down (stored: sign, exponent, mantissa)
    signed    of two bytes and more: zigzag, 2 * x from 0 on and -2 * x - 1 below; of one byte: the value + 128
    unsigned  as it is; also floats of 8 bits, and elements of less than a byte, which stay packed

The bytes of the result, the highest first, are the planes of a tensor.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

Array = npt.NDArray[Any]


class Layout(NamedTuple):
    """How elements are stored.

    Attributes:
        width: Bytes of one.
        mantissa: Bits of a float's mantissa, 0 for integers.
        signed: For integers.
    """

    width: int
    mantissa: int = 0
    signed: bool = False


_LAYOUTS: dict[int, Layout] = {
    TensorProto.FLOAT: Layout(4, 23),
    TensorProto.DOUBLE: Layout(8, 52),
    TensorProto.FLOAT16: Layout(2, 10),
    TensorProto.BFLOAT16: Layout(2, 7),
    TensorProto.COMPLEX64: Layout(4, 23),
    TensorProto.COMPLEX128: Layout(8, 52),
    TensorProto.INT8: Layout(1, signed=True),
    TensorProto.INT16: Layout(2, signed=True),
    TensorProto.INT32: Layout(4, signed=True),
    TensorProto.INT64: Layout(8, signed=True),
    TensorProto.UINT16: Layout(2),
    TensorProto.UINT32: Layout(4),
    TensorProto.UINT64: Layout(8),
}
_BYTES = Layout(1)


def layout_of(data_type: int, size: int) -> Layout:
    """The layout of a tensor of `size` bytes; plain bytes where its type is unknown or does not fit."""
    layout = _LAYOUTS.get(data_type, _BYTES)
    return _BYTES if size % layout.width else layout


def matrix_shape(dims: tuple[int, ...], count: int) -> tuple[int, int]:
    """Rows and columns of `count` elements: the first axis and all others, or one row where that does not fit."""
    if len(dims) > 1 and 0 < dims[0] <= count and count % dims[0] == 0:
        return dims[0], count // dims[0]
    return 1, count


def numbers(data: memoryview | bytes, layout: Layout) -> Array:
    """The elements as unsigned numbers, bit by bit as stored."""
    return np.frombuffer(data, f"<u{layout.width}")


def fold(values: Array, layout: Layout) -> Array:
    """Stored numbers in the order of bits described above."""
    width, top = values.dtype.type, 8 * layout.width - 1
    folded: Array = values
    if layout.mantissa:
        low, exponent = _masks(values, layout)
        sign = (values >> width(top)) << width(layout.mantissa)
        folded = (values & exponent) << width(1) | sign | values & low
    elif layout.signed and layout.width == 1:
        folded = values ^ width(0x80)
    elif layout.signed:
        folded = values << width(1) ^ (width(0) - (values >> width(top)))
    return folded


def unfold(values: Array, layout: Layout) -> Array:
    """The other way round."""
    width, top = values.dtype.type, 8 * layout.width - 1
    stored: Array = values
    if layout.mantissa:
        low, exponent = _masks(values, layout)
        sign = (values >> width(layout.mantissa) & width(1)) << width(top)
        stored = values >> width(1) & exponent | sign | values & low
    elif layout.signed and layout.width == 1:
        stored = values ^ width(0x80)
    elif layout.signed:
        stored = values >> width(1) ^ (width(0) - (values & width(1)))
    return stored


def _masks(values: Array, layout: Layout) -> tuple[Any, Any]:
    """The bits of a float's mantissa and exponent."""
    width = values.dtype.type
    low = width((1 << layout.mantissa) - 1)
    return low, width((1 << 8 * layout.width - 1) - 1) & ~low


def planes(values: Array, layout: Layout) -> list[Array]:
    """(n,) bytes of folded numbers, the highest of each first."""
    parts = values.view(np.uint8).reshape(-1, layout.width)
    return [np.ascontiguousarray(parts[:, index]) for index in reversed(range(layout.width))]


def joined(parts: list[Array], layout: Layout) -> Array:
    """Folded numbers of their planes."""
    if layout.width == 1:
        return parts[0]
    whole = np.empty((len(parts[0]), layout.width), np.uint8)
    for index, part in enumerate(reversed(parts)):
        whole[:, index] = part
    values: Array = whole.reshape(-1).view(f"<u{layout.width}")
    return values


def in_order(values: Array, layout: Layout) -> Array:
    """Keys by which stored numbers sort as what they stand for, so that neighbours in a codebook are alike."""
    width, top = values.dtype.type, 8 * layout.width - 1
    keys: Array = values
    if layout.mantissa:
        keys = np.where(values >> width(top), ~values, values | width(1 << top))
    elif layout.signed:
        keys = values ^ width(1 << top)
    return keys


def few_values(values: Array, most: int = 256) -> Array | None:
    """The distinct numbers, sorted; None where there are more than `most`, which is found out quickly."""
    known = np.unique(values[:: max(1, len(values) // 4096)][:8192])
    while len(known) <= most:
        place = np.minimum(np.searchsorted(known, values), len(known) - 1)
        unknown = values[known[place] != values]
        if not len(unknown):
            return known
        known = np.union1d(known, unknown[:65536])
    return None
