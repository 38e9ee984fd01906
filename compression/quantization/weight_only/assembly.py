"""From groups of codes to the tensors that a runtime reads."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper

from compression.graph.data_file import DataFile
from compression.quantization.weight_only import capabilities
from compression.quantization.weight_only.groupwise import Array, Groups, pack
from compression.quantization.weight_only.plan import Plan

# Codes of so many bytes are assembled in the file, and pages of it let go after so many codes.
_MAPPED_FROM = 1 << 28
_SETTLED_EVERY = 1 << 23


class Assembly:
    """The stored form of one weight, filled as its groups arrive in any order.

    Args:
        plan: How the weight is held.
        bits: Of its codes, at most those that are stored.
        beside: A file for the tensors' values; None keeps them in memory.
    """

    def __init__(self, plan: Plan, bits: int, beside: DataFile | None = None) -> None:
        self._beside = beside
        self._unsettled = 0
        self._plan = plan
        self._bits = bits
        stacks, inputs, columns = plan.layout
        stored = plan.stored_bits
        dtype = np.dtype(plan.weight.dtype)
        shape: tuple[int, ...] = (stacks, plan.groups, columns)
        self._codes: Array
        if plan.form == "MatMulNBits":
            shape = (stacks * columns, plan.groups)
            self._codes = self._room(*shape, plan.group_size * stored // 8)
        elif plan.form == "GatherBlockQuantized":
            shape = (stacks, plan.groups)
            self._codes = self._room(stacks, inputs * stored // 8)
        else:
            self._codes = self._room(-(-stacks * inputs * columns * stored // 8))
        self._scales = np.zeros(shape, dtype)
        self._zero_points = np.zeros(shape, np.uint8)

    def _room(self, *shape: int) -> Array:
        """Zeros for the codes: in memory, or where they are many in the file, mapped."""
        size = math.prod(shape)
        if self._beside is None or size < _MAPPED_FROM:
            return np.zeros(shape, np.uint8)
        return self._beside.room(size).reshape(shape)

    def _settle(self, count: int) -> None:
        """Leave mapped pages to the file once there are many."""
        self._unsettled += count
        if isinstance(self._codes, np.memmap) and self._unsettled >= _SETTLED_EVERY:
            self._unsettled = 0
            vars(self._codes)["_mmap"].madvise(mmap.MADV_DONTNEED)  # which NumPy keeps to itself

    def put(self, groups: Groups, stack: int, group: int, column: int = 0) -> None:
        """Take in the groups from `group` on of the stacks from `stack` on, and of the columns from `column` on.

        There may be fewer columns than the weight has for MatMulNBits alone. All that is not the end of a stack, or of
        the weight, must fill whole bytes.
        """
        plan = self._plan
        _, inputs, columns = plan.layout
        stacks, count, size, width = groups.codes.shape
        start = group * size
        self._settle(groups.codes.size)
        codes = self._as_stored(groups.codes)
        here = np.s_[stack : stack + stacks, group : group + count]
        if plan.form == "MatMulNBits":
            # A row is an output: either stacks or columns are, and the other one is single.
            rows = np.s_[column : column + width] if columns > 1 else here[0]
            by_output = codes.transpose(0, 3, 1, 2).reshape(-1, count, size)
            self._codes[rows, here[1]] = pack(by_output, plan.stored_bits)
            self._scales[rows, here[1]] = groups.scales.transpose(0, 2, 1).reshape(-1, count)
            self._zero_points[rows, here[1]] = groups.zero_points.transpose(0, 2, 1).reshape(-1, count)
            return
        held = codes.reshape(stacks, count * size, columns)[:, : inputs - start]
        if plan.form == "GatherBlockQuantized":
            packed = pack(held[..., 0], plan.stored_bits)
            first = start * plan.stored_bits // 8
            self._codes[here[0], first : first + packed.shape[1]] = packed
            self._scales[here] = groups.scales[..., 0]
            self._zero_points[here] = groups.zero_points[..., 0]
            return
        packed = pack(held.reshape(-1), plan.stored_bits)
        first = (stack * inputs + start) * columns * plan.stored_bits // 8
        self._codes[first : first + len(packed)] = packed
        self._scales[here] = groups.scales
        self._zero_points[here] = groups.zero_points

    def tensors(self) -> list[onnx.TensorProto]:
        """Codes, scales and, where they are not fixed, zero points, in the order in which operators take them."""
        if self._beside is not None:
            return [self._beside.put_array(*part) for part in self._parts()]
        return [
            helper.make_tensor(name, element, shape, values.tobytes(), raw=True)
            for name, element, shape, values in self._parts()
        ]

    def _parts(self) -> Iterator[tuple[str, int, tuple[int, ...], Array]]:
        """Name, element type, shape and values, packed."""
        plan, name = self._plan, self._plan.weight.name
        dequantized = plan.form == "DequantizeLinear"
        element: int = TensorProto.UINT8
        if dequantized:
            element = (capabilities.signed if plan.symmetric else capabilities.unsigned)(plan.stored_bits)
        scales = self._scales.reshape(_scale_shape(plan)) if dequantized else self._scales
        yield f"{name}_quantized", element, dequantized_shape(plan) if dequantized else self._codes.shape, self._codes
        yield f"{name}_scale", helper.np_dtype_to_tensor_dtype(scales.dtype), scales.shape, scales
        if not plan.symmetric:
            zero_points = pack(self._zero_points.reshape(-1) if dequantized else self._zero_points, plan.stored_bits)
            yield f"{name}_zero_point", element, scales.shape if dequantized else zero_points.shape, zero_points

    def _as_stored(self, codes: Array) -> Array:
        """Symmetric codes around the middle of the stored range, which stands for zero where nothing is said."""
        plan = self._plan
        if not plan.symmetric:
            return codes
        shift = (1 << (plan.stored_bits - 1)) - (1 << (self._bits - 1))
        shifted = codes + np.uint8(shift) if shift else codes
        if plan.form != "DequantizeLinear":
            return shifted
        # Signed numbers have their zero at zero: the highest bit of the unsigned ones turned over.
        return shifted ^ np.uint8(1 << (plan.stored_bits - 1))


def dequantized_shape(plan: Plan) -> tuple[int, ...]:
    """Shape in which DequantizeLinear sees the codes; a reshape of the weight's."""
    stacks, inputs, columns = plan.layout
    if plan.per_channel and stacks == plan.weight.shape[0]:
        return plan.weight.shape
    if columns == 1:
        return stacks, inputs
    return (inputs, columns) if stacks == 1 else (stacks, inputs, columns)


def _scale_shape(plan: Plan) -> tuple[int, ...]:
    stacks, _, columns = plan.layout
    if plan.per_channel:
        return (stacks,)
    if columns == 1:
        return stacks, plan.groups
    return (plan.groups, columns) if stacks == 1 else (stacks, plan.groups, columns)
