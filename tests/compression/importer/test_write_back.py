"""Values changed in the module arrive in the file: ONNX Runtime is the judge."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from compression.graph.to_torch import to_torch
from compression.graph.write_back import write_back
from tests.compression.importer.graphs import (
    array,
    body,
    check_round_trip,
    initializer,
    model,
    node,
    perturb,
    runtime,
    stored,
    torch_outputs,
    value,
)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("operator", "shape"), [("Conv", (6, 2, 3, 3)), ("ConvTranspose", (4, 3, 3, 3))])
def test_convolution(operator, shape, bias):
    names = ["x", "w", "b"] if bias else ["x", "w"]
    weights = {"w": array(*shape), "b": array(6, seed=1)} if bias else {"w": array(*shape)}
    proto = model([node(operator, names, ["y"], group=2)], [("x", [1, 4, 5, 5])], [("y", None)], weights)
    check_round_trip(proto, array(1, 4, 5, 5))


@pytest.mark.parametrize("bias", [(3,), (1, 3), (2, 3), ()])
@pytest.mark.parametrize(("trans_a", "trans_b"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_gemm(trans_a, trans_b, bias):
    x = array(4, 2) if trans_a else array(2, 4)
    w = array(3, 4) if trans_b else array(4, 3)
    gemm = node("Gemm", ["x", "w", "b"], ["y"], transA=trans_a, transB=trans_b)
    proto = model([gemm], [("x", x.shape)], [("y", None)], {"w": w, "b": array(*bias, seed=1)})
    check_round_trip(proto, x)


def test_gemm_with_factors():
    gemm = node("Gemm", ["x", "w", "b"], ["y"], alpha=0.5, beta=2.0)
    proto = model([gemm], [("x", [2, 4])], [("y", None)], {"w": array(4, 3), "b": array(3, seed=1)})
    check_round_trip(proto, array(2, 4))


def test_stored_matrix_on_the_left():
    proto = model([node("MatMul", ["w", "x"], ["y"])], [("x", [4, 2])], [("y", None)], {"w": array(3, 4)})
    check_round_trip(proto, array(4, 2))


def test_stored_matrix_on_the_right_with_a_vector_added():
    nodes = [node("MatMul", ["x", "w"], ["p"]), node("Add", ["b", "p"], ["y"])]
    proto = model(nodes, [("x", [2, 5, 4])], [("y", None)], {"w": array(4, 3), "b": array(3, seed=1)})
    module, _ = check_round_trip(proto, array(2, 5, 4))
    assert [type(layer) for layer in module.children()] == [torch.nn.Linear]


def test_stored_matrix_behind_a_transpose():
    nodes = [node("Transpose", ["w"], ["t"], perm=[1, 0]), node("MatMul", ["x", "t"], ["y"])]
    check_round_trip(model(nodes, [("x", [2, 4])], [("y", None)], {"w": array(3, 4)}), array(2, 4))


def _batch_norm(x, y, names=("scale", "bias", "mean", "var")):
    return node("BatchNormalization", [x, *names], [y], momentum=0.8)


NORM = {"scale": array(3), "bias": array(3, seed=1), "mean": array(3, seed=2), "var": np.abs(array(3, seed=3)) + 0.5}


def test_batch_norm():
    proto = model([_batch_norm("x", "y")], [("x", [4, 3, 2, 2])], [("y", None)], NORM)
    check_round_trip(proto, array(4, 3, 2, 2))


def test_running_statistics_that_training_updated():
    proto = model([_batch_norm("x", "y")], [("x", [4, 3, 2, 2])], [("y", None)], NORM)
    module, x = to_torch(proto), array(4, 3, 2, 2)
    module.train()(torch.from_numpy(x))
    written = stored(write_back(module, proto))
    mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), ddof=1)
    np.testing.assert_allclose(written["mean"], 0.8 * NORM["mean"] + 0.2 * mean, rtol=1e-5)
    np.testing.assert_allclose(written["var"], 0.8 * NORM["var"] + 0.2 * variance, rtol=1e-5)
    np.testing.assert_array_equal(written["scale"], NORM["scale"])


def test_equal_vectors_that_the_exporter_merged_part_in_training():
    """Two fresh batch norms that share zeros and ones, one of them through an Identity."""
    nodes = [
        node("Identity", ["ones"], ["second.weight"]),
        _batch_norm("x", "h", ("ones", "zeros", "zeros", "ones")),
        _batch_norm("h", "y", ("second.weight", "zeros", "zeros", "second.weight")),
    ]
    ones, zeros = np.ones(3, np.float32), np.zeros(3, np.float32)
    proto = model(nodes, [("x", [4, 3, 2, 2])], [("y", None)], {"ones": ones, "zeros": zeros})
    module, written = check_round_trip(proto, array(4, 3, 2, 2))
    assert len(list(module.parameters())) == 4
    assert len(list(module.buffers())) == 4 + 2  # two batch counters
    assert len(written.graph.initializer) == 8 + 1  # the dead Identity still reads the ones


def test_one_of_the_merged_vectors_is_trained():
    nodes = [node("Add", ["x", "zeros"], ["h"]), node("Sub", ["h", "zeros"], ["y"])]
    proto = model(nodes, [("x", [2, 3])], [("y", None)], {"zeros": np.zeros(3, np.float32)})
    module, x = to_torch(proto), array(2, 3)
    first, _ = module.parameters()
    first.data += 1
    written = write_back(module, proto)
    np.testing.assert_allclose(runtime(written, x)[0], x + 1, rtol=1e-6)
    np.testing.assert_allclose(torch_outputs(module, x)[0], x + 1, rtol=1e-6)


RECURRENT = {"RNN": 1, "GRU": 3, "LSTM": 4}


def _recurrent(kind, directions, **attributes):
    gates, hidden, inputs = RECURRENT[kind], 5, 3
    direction = {1: "forward", 2: "bidirectional"}[directions]
    weights = {
        "w": array(directions, gates * hidden, inputs),
        "r": array(directions, gates * hidden, hidden, seed=1),
        "b": array(directions, 2 * gates * hidden, seed=2),
    }
    layer = node(kind, ["x", "w", "r", "b"], ["y", "h"], hidden_size=hidden, direction=direction, **attributes)
    return model([layer], [("x", [4, 2, inputs])], [("y", None), ("h", None)], weights)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize(("kind", "attributes"), [("RNN", {}), ("LSTM", {}), ("GRU", {"linear_before_reset": 1})])
def test_recurrent_layers_of_torch(kind, attributes, directions):
    module, _ = check_round_trip(_recurrent(kind, directions, **attributes), array(4, 2, 3))
    assert [type(layer).__name__ for layer in module.children()] == [kind]


@pytest.mark.parametrize(("kind", "attributes"), [("GRU", {}), ("LSTM", {"clip": 0.5}), ("RNN", {"clip": 0.5})])
def test_recurrent_layers_that_torch_lacks(kind, attributes):
    check_round_trip(_recurrent(kind, 2, **attributes), array(4, 2, 3))


def test_tied_convolutions_stay_tied():
    nodes = [node("Conv", ["x", "w"], ["h"]), node("Conv", ["h", "w"], ["y"])]
    proto = model(nodes, [("x", [1, 2, 7])], [("y", None)], {"w": array(2, 2, 3)})
    module, written = check_round_trip(proto, array(1, 2, 7))
    assert len(list(module.parameters())) == len(written.graph.initializer) == 1


def test_embedding_tied_with_the_output_projection():
    nodes = [
        node("Gather", ["table", "ids"], ["h"]),
        node("Transpose", ["table"], ["t"], perm=[1, 0]),
        node("MatMul", ["h", "t"], ["y"]),
    ]
    inputs = [("ids", [2, 3], TensorProto.INT64)]
    proto = model(nodes, inputs, [("y", None)], {"table": array(7, 4)})
    module, written = check_round_trip(proto, np.array([[0, 6, 2], [-1, 3, 3]]))
    assert len(list(module.parameters())) == len(written.graph.initializer) == 1


def test_float16():
    nodes = [node("MatMul", ["x", "w"], ["p"]), node("Add", ["p", "b"], ["y"])]
    weights = {"w": array(4, 3, dtype=np.float16), "b": array(3, seed=1, dtype=np.float16)}
    half = TensorProto.FLOAT16
    proto = model(nodes, [("x", [2, 4], half)], [("y", None, half)], weights)
    _, written = check_round_trip(proto, array(2, 4, dtype=np.float16), tolerance=2e-3)
    assert {tensor.data_type for tensor in written.graph.initializer} == {half}


def _if(then_weights, else_weights):
    branches = {
        "then_branch": body([node("MatMul", ["x", "w"], ["then_y"])], [], [("then_y", [2, 3])], then_weights),
        "else_branch": body([node("MatMul", ["x", "w"], ["else_y"])], [], [("else_y", [2, 3])], else_weights),
    }
    inputs = [("x", [2, 4]), ("flag", [], TensorProto.BOOL)]
    return model([node("If", ["flag"], ["y"], **branches)], inputs, [("y", [2, 3])], {})


@pytest.mark.parametrize("flag", [True, False])
def test_branches_that_store_weights_of_the_same_name(flag):
    proto = _if({"w": array(4, 3)}, {"w": array(4, 3, seed=1)})
    module, _ = check_round_trip(proto, array(2, 4), np.array(flag))
    assert len(list(module.parameters())) == 2


def test_branch_whose_condition_is_known():
    branches = {
        "then_branch": body([node("MatMul", ["x", "w"], ["a"])], [], [("a", [2, 3])], {"w": array(4, 3)}),
        "else_branch": body([node("MatMul", ["x", "v"], ["b"])], [], [("b", [2, 3])], {"v": array(4, 3)}),
    }
    proto = model([node("If", ["yes"], ["y"], **branches)], [("x", [2, 4])], [("y", [2, 3])], {"yes": np.array(True)})
    module, _ = check_round_trip(proto, array(2, 4))
    assert [binding.initializer for binding in module.bindings] == ["w"]


def _loop():
    step = body(
        [node("MatMul", ["state", "w"], ["p"]), node("Add", ["p", "outer"], ["next"]), node("Identity", ["c"], ["d"])],
        [("i", [], TensorProto.INT64), ("c", [], TensorProto.BOOL), ("state", [2, 3])],
        [("d", [], TensorProto.BOOL), ("next", [2, 3])],
        {"w": array(3, 3)},
    )
    loop = node("Loop", ["trips", "", "x"], ["y"], body=step)
    return model([loop], [("x", [2, 3])], [("y", [2, 3])], {"trips": np.array(2), "outer": array(3, seed=1)})


def test_loop_body():
    module, _ = check_round_trip(_loop(), array(2, 3))
    assert {binding.initializer for binding in module.bindings} == {"w", "outer"}


def test_scan_body():
    step = body(
        [node("MatMul", ["slice", "w"], ["p"]), node("Add", ["p", "state"], ["next"]), node("Tanh", ["next"], ["out"])],
        [("state", [2, 3]), ("slice", [2, 4])],
        [("next", [2, 3]), ("out", [2, 3])],
        {"w": array(4, 3)},
    )
    scan = node("Scan", ["state0", "x"], ["last", "y"], body=step, num_scan_inputs=1)
    proto = model([scan], [("state0", [2, 3]), ("x", [5, 2, 4])], [("last", [2, 3]), ("y", [5, 2, 3])], {})
    check_round_trip(proto, array(2, 3), array(5, 2, 4))


def test_body_inside_a_body():
    inner = {
        "then_branch": body([node("Mul", ["state", "v"], ["a"])], [], [("a", [2, 3])], {"v": array(3)}),
        "else_branch": body([node("Mul", ["state", "v"], ["b"])], [], [("b", [2, 3])], {"v": array(3, seed=1)}),
    }
    step = body(
        [node("Identity", ["c"], ["d"]), node("If", ["flag"], ["next"], **inner)],
        [("i", [], TensorProto.INT64), ("c", [], TensorProto.BOOL), ("state", [2, 3])],
        [("d", [], TensorProto.BOOL), ("next", [2, 3])],
    )
    loop = node("Loop", ["trips", "", "x"], ["y"], body=step)
    inputs = [("x", [2, 3]), ("flag", [], TensorProto.BOOL)]
    proto = model([loop], inputs, [("y", [2, 3])], {"trips": np.array(2)})
    module, _ = check_round_trip(proto, array(2, 3), np.array(True))
    assert len(list(module.parameters())) == 2


def test_weight_that_is_a_constant_elsewhere_keeps_its_first_value_there():
    """A merged initializer is the weight of one node and the scale of another, whose values the import fixed."""
    scale = np.array([0.5], np.float32)
    nodes = [
        node("Mul", ["x", "s"], ["h"]),
        node("QuantizeLinear", ["h", "s"], ["q"]),
        node("DequantizeLinear", ["q", "s"], ["y"]),
    ]
    proto = model(nodes, [("x", [2, 3])], [("y", None)], {"s": scale})
    check_round_trip(proto, np.abs(array(2, 3)) * 20)


def test_model_may_hold_initializers_that_nothing_reads():
    proto = model([node("Mul", ["x", "w"], ["y"])], [("x", [2, 3])], [("y", None)], {"w": array(3)})
    module = to_torch(proto)
    proto.graph.initializer.append(initializer("unread", array(2)))
    perturb(module)
    written = write_back(module, proto)
    np.testing.assert_array_equal(stored(written)["unread"], array(2))
    np.testing.assert_allclose(runtime(written, array(2, 3))[0], torch_outputs(module, array(2, 3))[0], rtol=1e-6)


def test_another_model_is_refused_with_all_missing_names():
    module = to_torch(_loop())
    other = model([node("Mul", ["x", "w"], ["y"])], [("x", [2, 3])], [("y", None)], {"w": array(3)})
    with pytest.raises(ValueError, match=r"no initializer .*'w'"):
        write_back(module, other)


def test_another_shape_is_refused():
    def product(width):
        return model([node("MatMul", ["x", "w"], ["y"])], [("x", [2, 3])], [("y", None)], {"w": array(3, width)})

    with pytest.raises(ValueError, match=r"'w' has shape \(3, 4\) in the module and \(3, 5\) in the model"):
        write_back(to_torch(product(4)), product(5))


def test_initializers_that_are_inputs_too():
    """IR 3 lists every initializer among the inputs."""
    nodes = [node("Add", ["x", "zeros"], ["h"]), node("Sub", ["h", "zeros"], ["y"])]
    proto = model(nodes, [("x", [2, 3])], [("y", None)], {"zeros": np.zeros(3, np.float32)}, opset=8)
    proto.ir_version = 3
    proto.graph.input.append(value("zeros", [3]))
    module = to_torch(proto)
    perturb(module)
    first, second = module.parameters()
    second.data += 1
    written = write_back(module, proto)
    onnx.checker.check_model(written)
    assert module.input_names == ("x",)
    names = {tensor.name for tensor in written.graph.initializer}
    assert names <= {entry.name for entry in written.graph.input}
    x = array(2, 3)
    np.testing.assert_allclose(torch_outputs(module, x)[0], x + first.numpy(force=True) - second.numpy(force=True))


@pytest.mark.parametrize("flag", [True, False])
def test_identities_of_the_same_name_in_two_branches(flag):
    """Two readers of one matrix, in either branch behind an Identity, keep sharing it."""
    branches = {
        f"{name}_branch": body(
            [node("Identity", [source], ["v"]), node("MatMul", ["x", "v"], [f"{name}_y"])], [], [(f"{name}_y", [2, 3])]
        )
        for name, source in (("then", "a"), ("else", "b"))
    }
    nodes = [
        node("If", ["flag"], ["h"], **branches),
        node("MatMul", ["x", "a"], ["p"]),
        node("Add", ["h", "p"], ["y"]),
    ]
    inputs = [("x", [2, 4]), ("flag", [], TensorProto.BOOL)]
    proto = model(nodes, inputs, [("y", [2, 3])], {"a": array(4, 3), "b": array(4, 3, seed=1)})
    module, written = check_round_trip(proto, array(2, 4), np.array(flag))
    assert len(list(module.parameters())) == len(written.graph.initializer) == 2


def test_merged_vector_that_a_body_reads_too():
    step = body(
        [node("Add", ["state", "zeros"], ["next"]), node("Identity", ["c"], ["d"])],
        [("i", [], TensorProto.INT64), ("c", [], TensorProto.BOOL), ("state", [2, 3])],
        [("d", [], TensorProto.BOOL), ("next", [2, 3])],
    )
    nodes = [node("Loop", ["trips", "", "x"], ["h"], body=step), node("Add", ["h", "zeros"], ["y"])]
    weights = {"trips": np.array(2), "zeros": np.zeros(3, np.float32)}
    proto = model(nodes, [("x", [2, 3])], [("y", [2, 3])], weights)
    module, x = to_torch(proto), array(2, 3)
    for amount, parameter in enumerate(module.parameters(), 1):
        parameter.data += amount
    written = write_back(module, proto)
    onnx.checker.check_model(written, full_check=True)
    assert len(list(module.parameters())) == 2
    np.testing.assert_allclose(runtime(written, x)[0], torch_outputs(module, x)[0], rtol=1e-6)
