"""A coded result is a model again: downloaded, uploaded, decoded on the server, and given back as the ONNX file."""

from __future__ import annotations

import httpx
import pytest

from levity import LevityError
from tests.acceptance.harness import BRIEF


def test_a_coded_result_comes_back_as_a_model(service, inputs, tmp_path):
    client = service.client
    steps = ({"type": "prune", "amount": 0.8}, {"type": "cluster", "clusters": 8}, {"type": "encode"})
    job = client.wait(inputs.submit(steps, benchmark=BRIEF).id, timeout=60)
    service.assert_settled(job, "succeeded")
    graph, coded = (client.download(job.id, name, tmp_path) for name in ("model.onnx", "model.levity"))
    sizes = {metric.name: metric for metric in job.metrics}
    assert sizes["coded_bytes"].result == coded.stat().st_size < graph.stat().st_size / 8

    model = client.create_model(coded)
    assert model.size == graph.stat().st_size
    url = f"http://127.0.0.1:{service.port}/v1/models/{model.id}/content"
    assert httpx.get(url).content == graph.read_bytes()

    coded.write_bytes(coded.read_bytes()[:-1000])
    with pytest.raises(LevityError, match="stream") as caught:
        client.create_model(coded)
    assert caught.value.code == "levity_truncated"
