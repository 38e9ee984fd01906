"""Gathers that only reshape, as torch's exporter writes `as_strided`."""

from __future__ import annotations

import numpy as np
from onnx import helper

from tests.compression import models
from tests.compression.channel_pruning.oracle import prune, run


def test_channels_follow_through_strides(tmp_path):
    """(batch, 6, 1, 1) flattened and gathered at 6 x sample + channel, which the batch decides at run time."""
    rng = np.random.default_rng(0)
    node = helper.make_node
    weights = {
        "w": models.weight(rng, 6, 3, 2, 2),
        "head": models.weight(rng, 4, 6),
        "flat": np.array([-1], np.int64),
        "channels": np.arange(6).reshape(1, 6),
        "row": np.array(6, np.int64),
        "one": np.array([1], np.int64),
        "none": np.array(0, np.int64),
        "step": np.array(1, np.int64),
    }
    nodes = [
        node("Conv", ["x", "w"], ["c"], "conv"),
        node("Reshape", ["c", "flat"], ["f"], "flatten"),
        node("Shape", ["x"], ["shape"], "shape"),
        node("Gather", ["shape", "none"], ["batch"], "batch"),
        node("Range", ["none", "batch", "step"], ["samples"], "samples"),
        node("Mul", ["samples", "row"], ["starts"], "starts"),
        node("Unsqueeze", ["starts", "one"], ["column"], "column"),
        node("Add", ["column", "channels"], ["places"], "places"),
        node("Gather", ["f", "places"], ["g"], "strides"),
        node("Gemm", ["g", "head"], ["y"], "head", transB=1),
    ]
    value = models.value
    model = models.make_model(nodes, [value("x", ["batch", 3, 2, 2])], [value("y", ["batch", 4])], weights)
    pruned, details = prune(model, tmp_path, amount=0.5)
    assert details["groups"] == [{"layers": ["conv"], "channels_before": 6, "channels": 3}]
    assert "Gather" not in {one.op_type for one in pruned.graph.node}
    x = rng.standard_normal((5, 3, 2, 2)).astype(np.float32)
    after = models.weights_of(pruned)
    expected = x.reshape(5, 12) @ after["w"].reshape(3, 12).T @ after["head"].T
    np.testing.assert_allclose(run(pruned, {"x": x})[0], expected, atol=1e-5)
