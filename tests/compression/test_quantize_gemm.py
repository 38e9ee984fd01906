"""Gemm in all its forms, quantized; the reference is the float model in ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from compression.context import Context
from compression.data import DataSource, open_dataset
from compression.quantization import gemm
from compression.quantization.step import quantize
from compression.spec import QuantizeDynamic, QuantizeStatic, QuantizeWeightOnly
from tests.compression.models import make_model, value, weight


def gemm_model(*, alpha=1.0, beta=1.0, transposed=True, bias_shape=(12,), computed_bias=False):
    """`x` (n, 16) through one Gemm to `y` (n, 12); a computed bias comes from a second Gemm of the same input."""
    rng = np.random.default_rng(0)
    weights = {"w": weight(rng, 12, 16) if transposed else weight(rng, 12, 16).T.copy()}
    nodes = []
    if computed_bias:
        weights["w0"] = weight(rng, 16, 12)
        nodes.append(helper.make_node("Gemm", ["x", "w0"], ["b"], "first"))
    elif bias_shape is not None:
        weights["b"] = rng.standard_normal(bias_shape).astype(np.float32)
    inputs = ["x", "w", *(["b"] if computed_bias or bias_shape is not None else [])]
    nodes.append(helper.make_node("Gemm", inputs, ["y"], "gemm", alpha=alpha, beta=beta, transB=int(transposed)))
    return make_model(nodes, [value("x", ["n", 16])], [value("y", ["n", 12])], weights)


def outputs(model, x):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.fixture
def samples(tmp_path):
    x = np.random.default_rng(1).standard_normal((64, 16)).astype(np.float32)
    np.savez(tmp_path / "calibration.npz", x=x)
    return x


def quantized(model, spec, tmp_path):
    dataset = open_dataset(DataSource(tmp_path / "calibration.npz"))
    return quantize(model, spec, Context(workdir=tmp_path, threads=1), dataset, seed=0)


FORMS = [
    {"alpha": 0.5},
    {"beta": 2.0},
    {"alpha": 0.5, "beta": -1.5, "transposed": False},
    {"beta": 0.0},
    {"bias_shape": None, "alpha": 3.0},
    {"bias_shape": (1, 12)},
    {"bias_shape": (1,), "beta": 2.0},
    {"bias_shape": ()},
    {"bias_shape": (1, 1)},
    {"computed_bias": True},
    {"computed_bias": True, "beta": 2.0},
]


@pytest.mark.parametrize("spec", [QuantizeStatic(), QuantizeDynamic(), QuantizeWeightOnly(weight_bits=8)], ids=str)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_every_form_of_gemm_keeps_its_meaning(form, spec, samples, tmp_path):
    model = gemm_model(**form)
    result, _ = quantized(model, spec, tmp_path)
    expected = outputs(model, samples)
    noise = outputs(result, samples) - expected
    assert 10 * np.log10(np.square(expected).sum() / np.square(noise).sum()) > 25


def test_a_bias_that_others_use_stays_theirs(samples, tmp_path):
    rng = np.random.default_rng(0)
    weights = {"w": weight(rng, 16, 12), "b": rng.standard_normal((1, 12)).astype(np.float32)}
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["g"], "gemm", beta=2.0),
        helper.make_node("Add", ["g", "b"], ["y"], "add"),
    ]
    model = make_model(nodes, [value("x", ["n", 16])], [value("y", ["n", 12])], weights)
    expected = outputs(model, samples)
    assert gemm.with_plain_biases(model) == []
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    np.testing.assert_array_equal(stored["b"], weights["b"])
    np.testing.assert_array_equal(stored["g_bias"], 2 * weights["b"][0])
    np.testing.assert_allclose(outputs(model, samples), expected, rtol=1e-6)


def test_a_computed_bias_keeps_its_gemm_in_float(samples, tmp_path):
    result, details = quantized(gemm_model(computed_bias=True, beta=2.0), QuantizeStatic(), tmp_path)
    assert "gemm" in details["float_nodes"]
    assert [entry["name"] for entry in details["weights"] if "skipped" not in entry] == ["w0"]
    assert [node.input[1] for node in result.graph.node if node.name == "gemm"] == ["w"]
