"""A fresh process loads a file and compares what it gives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from compression.errors import StepFailed
from compression.verification import Verifier, difference, reference_outputs
from tests.compression.models import cnn, make_model, save, value


@pytest.fixture
def picture():
    return {"x": np.random.default_rng(1).standard_normal((3, 1, 8, 8)).astype(np.float32)}


def test_accepts_what_the_file_gives_and_leaves_nothing_behind(tmp_path, picture):
    path = save(cnn(), tmp_path / "model.onnx")
    with Verifier(tmp_path) as verifier:
        verifier.ready()
        verifier.verify(path, picture, reference_outputs(path, picture, 1))
        verifier.verify(path, picture, reference_outputs(path, picture, 1))
        pid = verifier.pid
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_names_the_output_and_its_largest_difference(tmp_path, picture):
    path = save(cnn(), tmp_path / "model.onnx")
    expected = reference_outputs(path, picture)
    expected["logits"][1, 2] += 0.25
    with Verifier(tmp_path) as verifier, pytest.raises(StepFailed, match=r"'logits' differs by up to 0\.25 ") as caught:
        verifier.verify(path, picture, expected)
    assert caught.value.code == "verification_failed"


def test_a_file_that_does_not_load_is_refused(tmp_path, picture):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model")
    with Verifier(tmp_path) as verifier, pytest.raises(StepFailed, match=r"The runtime refuses 'model\.onnx'"):
        verifier.verify(path, picture, {})


def test_a_missing_output_is_named(tmp_path, picture):
    path = save(cnn(), tmp_path / "model.onnx")
    with (
        Verifier(tmp_path) as verifier,
        pytest.raises(StepFailed, match=r"'model\.onnx', loaded anew: there is no output 'scores'"),
    ):
        verifier.verify(path, picture, {"scores": np.zeros(1)})


def test_a_crash_is_an_error_that_names_the_signal(tmp_path, picture):
    path = save(cnn(), tmp_path / "model.onnx")
    with Verifier(tmp_path) as verifier:
        verifier.ready()
        os.kill(verifier.pid, signal.SIGKILL)
        with pytest.raises(StepFailed, match="was killed by SIGKILL"):
            verifier.verify(path, picture, {})


def test_too_slow_is_an_error(tmp_path, picture):
    path = save(cnn(), tmp_path / "model.onnx")
    with Verifier(tmp_path, timeout=0.5) as verifier:
        verifier.ready()
        os.kill(verifier.pid, signal.SIGSTOP)
        with pytest.raises(StepFailed, match="gave no answer within"):
            verifier.verify(path, picture, {})


def test_dies_with_its_parent(tmp_path):
    code = (
        "import sys, pathlib; from compression.verification import Verifier\n"
        "v = Verifier(pathlib.Path(sys.argv[1])); v.ready(); print(v.pid, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        child = int(parent.stdout.readline())
        assert Path(f"/proc/{child}").exists()
        parent.kill()
    deadline = time.monotonic() + 10
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _runs(child)


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_hostile_tensor_names_stay_inside_the_folder(tmp_path):
    name = "../../escape:0"
    model = make_model(
        [helper.make_node("Relu", [name], ["file"], "relu")], [value(name, [2])], [value("file", [2])], {}
    )
    path = save(model, tmp_path / "model.onnx")
    with Verifier(tmp_path) as verifier:
        verifier.verify(path, {name: np.array([-1, 2], np.float32)}, {"file": np.array([0, 2], np.float32)})
    assert not (tmp_path.parent / "escape:0.npy").exists()


def test_reference_outputs_are_those_of_the_graph(tmp_path):
    model = make_model(
        [helper.make_node("Add", ["a", "a"], ["twice"], "add")],
        [value("a", ["n"], TensorProto.INT64)],
        [value("twice", ["n"], TensorProto.INT64)],
        {},
    )
    path = save(model, tmp_path / "model.onnx")
    outputs = reference_outputs(path, {"a": np.array([1, 2, 3])}, threads=1)
    assert list(outputs) == ["twice"]
    assert outputs["twice"].tolist() == [2, 4, 6]


def test_the_tolerance_is_relative_to_the_range_with_zero():
    expected = np.array([0, 50, 100], np.float32)
    assert difference("y", expected + np.float32(0.0009), expected) is None
    assert difference("y", expected + np.float32(0.0012), expected) == (
        "output 'y' differs by up to 0.0012 over a range of 100."
    )
    # A single value has no range of its own.
    assert difference("y", np.array([100.0005]), np.array([100.0])) is None


@pytest.mark.parametrize(
    ("found", "expected", "said"),
    [
        (np.zeros((2, 1)), np.zeros(2), "is float64 [2, 1] and should be float64 [2]"),
        (np.zeros(2, np.float32), np.zeros(2), "is float32 [2] and should be float64 [2]"),
        (np.array([np.nan, 1]), np.array([0.0, 1]), "NaN or infinity in other places"),
        (np.array([0.0, 1]), np.array([np.inf, 1]), "NaN or infinity in other places"),
        (np.array([True]), np.array([False]), "differs by up to 1 over a range of 0"),
        (np.array(["a"]), np.array(["b"]), "output 'y' differs."),
    ],
)
def test_differences_in_kind(found, expected, said):
    assert said in difference("y", found, expected)


@pytest.mark.parametrize(
    "same", [np.array([np.nan, np.inf, -np.inf, 1]), np.array(["a"]), np.empty((0, 3)), np.array([3], np.uint8)]
)
def test_equal_arrays_do_not_differ(same):
    assert difference("y", same.copy(), same) is None
