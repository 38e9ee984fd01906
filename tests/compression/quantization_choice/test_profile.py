"""Kernels and the nodes that they belong to."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from compression.context import Context
from compression.quantization.choice.profile import attribute, durations, kernel_times
from compression.quantization.static import calibrate, insert
from compression.spec import QuantizeStatic
from tests.compression.models import make_model, mlp, value
from tests.compression.quantizing import dataset, digits_calibration, digits_model


def event(name, microseconds, category="Node"):
    return {"cat": category, "name": f"{name}_kernel_time", "dur": microseconds}


def test_the_fastest_call_counts_but_not_the_first_two():
    events = [event("conv", time) for time in (1, 2, 9, 7, 8)]
    events += [event("conv", 0, "Session"), {"cat": "Node", "name": "conv_fence_before", "dur": 0}, event("relu", 5)]
    assert durations(events) == {"conv": pytest.approx(7e-6), "relu": pytest.approx(5e-6)}


def graph_of(*nodes):
    return make_model([helper.make_node(*node) for node in nodes], [value("x", [4])], [value(nodes[-1][2][0], [4])], {})


def kernels_of(*kernels):
    """A graph as the runtime writes it, unchecked: operators are its own."""
    nodes = [helper.make_node(operator, ["x"], outputs, name) for operator, outputs, name in kernels]
    return helper.make_model(helper.make_graph(nodes, "kernels", [], []))


def test_kernels_are_found_under_the_names_that_the_runtime_gives_them():
    graph = graph_of(
        ("Relu", ["x"], ["a"], "first"),
        ("Sigmoid", ["a"], ["s"], "gate"),
        ("Mul", ["a", "s"], ["b"], "silu"),
        ("Relu", ["b"], ["c"], "last"),
        ("Neg", ["c"], ["y"], "end"),
    )
    kernels = kernels_of(
        ("Conv", ["reorder_token_0"], "a_nchwc"),
        ("QuickGelu", ["reorder_token_1"], "silu/QuickGeluFusion/"),
        ("QLinearConv", ["last"], "last_token_7"),
        ("Fused", ["y"], "some_new_name"),
        ("ReorderOutput", ["b"], "ReorderOutput"),
        ("DequantizeLinear", ["c"], "c_DequantizeLinear"),
        ("Transpose", ["transposed"], "Transpose_token_3"),
    )
    seconds = {node.name: float(place + 1) for place, node in enumerate(kernels.graph.node)}
    times = attribute(seconds, kernels, graph)
    assert times.nodes == {"first": 1.0, "silu": 2.0, "last": 3.0, "end": 4.0}
    assert times.conversions == 5.0 + 6.0 + 7.0
    assert times.total == 28.0


def test_a_model_and_its_quantized_form_are_profiled_by_the_same_nodes(tmp_path):
    context = Context(workdir=tmp_path, threads=1)
    calibrated = calibrate(digits_model(), QuantizeStatic(calibration_samples=8), context, digits_calibration())
    image = np.zeros((1, 1, 8, 8), np.float32)
    models = [calibrated.graph, insert(calibrated)]
    in_float, in_integers = kernel_times(models, calibrated.graph, {"image": image}, context, runs=3)
    layers = set(calibrated.anatomy.layers)
    assert layers <= set(in_integers.nodes)
    # In float some kernels bear the name of the activation that they compute with their layer.
    tails = {calibrated.anatomy.tails[layer] for layer in layers}
    by_tail = {node.name for node in calibrated.graph.graph.node if node.output[0] in tails}
    assert len((layers | by_tail) & set(in_float.nodes)) >= len(layers)
    assert all(0 <= seconds < 1 for times in (in_float, in_integers) for seconds in times.nodes.values())
    assert not list(tmp_path.iterdir())


def test_nothing_of_the_runtime_is_left_when_a_model_does_not_run(tmp_path):
    context = Context(workdir=tmp_path, threads=1)
    calibrated = calibrate(mlp(), QuantizeStatic(), context, dataset(tmp_path, x=np.ones((4, 64), np.float32)))
    with pytest.raises(Exception, match="profiling"):
        kernel_times([calibrated.graph], calibrated.graph, {"x": np.ones((1, 3), np.float32)}, context, runs=1)
    assert [path.name for path in tmp_path.iterdir()] == ["calibration.npz"]
