"""Which widths of codes the installed ONNX Runtime computes with, found out by letting it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from compression.context import Context
from compression.errors import StepFailed
from compression.quantization import prepare
from compression.quantization.weight_only.groupwise import Array

Form = Literal["MatMulNBits", "GatherBlockQuantized", "DequantizeLinear"]
WIDTHS = (2, 4, 8)
"""Bits in which codes are stored."""
OPSETS = {2: 25, 4: 21, 8: 21}
"""Operator set from which on DequantizeLinear takes groups of codes of so many bits."""
IR_VERSIONS = {2: 13, 4: 10, 8: 10}
"""ONNX's file format that has them."""
_GROUP = 16


def width(form: Form, bits: int, widest_opset: int = max(OPSETS.values())) -> int | None:
    """The fewest bits, at least `bits`, in which the runtime reads codes in this form; None where there are none.

    Args:
        form: The operator that reads them.
        bits: Of a code.
        widest_opset: The operator set that the model can have.
    """
    able = (
        stored for stored in WIDTHS if stored >= bits and (form != "DequantizeLinear" or OPSETS[stored] <= widest_opset)
    )
    return next((stored for stored in able if _runs(form, stored)), None)


def unsupported(form: Form, bits: int) -> str:
    """What to say where `width` finds none."""
    able = [str(stored) for stored in WIDTHS if _runs(form, stored)]
    return f"this ONNX Runtime has no {form} that reads {bits} bits; it reads {' and '.join(able) or 'none'}"


@cache
def _runs(form: Form, stored: int) -> bool:
    """Whether the runtime gives the right values for one row of a single group."""
    given: Array
    attributes: dict[str, Any]
    codes = (np.arange(_GROUP) % (1 << stored)).astype(np.uint8)
    packed = np.packbits(np.unpackbits(codes[:, None], axis=1, bitorder="little")[:, :stored], bitorder="little")
    scale = numpy_helper.from_array(np.full((1, 1), 0.5, np.float32), "scale")
    middle = 1 << (stored - 1)
    match form:
        case "MatMulNBits":
            given = np.eye(_GROUP, dtype=np.float32)
            data = numpy_helper.from_array(packed[None, None], "codes")
            attributes = {"K": _GROUP, "N": 1, "bits": stored, "block_size": _GROUP}
            node = helper.make_node(form, ["x", "codes", "scale"], ["y"], domain="com.microsoft", **attributes)
        case "GatherBlockQuantized":
            given = np.zeros(1, np.int64)
            data = numpy_helper.from_array(packed[None], "codes")
            attributes = {"bits": stored, "block_size": _GROUP, "gather_axis": 0, "quantize_axis": 1}
            node = helper.make_node(form, ["codes", "x", "scale"], ["y"], domain="com.microsoft", **attributes)
        case "DequantizeLinear":
            given = np.zeros(1, np.float32)
            data = helper.make_tensor("codes", unsigned(stored), [1, _GROUP], packed.tobytes(), raw=True)
            node = helper.make_node(form, ["codes", "scale"], ["decoded"], axis=1, block_size=_GROUP)
            middle = 0
    nodes = [node, helper.make_node("Add", ["decoded", "x"], ["y"])] if form == "DequantizeLinear" else [node]
    x = helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(given.dtype), given.shape)
    graph = helper.make_graph(
        nodes, "probe", [x], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], [data, scale]
    )
    opsets = [helper.make_opsetid("", OPSETS[stored]), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSIONS[stored])
    try:
        with prepare.runtime_failures("trying what it can do"):
            (found,) = prepare.session(model.SerializeToString(), Context(workdir=Path())).run(None, {"x": given})
    except StepFailed:
        return False
    return bool(np.allclose(found.ravel(), (codes.astype(np.float32) - middle) / 2))


def unsigned(stored: int) -> int:
    """ONNX's element type of unsigned codes."""
    return {2: TensorProto.UINT2, 4: TensorProto.UINT4, 8: TensorProto.UINT8}[stored]


def signed(stored: int) -> int:
    """ONNX's element type of signed codes."""
    return {2: TensorProto.INT2, 4: TensorProto.INT4, 8: TensorProto.INT8}[stored]
