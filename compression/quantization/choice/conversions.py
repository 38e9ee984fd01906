"""What it costs to carry a value between float and integer kernels, measured on this machine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compression.context import Context
from compression.quantization.choice.profile import kernel_times

# (channels, rows, columns) of a value that costs mostly what every call does, and of one that costs by its elements.
_SMALL, _LARGE = (8, 4, 4), (64, 48, 48)
_RUNS = 15
_PICTURE_RANK = 4


@dataclass(frozen=True)
class Line:
    """Seconds of a call by number of elements: what every call costs, and what every element adds."""

    call: float
    element: float

    def __call__(self, elements: int) -> float:
        return self.call + self.element * elements


@dataclass(frozen=True)
class Conversions:
    """Seconds to quantize, to dequantize, and to put the channels of 8-bit pictures last or first."""

    quantize: Line
    dequantize: Line
    transpose: Line

    def into_integers(self, elements: int, rank: int) -> float:
        """Seconds that a value of so many elements takes on its way from float to integer kernels."""
        return self.quantize(elements) + self._layout(elements, rank)

    def into_float(self, elements: int, rank: int) -> float:
        """Seconds of the way back."""
        return self.dequantize(elements) + self._layout(elements, rank)

    def _layout(self, elements: int, rank: int) -> float:
        # Integer kernels of pictures want channels last, those of float channels first.
        return self.transpose(elements) if rank == _PICTURE_RANK else 0.0


def measure(context: Context) -> Conversions:
    """Time the three on values of two sizes."""
    graph, inputs = _probe()
    seconds = kernel_times([graph], graph, inputs, context, runs=_RUNS)[0].nodes
    return Conversions(*(_line(seconds, kind) for kind in ("quantize", "dequantize", "transpose")))


def _line(seconds: Mapping[str, float], kind: str) -> Line:
    small, large = (seconds.get(f"{kind}_{size}", 0.0) for size in ("small", "large"))
    few, many = math.prod(_SMALL), math.prod(_LARGE)
    element = max(large - small, 0.0) / (many - few)
    return Line(call=max(small - few * element, 0.0), element=element)


def _probe() -> tuple[onnx.ModelProto, dict[str, Any]]:
    """A model that does each conversion once for each size, from inputs of its own, and those inputs."""
    rng = np.random.default_rng(0)
    nodes, values, results = [], [], []
    inputs: dict[str, Any] = {}
    for size, shape in (("small", _SMALL), ("large", _LARGE)):
        full = (1, *shape)
        arrays = {f"float_{size}": rng.standard_normal(full).astype(np.float32)}
        arrays[f"integer_{size}"] = rng.integers(0, 256, full, np.uint8)
        inputs |= arrays
        values += [helper.make_tensor_value_info(f"float_{size}", TensorProto.FLOAT, full)]
        values += [helper.make_tensor_value_info(f"integer_{size}", TensorProto.UINT8, full)]
        for kind, source, onnx_type in (
            ("quantize", "float", TensorProto.UINT8),
            ("dequantize", "integer", TensorProto.FLOAT),
            ("transpose", "integer", TensorProto.UINT8),
        ):
            name = f"{kind}_{size}"
            if kind == "transpose":
                node = helper.make_node("Transpose", [f"{source}_{size}"], [name], name, perm=[0, 2, 3, 1])
            else:
                operator = f"{kind.capitalize()}Linear"
                node = helper.make_node(operator, [f"{source}_{size}", "scale", "zero"], [name], name)
            nodes.append(node)
            results.append(helper.make_tensor_value_info(name, onnx_type, None))
    stored = [
        numpy_helper.from_array(np.array(0.02, np.float32), "scale"),
        numpy_helper.from_array(np.array(128, np.uint8), "zero"),
    ]
    graph = helper.make_graph(nodes, "conversions", values, results, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), inputs
