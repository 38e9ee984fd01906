"""Half precision against NumPy's own rounding, and on real digits."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from compression.graph.inspect import summarize
from compression.spec import QuantizeFloat16
from tests.compression.models import cnn, make_model, mlp, value
from tests.compression.quantizing import apply, digits_accuracy, digits_model, outputs, sqnr, stored


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


def test_values_that_do_not_fit_are_counted(tmp_path):
    w = np.ones((4, 2), np.float32)
    w[0] = 1e5, -1e6
    w[1] = 1e-6, 0.0
    model = make_model(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "product")],
        [value("x", ["n", 4])],
        [value("y", ["n", 2])],
        {"w": w},
    )
    result, details = apply(model, QuantizeFloat16(), tmp_path)
    (entry,) = details["weights"]
    assert (entry["clipped"], entry["subnormal"]) == (2, 1)
    np.testing.assert_array_equal(stored(result)["w"][0], np.array([65504, -65504], np.float16))
    assert stored(result)["w"][1, 1] == 0
