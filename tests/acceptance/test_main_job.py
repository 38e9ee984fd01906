"""What Levity is for, checked against what the files themselves say."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.acceptance.conftest import DIGITS
from tests.acceptance.harness import BRIEF

PRUNE_AND_INT8 = ({"type": "prune", "amount": 0.5}, {"type": "quantize", "mode": "static"})


def accuracy(path, data):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": data["image"]})
    return float((logits.argmax(1) == data["labels"]).mean())


def test_prune_and_int8(service, inputs, tmp_path):
    client = service.client
    data = {"calibration": inputs.calibration, "evaluation": inputs.evaluation}
    events = []
    # A seed that no other test uses: every step is computed here, none comes from the cache.
    job = inputs.submit(PRUNE_AND_INT8, data=data, benchmark={"max_seconds": 1}, seed=20_151_001)
    job = client.wait(job.id, on_event=events.append, timeout=60)
    service.assert_settled(job, "succeeded")

    assert [event.type for event in events][:2] == ["queued", "running"]
    assert events[-1].type == "succeeded"
    progress = [event.data["progress"] for event in events if event.type == "progress"]
    assert progress == sorted(progress)
    assert {"pruning", "quantizing", "benchmarking"} <= {event.data.get("phase") for event in events}

    for artifact in job.artifacts:
        path = client.download(job.id, artifact.name, tmp_path)
        assert hashlib.sha256(path.read_bytes()).hexdigest() == artifact.sha256
        assert path.stat().st_size == artifact.size

    metrics = {metric.name: metric for metric in job.metrics}
    original, compressed = DIGITS / "digits-cnn.onnx", tmp_path / "model.onnx"
    assert metrics["file_bytes"].original == original.stat().st_size
    assert metrics["file_bytes"].result == compressed.stat().st_size
    with np.load(DIGITS / "evaluation.npz", allow_pickle=False) as archive:
        evaluation = dict(archive)
    assert metrics["accuracy"].original == pytest.approx(accuracy(original, evaluation), abs=1e-9)
    # Sums in another order may tip a sample that lies on the edge between two classes.
    assert metrics["accuracy"].result == pytest.approx(
        accuracy(compressed, evaluation), abs=2 / len(evaluation["labels"])
    )
    assert metrics["accuracy"].result > 0.9

    operators = {node.op_type for node in onnx.load(compressed).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators
    report = json.loads((tmp_path / "report.json").read_text())
    assert [step["type"] for step in report["steps"]] == ["prune", "quantize"]
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert hashlib.sha256(original.read_bytes()).hexdigest() in json.dumps(manifest)


def test_pruning_halves_the_weights_that_are_not_zero(service, inputs, tmp_path):
    job = service.client.wait(inputs.submit().id, timeout=30)
    service.assert_settled(job, "succeeded")
    weights = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load(service.client.download(job.id, "model.onnx", tmp_path)).graph.initializer
    }
    large = {name: array for name, array in weights.items() if array.ndim > 1}
    assert large
    zeros = sum(int((array == 0).sum()) for array in large.values())
    assert zeros / sum(array.size for array in large.values()) == pytest.approx(0.5, abs=0.01)


def test_same_key_is_the_same_job(service, inputs):
    jobs = [inputs.submit(idempotency_key="acceptance-key", name="one") for _ in range(2)]
    assert jobs[0].id == jobs[1].id
    service.assert_settled(service.client.wait(jobs[0].id, timeout=30), "succeeded")


def test_finished_step_is_not_computed_again(service, inputs):
    """Two jobs that begin alike share what the first one computed."""
    shared_start = {"type": "prune", "amount": 0.31}
    first = service.client.wait(inputs.submit([shared_start]).id, timeout=30)
    second = service.client.wait(inputs.submit([shared_start, {"type": "quantize", "mode": "float16"}]).id, timeout=30)
    assert [step["cached"] for step in first.steps] == [False]
    assert [step["cached"] for step in second.steps] == [True, False]


def test_model_in_use_is_kept(service, inputs):
    from levity import LevityError

    job = inputs.submit(benchmark=BRIEF | {"max_seconds": 2, "max_rounds": 100_000})
    with pytest.raises(LevityError) as error:
        service.client.delete_model(inputs.model)
    assert (error.value.status, error.value.code) == (409, "in_use")
    assert job.id in error.value.message
    service.assert_settled(service.client.wait(job.id, timeout=30), "succeeded")
