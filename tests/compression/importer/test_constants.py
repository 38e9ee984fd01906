"""Which stored floats are held constant, and which are weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto

from compression.graph.operators.constants import is_mask
from compression.graph.to_torch import to_torch
from tests.compression.importer.graphs import array, check_round_trip, model, node, runtime, torch_outputs


def _parameters(proto):
    return set(to_torch(proto).initializer_names.values())


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[0.0, -1e4], [0.0, 0.0]], True),
        ([[0.0, -100.0], [0.0, 0.0]], True),
        ([[0.0, -1.0], [0.0, 0.0]], False),
        ([[0.0, -100.0], [0.5, 0.0]], False),
        ([[0.0, 0.0], [0.0, 0.0]], False),
    ],
)
def test_masks_are_zeros_and_one_very_negative_number(values, expected):
    assert is_mask(torch.tensor(values)) is expected


def test_mask_added_to_scores_is_constant_and_a_bias_is_a_weight():
    nodes = [node("Add", ["x", "mask"], ["h"]), node("Add", ["h", "bias"], ["s"]), node("Softmax", ["s"], ["y"])]
    mask = np.triu(np.full((3, 3), -1e9, np.float32), 1)
    proto = model(nodes, [("x", [2, 3, 3])], [("y", None)], {"mask": mask, "bias": array(3, 3)})
    assert _parameters(proto) == {"bias"}
    check_round_trip(proto, array(2, 3, 3, seed=1))


def test_cosines_and_sines_of_rotary_positions_are_constant():
    angle = np.outer(np.arange(3), [1.0, 0.1]).astype(np.float32)
    nodes = [
        node("Mul", ["x", "cosines"], ["a"]),
        node("Mul", ["x", "sines"], ["b"]),
        node("Sub", ["a", "b"], ["h"]),
        node("Mul", ["h", "scale"], ["y"]),
    ]
    weights = {"cosines": np.cos(angle), "sines": np.sin(angle), "scale": array(3, 2)}
    assert _parameters(model(nodes, [("x", [1, 3, 2])], [("y", None)], weights)) == {"scale"}


def test_frequencies_times_positions_are_constant():
    nodes = [
        node("Cast", ["positions"], ["p"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["p", "last"], ["column"]),
        node("Mul", ["column", "frequencies"], ["angle"]),
        node("Concat", ["angle", "angle"], ["both"], axis=-1),
        node("Cos", ["both"], ["c"]),
        node("Sin", ["both"], ["s"]),
        node("Mul", ["x", "c"], ["a"]),
        node("Mul", ["x", "s"], ["b"]),
        node("Add", ["a", "b"], ["y"]),
    ]
    inputs = [("x", [2, 5, 4]), ("positions", [2, 5], TensorProto.INT64)]
    weights = {"last": np.array([-1]), "frequencies": np.array([1.0, 0.01], np.float32)}
    proto = model(nodes, inputs, [("y", None)], weights)
    assert _parameters(proto) == set()
    arguments = array(2, 5, 4), np.arange(10).reshape(2, 5)
    np.testing.assert_allclose(torch_outputs(to_torch(proto), *arguments)[0], runtime(proto, *arguments)[0], rtol=1e-5)


def test_layer_before_a_sine_is_a_weight():
    """Sitzmann et al. 2020 train such layers: what they multiply is no position but an input."""
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Sin", ["h"], ["y"])]
    assert _parameters(model(nodes, [("x", [2, 4])], [("y", None)], {"w": array(4, 3)})) == {"w"}


def test_what_no_gradient_reaches_is_constant():
    nodes = [
        node("Greater", ["x", "threshold"], ["above"]),
        node("Where", ["above", "x", "low"], ["y"]),
    ]
    proto = model(nodes, [("x", [2, 3])], [("y", None)], {"threshold": array(3), "low": array(3, seed=1)})
    assert _parameters(proto) == {"low"}
    check_round_trip(proto, array(2, 3, seed=2))


def test_every_parameter_has_a_gradient_beside_constants():
    nodes = [node("Mul", ["x", "w"], ["h"]), node("Less", ["h", "limit"], ["m"]), node("Where", ["m", "h", "x"], ["y"])]
    module = to_torch(model(nodes, [("x", [2, 3])], [("y", None)], {"w": array(3), "limit": array(3, seed=1)}))
    module(torch.from_numpy(array(2, 3, seed=2))).sum().backward()
    assert [name for name, parameter in module.named_parameters() if parameter.grad is not None] == ["w"]
    assert len(list(module.parameters())) == 1
