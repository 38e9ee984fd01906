"""Steps that train, after and before others, through HTTP; checked against what the files themselves say."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from compression.graph.inspect import summarize
from levity import LevityError
from tests.acceptance.conftest import DIGITS
from tests.acceptance.harness import BRIEF
from tests.acceptance.test_main_job import accuracy

pytestmark = pytest.mark.long

SHORT = {"epochs": 3, "batch_size": 32, "learning_rate": 0.003, "teacher": "original"}
EVERYTHING_THAT_KEEPS_THE_NETWORK = (
    {"type": "prune_channels", "amount": 0.25, "round_to": 4},
    {"type": "finetune", "training": SHORT},
    {"type": "prune", "amount": 0.6, "scope": "global", "schedule": "gradual", "training": SHORT},
    {"type": "cluster", "clusters": 16, "training": SHORT},
    {"type": "quantize", "mode": "static"},
)
A_STUDENT = (
    {
        "type": "distill",
        "student": {"kind": "architecture", "name": "mobilenet_v2", "width": 0.25},
        "training": {"epochs": 2, "batch_size": 64},
    },
    {"type": "factorize", "energy": 0.9},
    {"type": "quantize", "mode": "qat", "weight_bits": 4, "training": {"epochs": 1}},
)


@pytest.fixture(scope="session")
def training(shared):
    shared.ensure()  # an earlier test may have failed and left none
    return shared.client.create_dataset(DIGITS / "training.npz").id


@pytest.fixture(scope="module")
def evaluation_arrays():
    with np.load(DIGITS / "evaluation.npz", allow_pickle=False) as archive:
        return dict(archive)


def test_everything_that_keeps_the_network(service, inputs, training, tmp_path, evaluation_arrays):
    client = service.client
    data = {"calibration": inputs.calibration, "training": training, "evaluation": inputs.evaluation}
    events = []
    job = inputs.submit(EVERYTHING_THAT_KEEPS_THE_NETWORK, data=data, benchmark=BRIEF)
    job = client.wait(job.id, on_event=events.append, timeout=170)
    service.assert_settled(job, "succeeded")
    assert [step["type"] for step in job.steps] == ["prune_channels", "finetune", "prune", "cluster", "quantize"]
    assert "training" in {event.data.get("phase") for event in events}

    original = onnx.load(DIGITS / "digits-cnn.onnx")
    path = client.download(job.id, "model.onnx", tmp_path)
    result = onnx.load(path)
    before, after = summarize(original, 0, 0), summarize(result, 0, 0)
    # A quarter of the channels on both sides of most layers.
    assert after.parameters < 0.65 * before.parameters
    assert after.nonzero_parameters / after.parameters == pytest.approx(0.4, abs=0.02)
    assert accuracy(path, evaluation_arrays) > 0.85
    # The same beginning again is not computed again, trained steps included.
    again = inputs.submit(EVERYTHING_THAT_KEEPS_THE_NETWORK[:4], data=data, benchmark=BRIEF)
    again = client.wait(again.id, timeout=60)
    assert [step["cached"] for step in again.steps] == [True] * 4
    clustered = onnx.load(client.download(again.id, "model.onnx", tmp_path / "clustered.onnx"))
    weights = [onnx.numpy_helper.to_array(tensor) for tensor in clustered.graph.initializer if len(tensor.dims) > 1]
    assert max(len(np.unique(values)) for values in weights) <= 16


def test_a_student_is_factorized_and_trained_for_few_bits(service, inputs, training, tmp_path):
    client = service.client
    data = {"training": training, "evaluation": inputs.evaluation}
    job = client.wait(inputs.submit(A_STUDENT, data=data, benchmark=BRIEF).id, timeout=170)
    service.assert_settled(job, "succeeded")
    result = onnx.load(client.download(job.id, "model.onnx", tmp_path))
    assert [value.name for value in result.graph.input] == ["image"]
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in result.graph.node}


def test_training_needs_its_data(service, inputs):

    with pytest.raises(LevityError) as caught:
        inputs.submit([{"type": "finetune"}], data={"evaluation": inputs.evaluation})
    assert caught.value.code == "training_data_missing"
