"""Models in ONNX Runtime."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from compression.runtime import DoesNotRun, Model
from tests.compression.models import mlp, save, two_inputs


def test_the_runtime_reports_to_nobody(tmp_path):
    """It would keep what it is about to send, and an identifier of this machine, below the home folder."""
    path = save(mlp(), tmp_path / "model.onnx")
    home = tmp_path / "home"
    home.mkdir()
    # It keeps quiet under CI by itself.
    quiet = ("CI", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "PYTEST_CURRENT_TEST")
    environment = {name: value for name, value in os.environ.items() if name not in quiet}
    subprocess.run(
        [sys.executable, "-c", f"from compression.runtime import Model; Model({str(path)!r}, 1)"],
        env=environment | {"HOME": str(home), "TMPDIR": str(home)},
        check=True,
        timeout=60,
    )
    assert list(home.iterdir()) == []


def test_outputs_by_name_are_those_of_the_graph(tmp_path):
    model = two_inputs()
    path = save(model, tmp_path / "model.onnx")
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((3, 4)), rng.standard_normal((3, 6))
    weights = {tensor.name: np.frombuffer(tensor.raw_data, np.float32) for tensor in model.graph.initializer}
    expected = a @ weights["wa"].reshape(4, 5) + b @ weights["wb"].reshape(6, 5)
    # Doubles become the single precision that the model takes.
    np.testing.assert_allclose(Model(path, 1).tensors({"b": b, "a": a})["y"], expected, rtol=1e-4, atol=1e-5)


def test_what_the_runtime_refuses_is_an_error_with_its_reason(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(DoesNotRun, match="Protobuf"):
        Model(path, 1)
    with pytest.raises(DoesNotRun, match="dimensions"):
        Model(save(mlp(features=64), path), 1).run({"x": np.zeros((1, 63), np.float32)})
