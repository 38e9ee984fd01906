"""Factorization, against ONNX Runtime, numpy and numbers worked out by hand."""

import doctest

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from pydantic import ValidationError

from compression.context import Context
from compression.errors import StepFailed
from compression.factorization import decomposition
from compression.factorization.spec import Factorize
from compression.factorization.step import factorize

RNG = np.random.default_rng(7)


def model_of(nodes, weights, inputs, rank=2):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)],
        [numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model


def outputs(model, **arrays):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {name: values.astype(np.float32) for name, values in arrays.items()})[0]


def low_rank(rank, *shape):
    matrix = RNG.normal(size=(shape[0], rank)) @ RNG.normal(size=(rank, int(np.prod(shape[1:]))))
    return matrix.reshape(shape)


def applied(model, tmp_path, **fields):
    before = model.SerializeToString()
    result, details = factorize(model, Factorize(**fields), Context(tmp_path))
    assert model.SerializeToString() == before
    onnx.checker.check_model(result)
    return result, details


@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("trans_a", [0, 1])
def test_gemm_of_low_rank_is_reproduced(tmp_path, trans_a, trans_b):
    weight = low_rank(3, 12, 20)  # (outputs, inputs)
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transA=trans_a, transB=trans_b, alpha=0.5, beta=2.0)
    weights = {"w": weight if trans_b else weight.T, "b": RNG.normal(size=12)}
    model = model_of([node], weights, {"x": [20, 5] if trans_a else [5, 20]})
    result, details = applied(model, tmp_path, energy=0.999999)
    x = RNG.normal(size=(20, 5) if trans_a else (5, 20))
    np.testing.assert_allclose(outputs(result, x=x), outputs(model, x=x), rtol=2e-4, atol=2e-4)
    assert details["weights"][0]["ranks"] == [3]
    assert details["parameters"] == 3 * (12 + 20)


def test_matmul_of_low_rank_is_reproduced(tmp_path):
    model = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": low_rank(2, 16, 10)}, {"x": [2, 3, 16]}, rank=3
    )
    result, _ = applied(model, tmp_path, energy=0.999999)
    x = RNG.normal(size=(2, 3, 16))
    np.testing.assert_allclose(outputs(result, x=x), outputs(model, x=x), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("convolution", ["tucker", "svd"])
def test_convolution_of_low_rank_is_reproduced_with_its_padding_and_strides(tmp_path, convolution):
    core = RNG.normal(size=(3, 2, 3, 3))
    kernel = np.einsum("rsxy,or,is->oixy", core, RNG.normal(size=(12, 3)), RNG.normal(size=(10, 2)))
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], pads=[1, 1, 1, 1], strides=[2, 1], kernel_shape=[3, 3])
    model = model_of([node], {"w": kernel, "b": RNG.normal(size=12)}, {"x": [1, 10, 9, 9]}, rank=4)
    result, details = applied(model, tmp_path, energy=0.999999, convolution=convolution)
    x = RNG.normal(size=(1, 10, 9, 9))
    np.testing.assert_allclose(outputs(result, x=x), outputs(model, x=x), rtol=2e-3, atol=2e-3)
    assert details["weights"][0]["ranks"] == ([3, 2] if convolution == "tucker" else [3])
    assert [one.op_type for one in result.graph.node] == ["Conv"] * (3 if convolution == "tucker" else 2)


def test_the_product_is_the_best_of_its_rank():
    matrix = RNG.normal(size=(8, 6))
    left, right = decomposition.split_matrix(matrix, 2)
    singular = np.linalg.svd(matrix, compute_uv=False)
    assert np.linalg.norm(matrix - left @ right) == pytest.approx(np.sqrt(np.square(singular[2:]).sum()))


def test_tucker_is_at_least_as_close_as_truncated_unfoldings():
    kernel = RNG.normal(size=(8, 6, 3, 3))
    outer, core, inner = decomposition.tucker(kernel, 4, 3)
    mine = np.linalg.norm(kernel - np.einsum("rsxy,or,is->oixy", core, outer, inner))
    u = np.linalg.svd(kernel.reshape(8, -1))[0][:, :4]
    v = np.linalg.svd(kernel.swapaxes(0, 1).reshape(6, -1))[0][:, :3]
    truncated = np.einsum("oixy,or,pr,is,qs->pqxy", kernel, u, u, v, v)
    assert mine <= np.linalg.norm(kernel - truncated) + 1e-9


def test_a_target_is_met_and_not_undershot_by_more_than_a_rank(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], "first"),
        helper.make_node("MatMul", ["h", "b"], ["y"], "second"),
    ]
    weights = {"a": RNG.normal(size=(30, 40)), "b": RNG.normal(size=(40, 20))}
    model = model_of(nodes, weights, {"x": [1, 30]})
    result, details = applied(model, tmp_path, target_parameters=0.5)
    assert details["parameters"] <= 0.5 * 2000
    assert details["parameters"] > 0.5 * 2000 - (30 + 40) - (40 + 20)
    stored = sum(int(np.prod(tensor.dims)) for tensor in result.graph.initializer)
    assert stored == details["parameters"]


def test_a_target_below_rank_one_says_what_is_reachable(tmp_path):
    model = model_of([helper.make_node("MatMul", ["x", "a"], ["y"])], {"a": RNG.normal(size=(10, 10))}, {"x": [1, 10]})
    with pytest.raises(StepFailed) as caught:
        applied(model, tmp_path, target_parameters=0.1)
    assert caught.value.code == "target_unreachable"
    assert "20.0%" in caught.value.message


def test_layers_that_would_not_shrink_or_cannot_be_split_stay(tmp_path):
    nodes = [
        helper.make_node("Conv", ["x", "depthwise"], ["h"], "depthwise conv", group=4),
        helper.make_node("Flatten", ["h"], ["f"]),
        helper.make_node("MatMul", ["f", "full"], ["g"]),
        helper.make_node("MatMul", ["g", "tied"], ["i"]),
        helper.make_node("MatMul", ["i", "tied"], ["y"]),
    ]
    weights = {
        "depthwise": RNG.normal(size=(4, 1, 1, 1)),
        "full": RNG.normal(size=(36, 6)),
        "tied": RNG.normal(size=(6, 6)),
    }
    model = model_of(nodes, weights, {"x": [1, 4, 3, 3]})
    result, details = applied(model, tmp_path, energy=0.9999)
    reasons = {one["name"]: one["skipped"] for one in details["weights"]}
    assert "grouped" in reasons["depthwise"]
    assert "would take" in reasons["full"]
    assert "to itself" in reasons["tied"]
    assert result.SerializeToString() == model.SerializeToString()


def test_ranks_are_rounded_up(tmp_path):
    model = model_of([helper.make_node("MatMul", ["x", "a"], ["y"])], {"a": low_rank(5, 64, 64)}, {"x": [1, 64]})
    _, details = applied(model, tmp_path, energy=0.999999, round_to=8)
    assert details["weights"][0]["ranks"] == [8]


def test_a_taken_name_is_refused(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["y.rank"]),
        helper.make_node("MatMul", ["y.rank", "b"], ["y"]),
    ]
    weights = {"a": RNG.normal(size=(10, 10)), "b": low_rank(1, 10, 10)}
    model = model_of(nodes, weights, {"x": [1, 10]})
    with pytest.raises(StepFailed) as caught:
        applied(model, tmp_path, rank_share=0.1, include=["b"])
    assert caught.value.code == "name_taken"


def test_the_same_bytes_again(tmp_path):
    node = helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[3, 3])
    model = model_of([node], {"w": RNG.normal(size=(16, 8, 3, 3))}, {"x": [1, 8, 9, 9]}, rank=4)
    first, _ = applied(model, tmp_path, rank_share=0.4)
    second, _ = applied(model, tmp_path, rank_share=0.4)
    assert first.SerializeToString() == second.SerializeToString()


def test_exactly_one_aim():
    with pytest.raises(ValidationError, match="exactly one of energy, rank_share and target_parameters, not none"):
        Factorize()
    with pytest.raises(ValidationError, match="not energy and rank_share"):
        Factorize(energy=0.5, rank_share=0.5)


def test_examples():
    assert doctest.testmod(decomposition).failed == 0
