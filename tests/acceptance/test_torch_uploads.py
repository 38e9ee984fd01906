"""Weights without a graph: registered with their architecture, compressed, and loaded back by their owner."""

from __future__ import annotations

import json
import os
import pickle
import zipfile

import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from levity import LevityError
from tests.acceptance.conftest import DIGITS
from tests.acceptance.harness import BRIEF, PRUNE
from tests.acceptance.test_command_line import levity

pytestmark = pytest.mark.long

LAYERS = [
    {"type": "linear", "in_features": 784, "out_features": 512},
    {"type": "relu"},
    {"type": "linear", "in_features": 512, "out_features": 10},
]
SQUEEZENET = {"name": "torchvision:squeezenet1_1", "arguments": {"num_classes": 10}}
PICTURE = {"shape": [3, 32, 32]}


def classifier():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 10))


def squeezenet():
    from torchvision.models import squeezenet1_1

    torch.manual_seed(0)
    return squeezenet1_1(num_classes=10).eval()


def share_of_zeros(module):
    weights = [tensor for tensor in module.state_dict().values() if tensor.ndim > 1]
    return sum(int((tensor == 0).sum()) for tensor in weights) / sum(tensor.numel() for tensor in weights)


def assert_computes(path, module, *shape):
    """The downloaded graph is the module, at a batch size that nobody named."""
    array = torch.randn(5, *shape)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = module(array)
    found = torch.from_numpy(session.run(None, {"input": array.numpy()})[0])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_network_of_torchvision_comes_back(service, tmp_path):
    client = service.client
    torch.save(squeezenet().state_dict(), tmp_path / "squeezenet.pt")
    upload = client.upload(tmp_path / "squeezenet.pt")
    model = client.create_model(upload, architecture=SQUEEZENET, input=PICTURE, wait=120)
    assert model.state == "ready"
    assert model.source["architecture"] == SQUEEZENET
    assert model.source["file"]["sha256"] == upload.sha256
    assert model.summary["inputs"] == [{"name": "input", "dtype": "float32", "shape": ["batch", 3, 32, 32]}]

    job = client.wait(client.submit(model, PRUNE, benchmark=BRIEF).id, timeout=60)
    service.assert_settled(job, "succeeded")
    back = squeezenet()
    back.load_state_dict(load_file(client.download(job.id, "weights.safetensors", tmp_path)), strict=True)
    assert share_of_zeros(back) == pytest.approx(0.5, abs=0.01)
    assert_computes(client.download(job.id, "model.onnx", tmp_path), back, 3, 32, 32)


def test_layers_from_the_command_line(service, tmp_path):
    save_file(classifier().state_dict(), tmp_path / "mlp.safetensors")
    where = ["--url", service.client.base_url, "--out", tmp_path / "out"]
    step = ["--step", '{"type": "cluster", "clusters": 8}']
    architecture = ["--architecture", json.dumps({"layers": LAYERS})]
    done = levity("compress", tmp_path / "mlp.safetensors", *architecture, *step, *where)
    assert done.returncode == 0, done.stderr
    back = classifier()
    back.load_state_dict(load_file(tmp_path / "out" / "weights.safetensors"), strict=True)
    assert all(len(torch.unique(back[position].weight)) == 8 for position in (0, 2))
    assert_computes(tmp_path / "out" / "model.onnx", back, 784)


class Payload:
    def __init__(self, canary):
        self.canary = str(canary)

    def __reduce__(self):
        return (os.system, (f"touch {self.canary}",))


def malicious(path):
    torch.save({"0.weight": Payload(path.with_name("canary"))}, path)


def bare_pickle(path):
    path.write_bytes(pickle.dumps(Payload(path.with_name("canary"))))


def bomb(path):
    torch.save({"0.weight": torch.zeros(1 << 22)}, path.with_name("small"))
    with zipfile.ZipFile(path.with_name("small")) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))


def cut_short(path):
    torch.save(classifier().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-1000])


def whole_module(path):
    torch.save(classifier(), path)


def other_keys(path):
    save_file({f"fc.{key}": value for key, value in classifier().state_dict().items()}, path)


def graph(path):
    path.write_bytes((DIGITS / "digits-cnn.onnx").read_bytes())


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (malicious, "pickle_refused"),
        (bare_pickle, "legacy_pickle"),
        (whole_module, "pickle_refused"),
        (bomb, "archive_unsafe"),
        (cut_short, "truncated_model"),
        (other_keys, "state_dict_mismatch"),
        (graph, "architecture_with_onnx"),
    ],
)
def test_files_that_are_refused(service, tmp_path, make, code):
    before = list(service.workers)
    make(tmp_path / "weights.pt")
    with pytest.raises(LevityError) as error:
        service.client.create_model(tmp_path / "weights.pt", architecture={"layers": LAYERS}, wait=120)
    assert error.value.code == code
    assert error.value.message.endswith(".")
    assert not (tmp_path / "canary").exists()
    assert all(worker.alive for worker in before)


def test_weights_without_their_architecture(service, tmp_path):
    save_file(classifier().state_dict(), tmp_path / "mlp.safetensors")
    with pytest.raises(LevityError) as error:
        service.client.create_model(tmp_path / "mlp.safetensors")
    assert error.value.code == "architecture_missing"
    assert '"architecture"' in error.value.message
