"""Half precision against NumPy's own rounding, and on real digits."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from compression.errors import StepFailed
from compression.graph.inspect import summarize
from compression.spec import QuantizeBfloat16, QuantizeFloat16
from tests.compression.models import cnn, make_model, mlp, value
from tests.compression.quantizing import apply, dataset, digits_accuracy, digits_model, outputs, sqnr, stored


def test_weights_are_rounded_as_numpy_rounds(tmp_path):
    model = mlp()
    result, _ = apply(model, QuantizeFloat16(), tmp_path)
    expected = stored(model)
    found = stored(result)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values.astype(np.float16))
    x = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)
    assert sqnr(outputs(model, x=x), outputs(result, x=x)) > 50


def test_inputs_and_outputs_keep_their_type_or_do_not(tmp_path):
    for keep, dtype in ((True, "float32"), (False, "float16")):
        result, _ = apply(cnn(), QuantizeFloat16(keep_io_types=keep), tmp_path)
        summary = summarize(result, 0, 0)
        assert (summary.inputs[0].dtype, summary.outputs[0].dtype) == (dtype, dtype)
        assert summary.inputs[0].shape == ("batch", 1, 8, 8)
        assert summary.parameter_bytes == summarize(cnn(), 0, 0).parameter_bytes // 2


@pytest.mark.parametrize("keep_io_types", [True, False])
def test_digits_stay_within_a_point_of_float(keep_io_types, tmp_path):
    model = digits_model()
    result, _ = apply(model, QuantizeFloat16(keep_io_types=keep_io_types), tmp_path)
    assert digits_accuracy(result) > digits_accuracy(model) - 0.01
    assert result.ByteSize() < 0.52 * model.ByteSize()


def test_an_excluded_layer_computes_in_float32(tmp_path):
    model = cnn()
    result, details = apply(model, QuantizeFloat16(exclude=("conv2.weight",)), tmp_path)
    assert details["float_nodes"] == ["conv2"]
    np.testing.assert_array_equal(stored(result)["conv2.weight"], stored(model)["conv2.weight"])
    inferred = onnx.shape_inference.infer_shapes(result)
    kinds = {entry.name: entry.type.tensor_type.elem_type for entry in inferred.graph.value_info}
    computed = {node.name: kinds[node.output[0]] for node in result.graph.node if node.name in ("conv1", "conv2")}
    assert computed == {"conv1": TensorProto.FLOAT16, "conv2": TensorProto.FLOAT}


def test_values_that_lose_digits_are_counted_and_a_weight_with_values_that_do_not_fit_stays(tmp_path):
    w = np.ones((4, 2), np.float32)
    w[1] = 1e-6, 0.0
    model = make_model(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "product")],
        [value("x", ["n", 4])],
        [value("y", ["n", 2])],
        {"w": w},
    )
    result, details = apply(model, QuantizeFloat16(), tmp_path)
    (entry,) = details["weights"]
    assert (entry["clipped"], entry["subnormal"]) == (0, 1)
    assert stored(result)["w"][1, 1] == 0
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.where(w == 1, np.float32(1e5), w), "w"))
    with pytest.raises(StepFailed, match="65,504") as failure:
        apply(model, QuantizeFloat16(), tmp_path)
    assert failure.value.code == "no_weights"


def scaled(*factors):
    """`y` = Relu of `x` (n, 3) times one stored factor after the other; nodes `m0`, `m1`, … and `relu`."""
    nodes = [
        helper.make_node("Mul", [f"v{index}" if index else "x", f"f{index}"], [f"v{index + 1}"], f"m{index}")
        for index in range(len(factors))
    ]
    nodes += [
        helper.make_node("MatMul", [f"v{len(factors)}", "w"], ["p"], "product"),
        helper.make_node("Relu", ["p"], ["y"], "relu"),
    ]
    weights = {f"f{index}": np.array(factor, np.float32) for index, factor in enumerate(factors)}
    weights["w"] = np.eye(3, dtype=np.float32)
    return make_model(nodes, [value("x", ["n", 3])], [value("y", ["n", 3])], weights)


def kept(details):
    return {row["node"]: row["reason"] for row in details["kept"]}


@pytest.mark.parametrize("with_data", [True, False])
def test_nodes_on_either_side_of_what_overflows_stay_in_float32(with_data, tmp_path):
    """Neighbours in float32 hand one another what no float16 could carry."""
    model = scaled(1000.0, 1000.0, 1e-3, 1e-3)
    x = np.random.default_rng(0).uniform(0.5, 2, (16, 3)).astype(np.float32)
    data = dataset(tmp_path, x=x) if with_data else None
    result, details = apply(model, QuantizeFloat16(), tmp_path, data)
    assert details["ranges_from"] == ("calibration" if with_data else "made-up inputs")
    # 1000 x 1000 is too much: its producer and its reader, and nobody else.
    assert list(kept(details)) == ["m1", "m2"]
    assert "65,504" in kept(details)["m1"]
    assert "2 nodes compute in float32" in details["notes"][0]
    np.testing.assert_allclose(outputs(result, x=x), outputs(model, x=x), rtol=4e-3)


def test_what_float16_has_no_digits_for_stays_in_float32(tmp_path):
    model = scaled(1e-6, 1e6)
    x = np.random.default_rng(0).uniform(0.5, 2, (16, 3)).astype(np.float32)
    result, details = apply(model, QuantizeFloat16(), tmp_path, dataset(tmp_path, x=x))
    assert list(kept(details)) == ["m0", "m1"]
    np.testing.assert_allclose(outputs(result, x=x), outputs(model, x=x), rtol=4e-3)


def test_a_stored_value_read_in_both_precisions_is_stored_twice(tmp_path):
    nodes = [
        helper.make_node("Mul", ["x", "f"], ["a"], "small"),
        helper.make_node("Mul", ["big", "f"], ["b"], "large"),
        helper.make_node("MatMul", ["a", "w"], ["p"], "product"),
        helper.make_node("MatMul", ["b", "w"], ["q"], "other"),
    ]
    shapes = [value(name, ["n", 3]) for name in ("x", "big", "p", "q")]
    weights = {"f": np.float32(1 / 3) * np.ones(3, np.float32), "w": np.eye(3, dtype=np.float32)}
    model = make_model(nodes, shapes[:2], shapes[2:], weights)
    x = np.ones((4, 3), np.float32)
    result, details = apply(model, QuantizeFloat16(), tmp_path, dataset(tmp_path, x=x, big=1e6 * x))
    assert list(kept(details)) == ["large", "other"]
    arrays = stored(result)
    np.testing.assert_array_equal(arrays["f"], np.float16(1 / 3) * np.ones(3, np.float16))
    np.testing.assert_array_equal(arrays["f.float32"], weights["f"])
    assert result.graph.output[1].name == "q"


def test_named_nodes_are_kept_and_unknown_ones_refused_with_the_nearest(tmp_path):
    model = scaled(2.0)
    _, details = apply(model, QuantizeFloat16(keep=("relu",)), tmp_path)
    assert kept(details) == {"relu": "named in `keep`"}
    assert details["notes"] == []
    with pytest.raises(StepFailed, match="'relu'") as failure:
        apply(model, QuantizeFloat16(keep=("rely",)), tmp_path)
    assert failure.value.code == "unknown_name"


def test_infinite_masks_are_no_overflow(tmp_path):
    nodes = [
        helper.make_node("Where", ["m", "x", "low"], ["masked"], "mask"),
        helper.make_node("Softmax", ["masked"], ["s"], "softmax"),
        helper.make_node("MatMul", ["s", "w"], ["y"], "product"),
    ]
    weights = {"low": np.array(-np.inf, np.float32), "w": np.eye(3, dtype=np.float32)}
    model = make_model(nodes, [value("x", ["n", 3]), value("m", ["n", 3])], [value("y", ["n", 3])], weights)
    model.graph.input[1].type.tensor_type.elem_type = TensorProto.BOOL
    x = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    m = np.array([True, False, True])[None].repeat(8, 0)
    result, details = apply(model, QuantizeFloat16(), tmp_path, dataset(tmp_path, x=x, m=m))
    assert details["kept"] == []
    np.testing.assert_allclose(outputs(result, x=x, m=m), outputs(model, x=x, m=m), atol=2e-3)


def test_bfloat16_is_half_the_bytes_and_rounds_as_torch_rounds(tmp_path):
    torch = pytest.importorskip("torch")
    model = mlp()
    result, details = apply(model, QuantizeBfloat16(), tmp_path)
    widened = {node.output[0]: node.input[0] for node in result.graph.node if node.op_type == "Cast"}
    assert widened.keys() == {row["name"] for row in details["weights"]}
    for row in details["weights"]:
        own = stored(model)[row["name"]]
        expected = torch.from_numpy(own.copy()).to(torch.bfloat16).float().numpy()
        np.testing.assert_array_equal(stored(result)[widened[row["name"]]].astype(np.float32), expected)
        assert row["largest_error"] == pytest.approx(np.abs(expected - own).max() / np.abs(own).max())
    x = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)
    assert sqnr(outputs(model, x=x), outputs(result, x=x)) > 40
    assert result.ByteSize() < 0.55 * model.ByteSize()
