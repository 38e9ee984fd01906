"""The smaller parts: protocol, files, alarm, workspace, messages about dead children."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from compression.errors import StepFailed
from workers.alarm import Alarm
from workers.failures import is_allocation_failure, of_dead_child
from workers.files import UnsafeFile, check_plain_name, open_folder, open_regular
from workers.protocol import Failed, Progressed, ProtocolViolation, read_event, write_event
from workers.workspace import Workspace


@pytest.mark.parametrize(
    "event",
    [
        Progressed(phase="pruning", fraction=0.25, message="Layer „1“ 🙂"),
        Failed(code="not_onnx", message="No.", retryable=False),
    ],
)
def test_events_survive_the_wire(event):
    line = write_event(event)
    assert line.count(b"\n") == 1
    assert read_event(line) == event


def test_violations_say_where():
    with pytest.raises(ProtocolViolation, match="fraction"):
        read_event(b'{"type": "progress", "phase": "x", "fraction": 2}')


@pytest.mark.parametrize("name", ["model.onnx", "a", "_x-1+2@3.bin", "x" * 255])
def test_plain_names_are_kept(name):
    assert check_plain_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", ".x", "a/b", "a\\b", "a\0b", "a\nb", "-x", "x" * 256, "é"])
def test_other_names_are_refused(name):
    with pytest.raises(UnsafeFile):
        check_plain_name(name)


@pytest.mark.parametrize("path", ["..", "a/../..", "/etc", "link", "a/link", "missing", "file", "a\0"])
def test_folders_are_not_left(tmp_path, path):
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (root / "file").touch()
    (root / "link").symlink_to(tmp_path)
    (root / "a" / "link").symlink_to(root)
    with pytest.raises(UnsafeFile), open_folder(root, path):
        pass


def test_a_regular_file_is_read(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(b"content")
    with open_folder(tmp_path, "a") as folder, open_regular(folder, "file") as file:
        assert file.read() == b"content"


@pytest.mark.parametrize(
    ("returncode", "log", "code", "words"),
    [
        (-9, "", "child_killed", "SIGKILL"),
        (137, "", "child_killed", "SIGKILL"),
        (-11, "", "child_crashed", "SIGSEGV"),
        (139, "", "child_crashed", "SIGSEGV"),
        (-6, "what(): std::bad_alloc", "out_of_memory", "100 MiB"),
        (-6, "assertion failed", "child_crashed", "SIGABRT"),
        (1, "ImportError: no such file", "child_crashed", "exit status 1"),
        (1, "ImportError: x.so: failed to map segment from shared object", "out_of_memory", "100 MiB"),
        (1, "MemoryError", "out_of_memory", "100 MiB"),
        (255, "", "child_crashed", "exit status 255"),
    ],
)
def test_how_a_child_died(returncode, log, code, words):
    error = of_dead_child(returncode, log, 100 * 2**20)
    assert error.code == code
    assert words in error.message
    assert error.retryable is (code != "out_of_memory")


@pytest.mark.parametrize(
    ("returncode", "gpu", "code"), [(-6, "Card, 8.0 GiB", "gpu_out_of_memory"), (-6, "", "child_crashed")]
)
def test_a_child_that_dies_of_its_gpus_memory(returncode, gpu, code):
    log = "terminate called: bfc_arena.cc:376 Failed to allocate memory for requested buffer of size 123"
    error = of_dead_child(returncode, log if gpu else "CUDA error: illegal address", None, gpu_name=gpu)
    assert error.code == code
    assert gpu in error.message
    assert error.retryable is (code == "child_crashed")


@pytest.mark.parametrize(
    ("error", "gpu", "code"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."), "Card, 8.0 GiB", "gpu_out_of_memory"),
        (
            RuntimeError("bfc_arena.cc:376 Failed to allocate memory for requested buffer of size 1"),
            "",
            "out_of_memory",
        ),
        (
            RuntimeError("bfc_arena.cc:376 Failed to allocate memory for requested buffer of size 1"),
            "Card",
            "gpu_out_of_memory",
        ),
        (
            StepFailed("benchmark_failed", "'a' does not run: CUDA failure 2: out of memory"),
            "Card",
            "gpu_out_of_memory",
        ),
        (StepFailed("gpu_out_of_memory", "Lower training.batch_size to 3 or less."), "Card", "gpu_out_of_memory"),
        (MemoryError(), "Card", "out_of_memory"),
    ],
)
def test_what_a_child_answers_when_memory_is_short(error, gpu, code):
    from workers.execution import _failure

    failed = _failure(error, None, gpu)
    assert (failed.code, failed.retryable) == (code, False)
    if isinstance(error, StepFailed) and error.code == code:
        assert failed.message == error.message
    elif code == "gpu_out_of_memory":
        assert gpu in failed.message


def test_an_allocation_failure_is_found_behind_other_errors():
    error = ValueError("could not read the model")
    error.__cause__ = RuntimeError("while loading")
    error.__cause__.__context__ = MemoryError()
    assert is_allocation_failure(error)
    assert is_allocation_failure(RuntimeError("[ONNXRuntimeError] : 6 : std::bad_alloc"))
    assert not is_allocation_failure(ValueError("the memory of this"))


def test_an_alarm_rings_at_once_then_later_or_when_asked():
    alarm = Alarm()
    assert alarm.wait(60)
    started = time.monotonic()
    threading.Timer(0.1, alarm.ring_in, (0.1,)).start()
    assert alarm.wait(60)
    assert 0.15 < time.monotonic() - started < 20
    threading.Timer(0.1, alarm.stop).start()
    assert not alarm.wait(60)


def test_folders_of_dead_workers_are_removed_and_those_of_live_ones_are_not(tmp_path):
    mine, other = Workspace(tmp_path, "wrk_mine"), Workspace(tmp_path, "wrk_other")
    program = (
        "import os, sys, pathlib; from workers.workspace import Workspace; "
        "w = Workspace(pathlib.Path(sys.argv[1]), 'wrk_dead'); (w.folder / 'x').touch(); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
    assert (tmp_path / "wrk_dead" / "x").exists()
    mine.remove_abandoned()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["wrk_mine", "wrk_mine.lock", "wrk_other", "wrk_other.lock"]
    other.close()
    mine.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("workers.service", {"torch", "onnx", "onnxruntime", "numpy"}),
        ("workers.runner", {"celery", "sqlalchemy", "torch"}),
        ("workers.execution", {"celery", "sqlalchemy", "torch"}),
    ],
)
def test_processes_import_what_they_need_and_no_more(module, forbidden):
    program = f"import sys, {module}; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert forbidden & set(modules) == set()


def test_a_backslash_is_no_nul():
    """Libraries quote what they read: the six characters are text like any other, U+0000 itself is refused."""
    quoted = Failed(code="not_a_dataset", message="control character (\\u0000-\\u001F)", retryable=False)
    assert read_event(write_event(quoted).strip()) == quoted
    nul = Failed(code="not_a_dataset", message="\\\0", retryable=False)
    with pytest.raises(ProtocolViolation):
        read_event(write_event(nul).strip())
