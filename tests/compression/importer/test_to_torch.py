"""What the imported module looks like: layers, names, origins, errors."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from compression.graph.operators.emitter import OnnxOrigin
from compression.graph.to_torch import UnsupportedOperator, to_torch
from tests.compression.importer.graphs import array, body, model, node, runtime, torch_outputs


def _network():
    nodes = [
        node("Conv", ["x", "features.0.weight", "features.0.bias"], ["h"], pads=[1, 1, 1, 1]),
        node("Relu", ["h"], ["r"]),
        node("GlobalAveragePool", ["r"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "head.weight", "head.bias"], ["y"], transB=1),
    ]
    weights = {
        "features.0.weight": array(4, 3, 3, 3),
        "features.0.bias": array(4, seed=1),
        "head.weight": array(2, 4, seed=2),
        "head.bias": array(2, seed=3),
    }
    return model(nodes, [("x", ["n", 3, 8, 8])], [("y", ["n", 2])], weights)


def test_layers_parameters_and_origins():
    module = to_torch(_network())
    assert isinstance(module.features.get_submodule("0"), nn.Conv2d)
    assert isinstance(module.head, nn.Linear)
    names = [name for name, _ in module.named_parameters()]
    assert names == ["features.0.weight", "features.0.bias", "head.weight", "head.bias"]
    assert module.initializer_names == {name: name for name in names}
    assert (module.input_names, module.output_names) == (("x",), ("y",))
    origins = {found.target: found.meta["onnx"] for found in module.graph.nodes if found.op == "call_module"}
    assert origins["features.0"] == OnnxOrigin("Conv_h", "Conv", ("h",))
    assert not module.training


def test_dynamic_batch():
    module, x = to_torch(_network()), array(5, 3, 8, 8)
    np.testing.assert_allclose(torch_outputs(module, x)[0], runtime(_network(), x)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_keep_what_write_back_needs(copied):
    module = to_torch(_network())
    twin = copied(module)
    assert twin.bindings == module.bindings
    assert twin.input_names == module.input_names
    x = torch.from_numpy(array(1, 3, 8, 8))
    torch.testing.assert_close(twin(x), module(x))


def test_all_unsupported_nodes_are_named():
    inner = {
        "then_branch": body([node("Binarizer", ["x"], ["a"], domain="ai.onnx.ml")], [], [("a", [2])]),
        "else_branch": body([node("Relu", ["x"], ["b"])], [], [("b", [2])]),
    }
    nodes = [
        node("Binarizer", ["x"], ["h"], domain="ai.onnx.ml"),
        node("If", ["flag"], ["g"], **inner),
        node("Add", ["h", "g"], ["y"]),
    ]
    inputs = [("x", [2]), ("flag", [], TensorProto.BOOL)]
    proto = model(nodes, inputs, [("y", [2])], {}, others={"ai.onnx.ml": 1})
    with pytest.raises(UnsupportedOperator) as caught:
        to_torch(proto)
    assert caught.value.code == "operator_not_importable"
    assert [problem.node for problem in caught.value.problems] == ["Binarizer_h", "Binarizer_a"]
    assert "node 'Binarizer_h', Binarizer (ai.onnx.ml 1): the operator is not known" in str(caught.value)


def test_operator_sets_before_broadcasting_are_refused():
    old = helper.make_model(
        helper.make_graph([node("Relu", ["x"], ["y"])], "g", [], []), opset_imports=[helper.make_opsetid("", 6)]
    )
    with pytest.raises(UnsupportedOperator, match="operator sets below 7"):
        to_torch(old)


def test_batch_norm_of_unknown_rank_is_a_layer():
    weights = {"s": array(3), "b": array(3, seed=1), "m": array(3, seed=2), "v": np.abs(array(3, seed=3)) + 0.5}
    nodes = [
        node("Reshape", ["x", "shape"], ["h"]),
        node("BatchNormalization", ["h", "s", "b", "m", "v"], ["n"]),
        node("Reshape", ["n", "flat"], ["y"]),
    ]
    inputs = [("x", [12]), ("shape", [None], TensorProto.INT64)]
    proto = model(nodes, inputs, [("y", [12])], {**weights, "flat": np.array([12])})
    module = to_torch(proto)
    assert len(list(module.parameters())) == 2
    inputs = array(12), np.array([2, 3, 2])
    np.testing.assert_allclose(torch_outputs(module, *inputs)[0], runtime(proto, *inputs)[0], rtol=1e-5, atol=1e-6)


def test_parameter_under_the_name_of_a_layer_gets_another_path():
    nodes = [node("Conv", ["x", "a.weight"], ["h"]), node("Mul", ["h", "a.gamma"], ["y"])]
    proto = model(nodes, [("x", [1, 2, 5])], [("y", None)], {"a.weight": array(2, 2, 3), "a.gamma": array(2, 1)})
    module = to_torch(proto)
    assert module.initializer_names == {"a.weight": "a.weight", "a_gamma": "a.gamma"}


def test_names_that_are_no_python_words():
    proto = model([node("Mul", ["x", "7/w:0"], ["y"])], [("x", [2])], [("y", None)], {"7/w:0": array(2)})
    module = to_torch(proto)
    assert module.initializer_names == {"_7_w_0": "7/w:0"}
    np.testing.assert_array_equal(torch_outputs(module, array(2))[0], array(2) * array(2))


def test_masks_and_scalars_are_no_parameters():
    nodes = [node("Add", ["x", "mask"], ["h"]), node("Mul", ["h", "factor"], ["y"])]
    weights = {"mask": np.array([0, -np.inf], np.float32), "factor": np.float32(0.5)}
    module = to_torch(model(nodes, [("x", [2])], [("y", None)], weights))
    assert not list(module.parameters())


def _loop_that_stacks():
    step = body(
        [
            node("Identity", ["c"], ["d"]),
            node("Add", ["state", "state"], ["next"]),
            node("Cast", ["next"], ["row"], to=7),
        ],
        [("i", [], TensorProto.INT64), ("c", [], TensorProto.BOOL), ("state", [2, 3])],
        [("d", [], TensorProto.BOOL), ("next", [2, 3]), ("row", [2, 3], TensorProto.INT64)],
    )
    inputs = [("trips", [], TensorProto.INT64), ("x", [2, 3])]
    outputs = [("last", [2, 3]), ("rows", [None, 2, 3], TensorProto.INT64)]
    return model([node("Loop", ["trips", "", "x"], ["last", "rows"], body=step)], inputs, outputs, {})


@pytest.mark.parametrize("trips", [0, 1, 3])
def test_loop(trips):
    inputs = np.array(trips), array(2, 3)
    got, wanted = torch_outputs(to_torch(_loop_that_stacks()), *inputs), runtime(_loop_that_stacks(), *inputs)
    assert [(value.shape, value.dtype) for value in got] == [(value.shape, value.dtype) for value in wanted]
    for one, other in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("sizes", [(1, 1), (1, 4), (3, 5), (8, 8)])
@pytest.mark.parametrize("mode", ["pytorch_half_pixel", "half_pixel", "align_corners", "asymmetric"])
def test_linear_resize_to_sizes(mode, sizes):
    attributes = {"mode": "linear", "coordinate_transformation_mode": mode}
    resize = node("Resize", ["x", "", "", "sizes"], ["y"], **attributes)
    proto = model([resize], [("x", [1, 2, 4, 4])], [("y", None)], {"sizes": np.array([1, 2, *sizes])})
    x = array(1, 2, 4, 4)
    np.testing.assert_allclose(torch_outputs(to_torch(proto), x)[0], runtime(proto, x)[0], rtol=1e-5, atol=1e-6)


def test_shape_arithmetic_stays_on_the_cpu():
    """On the meta device tensors have no values: shapes have to come from elsewhere."""
    nodes = [
        node("MatMul", ["x", "w"], ["h"]),
        node("Shape", ["h"], ["s"]),
        node("Gather", ["s", "first"], ["n"]),
        node("Mul", ["n", "two"], ["m"]),
        node("Concat", ["m", "rest"], ["target"], axis=0),
        node("Reshape", ["h", "target"], ["r"]),
        node("Cast", ["m"], ["f"], to=TensorProto.FLOAT),
        node("Div", ["r", "f"], ["y"]),
    ]
    weights = {"w": array(4, 6), "first": np.array([0]), "two": np.array([2]), "rest": np.array([-1])}
    proto = model(nodes, [("x", ["n", 4])], [("y", ["m", "k"])], weights)
    x = array(3, 4)
    np.testing.assert_allclose(torch_outputs(to_torch(proto), x)[0], runtime(proto, x)[0], rtol=1e-5, atol=1e-6)
    y = to_torch(proto, device="meta")(torch.empty(5, 4, device="meta"))
    assert (y.shape, y.device.type) == ((10, 3), "meta")


def test_old_batch_norm_with_more_outputs_uses_the_statistics_of_the_batch():
    weights = {"s": array(3), "b": array(3, seed=1), "m": array(3, seed=2), "v": np.abs(array(3, seed=3)) + 0.5}
    outputs = ["y", "mean", "var", "saved_mean", "saved_var"]
    norm = node("BatchNormalization", ["x", *weights], outputs)
    proto = model([norm], [("x", [4, 3, 2])], [("y", None)], weights, opset=11)
    x = array(4, 3, 2, seed=4)
    module = to_torch(proto)
    axes = (0, 2)
    standard = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-5)
    wanted = standard * weights["s"].reshape(-1, 1) + weights["b"].reshape(-1, 1)
    np.testing.assert_allclose(torch_outputs(module, x)[0], wanted, rtol=1e-4, atol=1e-5)
    assert set(module.initializer_names.values()) == {"s", "b"}


def test_layer_on_values_that_come_from_shapes():
    """Position encodings run through a layer that is on the device, while shapes are on the CPU."""
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Cast", ["s"], ["f"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["f", "first"], ["row"]),
        node("Gemm", ["row", "w", "b"], ["h"]),
        node("Add", ["x", "h"], ["y"]),
    ]
    weights = {"first": np.array([0]), "w": array(2, 4), "b": array(4, seed=1)}
    proto = model(nodes, [("x", ["n", 4])], [("y", ["n", 4])], weights)
    x = array(3, 4)
    np.testing.assert_allclose(torch_outputs(to_torch(proto), x)[0], runtime(proto, x)[0], rtol=1e-5, atol=1e-6)
    assert to_torch(proto, device="meta")(torch.empty(5, 4, device="meta")).shape == (5, 4)
