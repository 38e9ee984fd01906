"""From groups of codes to the tensors that a runtime reads."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from compression.quantization.weight_only import capabilities
from compression.quantization.weight_only.groupwise import Array, Groups, pack
from compression.quantization.weight_only.plan import Plan


class Assembly:
    """The stored form of one weight, filled as its groups arrive in any order.

    Args:
        plan: How the weight is held.
        bits: Of its codes, at most those that are stored.
    """

    def __init__(self, plan: Plan, bits: int) -> None:
        self._plan = plan
        self._bits = bits
        stacks, inputs, columns = plan.layout
        stored = plan.stored_bits
        dtype = np.dtype(plan.weight.dtype)
        shape: tuple[int, ...] = (stacks, plan.groups, columns)
        self._codes: Array
        if plan.form == "MatMulNBits":
            shape = (stacks * columns, plan.groups)
            self._codes = np.zeros((*shape, plan.group_size * stored // 8), np.uint8)
        elif plan.form == "GatherBlockQuantized":
            shape = (stacks, plan.groups)
            self._codes = np.zeros((stacks, inputs * stored // 8), np.uint8)
        else:
            self._codes = np.zeros(-(-stacks * inputs * columns * stored // 8), np.uint8)
        self._scales = np.zeros(shape, dtype)
        self._zero_points = np.zeros(shape, np.uint8)

    def put(self, groups: Groups, stack: int, group: int) -> None:
        """Take in the groups from `group` on of the stacks from `stack` on.

        All that is not the end of a stack, or of the weight, must fill whole bytes.
        """
        plan = self._plan
        _, inputs, columns = plan.layout
        stacks, count, size, _ = groups.codes.shape
        start = group * size
        codes = self._as_stored(groups.codes)
        here = np.s_[stack : stack + stacks, group : group + count]
        if plan.form == "MatMulNBits":
            # A row is an output: either stacks or columns are, and the other one is single.
            rows = np.s_[:] if columns > 1 else here[0]
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
        plan, name = self._plan, self._plan.weight.name
        names = f"{name}_quantized", f"{name}_scale", f"{name}_zero_point"
        if plan.form == "DequantizeLinear":
            return self._for_dequantize(names)
        found = [numpy_helper.from_array(self._codes, names[0]), numpy_helper.from_array(self._scales, names[1])]
        if not plan.symmetric:
            found.append(numpy_helper.from_array(pack(self._zero_points, plan.stored_bits), names[2]))
        return found

    def _for_dequantize(self, names: tuple[str, str, str]) -> list[onnx.TensorProto]:
        plan = self._plan
        kind = capabilities.signed if plan.symmetric else capabilities.unsigned
        element = kind(plan.stored_bits)
        shape = dequantized_shape(plan)
        scales = self._scales.reshape(_scale_shape(plan))
        codes = helper.make_tensor(names[0], element, shape, self._codes.tobytes(), raw=True)
        found = [codes, numpy_helper.from_array(scales, names[1])]
        if not plan.symmetric:
            zero_points = pack(self._zero_points.reshape(-1), plan.stored_bits)
            found.append(helper.make_tensor(names[2], element, scales.shape, zero_points.tobytes(), raw=True))
        return found

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
