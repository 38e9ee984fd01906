"""ONNX files that hold every kind of tensor, for coding."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.compression.models import value

SPECIAL = np.array(
    [0x00000000, 0x80000000, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7FA00001, 0xFFFFFFFF, 0x00000001], np.uint32
)
"""Zeros of both signs, infinities, quiet and signalling NaNs with payloads, a subnormal: as bits of float32."""


def raw(name: str, data_type: int, dims: tuple[int, ...], data: bytes) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, data_type=data_type, dims=dims)
    tensor.raw_data = data
    return tensor


def file_of(*tensors: onnx.TensorProto, in_attributes: tuple[onnx.TensorProto, ...] = ()) -> bytes:
    nodes = [helper.make_node("Constant", [], [f"c{index}"], value=one) for index, one in enumerate(in_attributes)]
    nodes.append(helper.make_node("Identity", ["x"], ["y"]))
    graph = helper.make_graph(nodes, "g", [value("x", [1])], [value("y", [1])], list(tensors))
    return helper.make_model(graph, producer_name="tests").SerializeToString()


def arrays_file(**arrays: np.ndarray) -> bytes:
    return file_of(*(numpy_helper.from_array(array, name) for name, array in arrays.items()))


def every_type(rng: np.random.Generator) -> bytes:
    """A tensor of every element type of ONNX with random bits, and one of special floats."""
    tensors = []
    for data_type in TensorProto.DataType.values():
        if data_type in (TensorProto.UNDEFINED, TensorProto.STRING):
            continue
        tensors.append(raw(f"t{data_type}", data_type, (24, 32), rng.bytes(24 * 32 * 16)))
    specials = np.concatenate([SPECIAL, rng.integers(0, 2**32, 200, np.uint32)])
    tensors.append(raw("special", TensorProto.FLOAT, (208,), specials.tobytes()))
    return file_of(*tensors)


def pruned(rng: np.random.Generator, shape: tuple[int, ...], density: float, clusters: int | None) -> np.ndarray:
    """Weights of which few are left, more in some rows and columns than in others, with or without shared values."""
    rows, columns = shape[0], int(np.prod(shape[1:]))
    chance = rng.gamma(0.5, 2, rows)[:, None] * rng.gamma(0.5, 2, columns) * density
    values = rng.standard_normal((rows, columns)).astype(np.float32)
    if clusters is not None:
        book = np.sort(rng.standard_normal(clusters)).astype(np.float32)
        values = book[np.abs(values[..., None] - book).argmin(-1)]
    return np.where(rng.random((rows, columns)) < chance, values, np.float32(0)).reshape(shape)


def receptive(rng: np.random.Generator, neurons: int = 60, side: int = 20) -> np.ndarray:
    """(neurons, side * side) weights like those of a first layer: each neuron looks at a patch of the picture."""
    weights = np.zeros((neurons, side, side), np.float32)
    for neuron in weights:
        y, x = rng.integers(0, side - 6, 2)
        neuron[y : y + 6, x : x + 6] = np.where(rng.random((6, 6)) < 0.6, rng.choice([-0.5, 0.25]), 0)
    return weights.reshape(neurons, -1)
