"""The library's own command line, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
from safetensors.numpy import save_file

from tests.compression import models


def call(*arguments):
    command = [sys.executable, "-m", "compression", *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)


@pytest.fixture
def model(tmp_path):
    return models.save(models.cnn(), tmp_path / "model.onnx")


def write_spec(tmp_path, *steps):
    path = tmp_path / "spec.json"
    benchmark = {"max_seconds": 0.05, "min_rounds": 5, "max_rounds": 5}
    path.write_text(json.dumps({"steps": steps, "benchmark": benchmark}))
    return path


def test_run(tmp_path, model):
    pictures, labels = models.digits()
    np.savez(tmp_path / "digits.npz", x=pictures[:100], labels=labels[:100])
    out = tmp_path / "out"
    spec = write_spec(tmp_path, {"type": "prune", "amount": 0.5})
    done = call("run", model, "--spec", spec, "--evaluation", tmp_path / "digits.npz", "--out", out)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["steps"][0]["details"]["sparsity"] == 0.5
    assert {path.name for path in out.iterdir()} == {artifact["name"] for artifact in result["artifacts"]}
    assert "100% reporting" in done.stderr


def test_convert(tmp_path):
    weights = {"fc.weight": np.ones((2, 3), np.float32), "fc.bias": np.zeros(2, np.float32)}
    save_file(weights, tmp_path / "weights")
    layer = {"type": "linear", "in_features": 3, "out_features": 2, "name": "fc"}
    (tmp_path / "source.json").write_text(json.dumps({"architecture": {"layers": [layer]}}))
    done = call("convert", tmp_path / "weights", "--source", tmp_path / "source.json", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parameters"] == 8
    stored = models.weights_of(onnx.load(tmp_path / "out" / "model.onnx"))
    assert all((stored[name] == value).all() for name, value in weights.items())


def test_inspect(model):
    done = call("inspect", model)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["macs"] == 64 * 8 * 9 + 64 * 16 * 72 + 2560


def test_steps():
    done = call("steps")
    assert set(json.loads(done.stdout)["$defs"]) >= {"Prune", "Cluster", "QuantizeStatic"}


def test_errors_are_one_line(tmp_path, model):
    (tmp_path / "text.onnx").write_text("hello")
    done = call("inspect", tmp_path / "text.onnx")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "not_onnx: The bytes are not an ONNX model.\n"
    done = call("inspect", tmp_path / "missing.onnx")
    assert done.returncode == 2
    assert done.stderr.startswith("file_error: ")
    assert done.stderr.count("\n") == 1
    spec = write_spec(tmp_path, {"type": "cluster"}, {"type": "prune", "amount": 0.5})
    done = call("run", model, "--spec", spec, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.startswith("invalid_spec: ")
    assert "would undo" in done.stderr
    assert done.stderr.count("\n") == 1
