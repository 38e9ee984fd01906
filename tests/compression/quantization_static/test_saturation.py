"""What kernels without VNNI would compute: pairs by hand, sums beside ONNX Runtime's exact ones."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from compression.context import Context
from compression.data.feed import ModelFeed
from compression.graph.inspect import summarize
from compression.quantization.integer.codes import Layout
from compression.quantization.integer.plan import Layer
from compression.quantization.integer.saturation import _read, differences, exceeding_pairs, notes, saturations
from compression.quantization.static import calibrate, insert, quantize_static
from compression.spec import QuantizeStatic
from tests.compression.models import make_model, value
from tests.compression.quantizing import dataset, digits_calibration, digits_model


def test_pairs_that_exceed_16_bits():
    rows = np.array([[64, 64, 127, -127], [65, 64, -100, -29], [127, 0, 0, 0]], np.int8)
    assert exceeding_pairs(rows).tolist() == [[False, False], [True, True], [False, False]]


def test_differences_by_hand():
    activations = np.array([[255, 255, 255, 255, 255], [0, 10, 200, 200, 255]], np.uint8)
    rows = np.array([[127, 127, -127, -127, 127], [127, -127, 1, 1, 1]], np.int8)
    # 255 * 254 = 64770, of which 32767 stay; 255 * -254 = -64770, of which -32768 stay; 200 * -254 = -50800.
    expected = [[64770 - 32767 - 64770 + 32768, 0], [-50800 + 32768, 0]]
    assert differences(activations, rows).tolist() == expected


@pytest.mark.parametrize(
    ("groups", "settings"),
    [
        (1, {}),
        (2, {"pads": [1, 0, 2, 1], "strides": [2, 1]}),
        (1, {"dilations": [2, 1], "pads": [2, 2, 2, 2]}),
        (3, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        (1, {"auto_pad": "SAME_LOWER", "strides": [3, 2]}),
    ],
)
def test_what_a_convolution_reads_gives_the_sums_of_the_runtime(groups, settings):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (2, 6, 7, 8), np.uint8)
    weight = rng.integers(-127, 128, (6, 6 // groups, 3, 2), np.int8)
    node = helper.make_node("ConvInteger", ["x", "w", "z"], ["y"], group=groups, **settings)
    layer = Layer("c", "Conv", "x", "w", weight.shape, Layout(0, 1), True, None, "y", groups, 1)
    stored = {"w": weight, "z": np.uint8(3)}
    graph = make_model([node], [value("x", [2, 6, 7, 8])], [value("y", ["n", 6, "h", "w"])], stored)
    graph.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    graph.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT32
    sums = onnxruntime.InferenceSession(graph.SerializeToString()).run(None, {"x": codes})[0]
    rows = np.split(Layout(0, 1).rows(weight), groups)
    reads = list(_read(codes, 3, layer, node, np.random.default_rng(1)))
    found = np.concatenate(
        [(part.astype(int) - 3) @ own.T.astype(int) for part, own in zip(reads, rows, strict=True)], 1
    )
    every = np.moveaxis(sums, 1, -1).reshape(-1, 6)
    chosen = np.random.default_rng(1).choice(len(every), min(64, len(every)), replace=False)
    np.testing.assert_array_equal(found, every[chosen])


def product(weight):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "product")]
    shape = [value("x", ["n", len(weight)])], [value("y", ["n", weight.shape[1]])]
    return make_model(nodes, *shape, {"w": weight.astype(np.float32)})


def test_large_weights_side_by_side_are_reported_and_half_of_the_range_cures_it(tmp_path):
    x = np.random.default_rng(0).uniform(0.8, 1, size=(64, 8)).astype(np.float32)
    data = dataset(tmp_path, x=x)
    model = product(np.ones((8, 3)))
    _, details = quantize_static(model, QuantizeStatic(reduce_range=False), Context(tmp_path, threads=1), data)
    found = details["cpus_without_vnni"]
    assert (found["same_sums"], [row["node"] for row in found["layers"]]) == (False, ["product"])
    assert found["layers"][0]["pairs"] == 1.0
    assert 0 < found["lowest_sqnr_db"] < 20
    assert "'product'" in details["notes"][0]
    _, details = quantize_static(model, QuantizeStatic(reduce_range=True), Context(tmp_path, threads=1), data)
    assert details["cpus_without_vnni"] == {"same_sums": True, "lowest_sqnr_db": None, "layers": []}
    assert details["notes"] == []


def test_small_sums_are_no_reason_to_worry(tmp_path):
    """Weights that could exceed 16 bits meet activations that do not let them."""
    x = np.random.default_rng(0).uniform(0, 0.2, size=(64, 8)).astype(np.float32)
    x[-1] = 1
    spec = QuantizeStatic(reduce_range=False, calibration="minmax")
    model = product(np.ones((8, 3)))
    calibrated = calibrate(model, spec, Context(tmp_path, threads=1), dataset(tmp_path, x=x))
    feed = ModelFeed(dataset(tmp_path, x=x[:8]), summarize(model, 0, 0), "calibration")
    found = saturations(insert(calibrated), calibrated.plan(), feed, Context(tmp_path, threads=1))
    assert [(one.changed, one.sqnr_db) for one in found] == [(0.0, None)]
    assert notes(found) == []


def test_a_convolutional_network(tmp_path):
    _, details = quantize_static(
        digits_model(), QuantizeStatic(reduce_range=False), Context(tmp_path, threads=1), digits_calibration()
    )
    for row in details["cpus_without_vnni"]["layers"]:
        assert 0 < row["pairs"] < 1
        assert 0 <= row["changed"] < 0.5
