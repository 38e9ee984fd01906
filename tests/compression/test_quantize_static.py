"""Static quantization against numbers worked out by hand, and on real digits."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from compression.context import Context
from compression.errors import Cancelled, DataRejected, StepFailed
from compression.quantization.integer.observe import batch_size
from compression.quantization.isa import saturates
from compression.quantization.step import quantize
from compression.spec import QuantizeStatic
from tests.compression.models import cnn, embedding, make_model, mlp, value, weight
from tests.compression.quantizing import (
    DIGITS,
    apply,
    dataset,
    digits_accuracy,
    digits_calibration,
    digits_model,
    outputs,
    sqnr,
    stored,
)

W = np.array([[2.0, 0.5], [-1.0, 0.25], [0.0, -0.1]], np.float32)


def one_layer():
    return make_model(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "product")],
        [value("x", ["n", 3])],
        [value("y", ["n", 2])],
        {"w": W},
    )


@pytest.fixture
def from_minus_1_to_3(tmp_path):
    """200 samples, so several batches; the lowest value lies in the first and the highest in the last."""
    x = np.random.default_rng(0).uniform(-0.5, 2.5, (200, 3)).astype(np.float32)
    x[0, 0], x[-1, 2] = -1.0, 3.0
    return dataset(tmp_path, x=x)


@pytest.mark.parametrize(
    ("settings", "scale", "zero_point"),
    [
        ({}, 4 / 255, np.uint8(64)),  # round(1 / (4 / 255)) = round(63.75)
        ({"symmetric_activations": True}, 3 / 127, np.int8(0)),
        ({"activation_bits": 16}, 4 / 65535, np.uint16(16384)),  # round(16383.75)
        ({"activation_bits": 16, "symmetric_activations": True}, 3 / 32767, np.int16(0)),
    ],
    ids=str,
)
def test_minmax_gives_the_scale_and_zero_point_of_the_definition(
    settings, scale, zero_point, from_minus_1_to_3, tmp_path
):
    spec = QuantizeStatic(calibration="minmax", **settings)
    result, details = apply(one_layer(), spec, tmp_path, from_minus_1_to_3)
    parts = stored(result)
    assert parts["x_scale"] == pytest.approx(scale, rel=1e-6)
    assert parts["x_zero_point"] == zero_point
    assert parts["x_zero_point"].dtype == zero_point.dtype
    (entry,) = details["activations"]
    info = np.iinfo(zero_point.dtype)
    lowest = -info.max if settings.get("symmetric_activations") else -int(zero_point)
    highest = info.max - int(zero_point)
    assert entry == {
        "name": "x",
        "bits": settings.get("activation_bits", 8),
        "lowest": pytest.approx(lowest * scale, rel=1e-6),
        "highest": pytest.approx(highest * scale, rel=1e-6),
        "seen": [-1.0, 3.0],
    }


@pytest.mark.parametrize(
    ("settings", "scales", "codes"),
    [
        ({"per_channel": False, "reduce_range": False}, 2 / 127, [[127, 32], [-64, 16], [0, -6]]),
        ({"per_channel": True, "reduce_range": False}, [2 / 127, 0.5 / 127], [[127, 127], [-64, 64], [0, -25]]),
        ({"per_channel": False, "reduce_range": True}, 2 / 64, [[64, 16], [-32, 8], [0, -3]]),
    ],
    ids=str,
)
def test_weights_are_rounded_to_the_nearest_multiple_of_their_scale(
    settings, scales, codes, from_minus_1_to_3, tmp_path
):
    spec = QuantizeStatic(weight_range="max", **settings)
    result, details = apply(one_layer(), spec, tmp_path, from_minus_1_to_3)
    parts = stored(result)
    np.testing.assert_allclose(parts["w_scale"], scales, rtol=1e-6)
    np.testing.assert_array_equal(parts["w_quantized"], codes)
    assert not np.any(parts["w_zero_point"])
    assert details["weight_limit"] == ("half" if settings["reduce_range"] else "full")
    assert details["weights"] == [{"name": "w", "shape": [3, 2], "nodes": ["product"], "scales": np.size(scales)}]


def test_the_cpu_decides_about_what_saturates_where_the_spec_does_not(from_minus_1_to_3, tmp_path):
    _, details = apply(one_layer(), QuantizeStatic(), tmp_path, from_minus_1_to_3)
    assert details["weight_limit"] == ("pairs" if saturates() else "full")


def test_a_percentile_clips_what_the_extremes_keep(tmp_path):
    x = np.random.default_rng(0).uniform(0, 1, (1000, 3)).astype(np.float32)
    x[500, 1] = 50.0
    found = {}
    for spec in (
        QuantizeStatic(calibration="minmax", calibration_samples=1000),
        QuantizeStatic(calibration="percentile", percentile=99.9, calibration_samples=1000),
    ):
        _, details = apply(one_layer(), spec, tmp_path, dataset(tmp_path, x=x))
        found[spec.calibration] = details["activations"][0]
    assert found["minmax"]["highest"] == pytest.approx(50.0)
    # 0.05 % of 3,000 values lie above: the outlier does, and the rest reaches to 1; a bin is at most 50 / 1024 wide.
    assert 0.99 < found["percentile"]["highest"] < 1.1


def test_entropy_gives_up_a_thin_tail(tmp_path):
    x = np.random.default_rng(0).standard_normal((2000, 3)).astype(np.float32)
    x[700, 1] = 40.0
    spec = QuantizeStatic(calibration="entropy", calibration_samples=2000)
    _, details = apply(one_layer(), spec, tmp_path, dataset(tmp_path, x=x))
    assert 3.0 < details["activations"][0]["highest"] < 40.0


def test_no_more_samples_are_run_than_were_asked_for(tmp_path):
    x = np.ones((100, 3), np.float32)
    x[99] = 7.0  # the ten samples are 0, 10, 20, … 90
    _, details = apply(one_layer(), QuantizeStatic(calibration_samples=10), tmp_path, dataset(tmp_path, x=x))
    assert details["activations"][0]["seen"] == [1.0, 1.0]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"calibration": "minmax"},
        {"calibration": "percentile"},
        {"calibration": "entropy"},
        {"weight_bits": 4},
        {"per_channel": False},
        {"symmetric_activations": True},
        {"activation_bits": 16},
    ],
    ids=str,
)
def test_digits_stay_within_a_point_of_float(settings, tmp_path):
    model = digits_model()
    result, details = apply(model, QuantizeStatic(**settings), tmp_path, digits_calibration())
    assert digits_accuracy(result) > digits_accuracy(model) - 0.01
    assert result.ByteSize() < 0.3 * model.ByteSize()
    assert len(details["weights"]) == 6
    assert all("skipped" not in entry for entry in details["weights"])


@pytest.mark.skipif(not saturates(), reason="this CPU adds products of 8-bit integers without saturating")
def test_7_bits_are_better_than_8_where_sums_saturate(tmp_path):
    model = digits_model()
    images = np.load(DIGITS / "evaluation.npz")["image"]
    expected = outputs(model, image=images)
    noise = {}
    for reduce_range in (True, False):
        result, _ = apply(model, QuantizeStatic(reduce_range=reduce_range), tmp_path, digits_calibration())
        noise[reduce_range] = sqnr(expected, outputs(result, image=images))
    assert noise[True] > noise[False] + 6


def test_large_activations_make_small_batches():
    side = 1024  # x, c and y: 1 + 8 + 8 planes of 4 MiB a sample, and 256 MiB are allowed
    rng = np.random.default_rng(0)
    model = make_model(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["y"], "relu"),
        ],
        [value("x", ["n", 1, side, side])],
        [value("y", ["n", 8, side, side])],
        {"w": weight(rng, 8, 1, 3, 3)},
    )
    assert batch_size(model) == 256 // (17 * 4)
    assert batch_size(cnn()) == 32


def test_the_runtime_computes_the_convolutions_in_integers(tmp_path):
    result, details = apply(digits_model(), QuantizeStatic(), tmp_path, digits_calibration())
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(result.SerializeToString(), options, providers=["CPUExecutionProvider"])
    fused = Counter(node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node)
    assert fused["QLinearConv"] == 5
    assert fused["Conv"] == 0
    assert details["runtime"] == {
        "integer_nodes": {"QGemm": 1, "QLinearAdd": 1, "QLinearConv": 5},
        "float_layers": {},
        "unfused_pairs": 1,  # that of the input
    }


def test_batch_norms_fold_into_convolutions_that_keep_their_names(tmp_path):
    rng = np.random.default_rng(0)
    norm = {f"norm.{part}": rng.uniform(0.5, 1.5, 4).astype(np.float32) for part in ("scale", "bias", "mean", "var")}
    model = make_model(
        [
            helper.make_node("Conv", ["x", "conv.weight"], ["c"], "conv"),
            helper.make_node("BatchNormalization", ["c", *norm], ["n"], "norm"),
            helper.make_node("Relu", ["n"], ["y"], "relu"),
        ],
        [value("x", ["n", 1, 8, 8])],
        [value("y", ["n", 4, 6, 6])],
        {"conv.weight": weight(rng, 4, 1, 3, 3), **norm},
    )
    x = rng.standard_normal((64, 1, 8, 8)).astype(np.float32)
    result, details = apply(model, QuantizeStatic(), tmp_path, dataset(tmp_path, x=x))
    assert [entry["name"] for entry in details["weights"] if entry.get("scales") == 4] == ["conv.weight"]
    assert all(node.op_type != "BatchNormalization" for node in result.graph.node)
    scale = norm["norm.scale"] / np.sqrt(norm["norm.var"] + 1e-5)
    folded = stored(model)["conv.weight"] * scale[:, None, None, None]
    parts = stored(result)
    found = parts["conv.weight_quantized"] * parts["conv.weight_scale"][:, None, None, None]
    np.testing.assert_allclose(found, folded, atol=np.abs(folded).max() / 64)
    assert sqnr(outputs(model, x=x), outputs(result, x=x)) > 30


def test_an_excluded_layer_and_what_computes_on_it_stay_float(tmp_path):
    model = cnn()
    x = np.random.default_rng(0).standard_normal((64, 1, 8, 8)).astype(np.float32)
    result, details = apply(model, QuantizeStatic(exclude=("conv2*",)), tmp_path, dataset(tmp_path, x=x))
    np.testing.assert_array_equal(stored(result)["conv2.weight"], stored(model)["conv2.weight"])
    assert [entry["name"] for entry in details["weights"]] == ["conv1.weight", "fc.weight"]
    assert details["float_nodes"] == ["conv2"]
    quantized = [node.input[0] for node in result.graph.node if node.op_type == "QuantizeLinear"]
    assert not {"c2", "r2", "p"} & set(quantized)


def test_token_ids_are_fine_for_calibration(tmp_path):
    model = embedding()
    ids = np.random.default_rng(0).integers(0, 50, (64, 7))
    result, _ = apply(model, QuantizeStatic(), tmp_path, dataset(tmp_path, ids=ids))
    assert sqnr(outputs(model, ids=ids), outputs(result, ids=ids)) > 30


def test_a_fixed_batch_axis_is_respected(tmp_path):
    x = np.random.default_rng(0).standard_normal((40, 1, 8, 8)).astype(np.float32)
    model = cnn(batch=7)
    result, _ = apply(model, QuantizeStatic(), tmp_path, dataset(tmp_path, x=x))
    assert sqnr(outputs(model, x=x[:7]), outputs(result, x=x[:7])) > 25


def test_old_operator_sets_are_raised(tmp_path):
    rng = np.random.default_rng(0)
    model = make_model(
        [helper.make_node("Conv", ["x", "w"], ["y"], "conv")],
        [value("x", ["n", 1, 8, 8])],
        [value("y", ["n", 4, 6, 6])],
        {"w": weight(rng, 4, 1, 3, 3)},
        opset=9,
        ir_version=4,
    )
    x = rng.standard_normal((32, 1, 8, 8)).astype(np.float32)
    result, _ = apply(model, QuantizeStatic(), tmp_path, dataset(tmp_path, x=x))
    assert result.opset_import[0].version == 13
    assert sqnr(outputs(model, x=x), outputs(result, x=x)) > 30


def test_without_calibration_data(tmp_path):
    with pytest.raises(DataRejected) as error:
        apply(mlp(), QuantizeStatic(), tmp_path)
    assert error.value.code == "calibration_data_missing"


def test_data_that_does_not_fit(tmp_path):
    with pytest.raises(DataRejected) as error:
        apply(mlp(), QuantizeStatic(), tmp_path, dataset(tmp_path, x=np.zeros((8, 65), np.float32)))
    assert error.value.code == "dataset_mismatch"


@pytest.mark.parametrize("calibration", ["minmax", "percentile", "entropy", "mse"])
def test_activations_that_are_not_finite(calibration, tmp_path):
    model = make_model(
        [
            helper.make_node("Log", ["x"], ["l"], "log"),
            helper.make_node("MatMul", ["l", "w"], ["m"], "product"),
            helper.make_node("Sigmoid", ["m"], ["y"], "sigmoid"),
        ],
        [value("x", ["n", 3])],
        [value("y", ["n", 2])],
        {"w": W},
    )
    x = np.ones((40, 3), np.float32)
    x[39, 0] = 0.0
    with pytest.raises(DataRejected, match="'l'") as error:
        apply(model, QuantizeStatic(calibration=calibration), tmp_path, dataset(tmp_path, x=x))
    assert error.value.code == "non_finite_values"


def test_an_operator_without_integer_form_is_an_error_when_nothing_else_is_left(tmp_path):
    rng = np.random.default_rng(0)
    model = make_model(
        [helper.make_node("GRU", ["x", "w", "r"], ["y"], "gru", hidden_size=8)],
        [value("x", [5, "n", 4])],
        [value("y", [5, 1, "n", 8])],
        {"w": weight(rng, 1, 24, 4), "r": weight(rng, 1, 24, 8)},
    )
    x = rng.standard_normal((5, 16, 4)).astype(np.float32)
    with pytest.raises(StepFailed, match="'w'") as error:
        apply(model, QuantizeStatic(), tmp_path, dataset(tmp_path, x=x))
    assert error.value.code == "no_weights"


def test_calibration_can_be_cancelled(from_minus_1_to_3, tmp_path):
    asked = []

    def cancelled():
        asked.append(True)
        return len(asked) > 3

    with pytest.raises(Cancelled):
        quantize(one_layer(), QuantizeStatic(), Context(tmp_path, is_cancelled=cancelled), from_minus_1_to_3, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["calibration.npz"]
