"""A model that is not to be read into memory: uploaded in two files, quantized from them, given back in two files."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from tests.acceptance.harness import BRIEF
from tests.compression.models import make_model, save_external, value, weight

MIB = 2**20


def test_a_model_larger_than_what_is_held(service, tmp_path):
    rng = np.random.default_rng(0)
    weights = {"first": weight(rng, 512, 1024), "second": weight(rng, 1024, 64)}
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["h"], "first"),
        helper.make_node("MatMul", ["h", "second"], ["y"], "second"),
    ]
    model = make_model(nodes, [value("x", ["n", 512])], [value("y", ["n", 64])], weights)
    graph = save_external(model, tmp_path / "model.onnx")
    client = service.client
    service.cpu_worker.stop()
    service.start_worker("cpu", held_model_bytes=MIB)
    try:
        uploaded = client.create_model(graph, external_data={"weights.bin": tmp_path / "weights.bin"})
        step = {"type": "quantize", "mode": "weight_only", "weight_bits": 8}
        job = client.wait(client.submit(uploaded.id, (step,), benchmark=BRIEF).id, timeout=60)
        service.assert_settled(job, "succeeded")
        (tmp_path / "out").mkdir()
        files = [client.download(job.id, name, tmp_path / "out") for name in ("model.onnx", "model.onnx.data")]
        assert files[0].stat().st_size < 4000
        assert files[1].stat().st_size < 0.3 * (tmp_path / "weights.bin").stat().st_size
        onnx.checker.check_model(str(files[0]))
        x = rng.standard_normal((2, 512)).astype(np.float32)
        found, expected = (onnxruntime.InferenceSession(path).run(None, {"x": x})[0] for path in (files[0], graph))
        assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)
    finally:
        service.cpu_worker.stop()
