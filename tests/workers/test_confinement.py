"""What a child can and cannot do."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from catalog.jobs.states import Queue
from catalog.settings import Settings
from tests.workers.conftest import MIB, Bench, require_level
from workers.capabilities import describe
from workers.children import Children
from workers.protocol import Limits
from workers.sandbox import Sandbox, SandboxUnavailable


@pytest.fixture
def listeners(tmp_path) -> Iterator[dict[str, object]]:
    """A TCP port and a Unix socket on which somebody listens."""
    unix = str(tmp_path / "socket")
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as local:
        local.bind(unix)
        local.listen()
        yield {"port": tcp.getsockname()[1], "unix": unix}


def look_around(bench: Bench, listeners: dict[str, object]) -> dict[str, object]:
    data = bench.settings.root
    secret = data.parent / "secret"
    secret.write_text("secret")
    private = [str(path) for path in Path.home().iterdir() if path.is_file()]
    paths = [str(data), str(data / "levity.db"), str(secret), *private, "/etc", "/etc/passwd", "/usr", sys.prefix]
    job = bench.run("look_around", paths=paths, **listeners)
    assert job.state == "succeeded", job.error
    return json.loads(bench.artifact(job.id))


def test_bubblewrap_shows_the_libraries_and_nothing_else(tmp_path, template, listeners, monkeypatch):
    require_level("bubblewrap", tmp_path)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    bench = Bench(tmp_path / "data", "bubblewrap", template)
    found = look_around(bench, listeners)
    bench.close()
    assert {"/usr", sys.prefix} <= set(found["readable"])
    # /etc holds the linker's cache alone.
    assert set(found["readable"]) <= {"/usr", sys.prefix, "/etc"}
    assert found["writable"] == []
    assert found["connected"] is False
    assert found["processes"] <= 3
    assert int(found["capabilities"], 16) == 0
    assert found["user_namespaces"] is False
    assert "AWS_SECRET_ACCESS_KEY" not in found["environment"]


def test_limits_are_in_force_at_both_levels(bench_of_each_level, listeners, monkeypatch):
    monkeypatch.setenv("LEVITY_DATABASE_URL_SECRET", "hunter2")
    found = look_around(bench_of_each_level, listeners)
    assert found["address_space"] == 2048 * MIB
    assert found["core"] == 0
    assert not [name for name in found["environment"] if name.startswith(("LEVITY_", "AWS_"))]


def test_data_inside_a_shown_folder_is_hidden(tmp_path):
    require_level("bubblewrap", tmp_path)
    inside = Path(sys.prefix) / "levity-test-data"
    command = Sandbox("bubblewrap", Settings(data_dir=inside), Queue.CPU).command(tmp_path).arguments
    masks = [command[index + 1] for index, word in enumerate(command) if word == "--tmpfs"]
    assert str(inside) in masks


def start_in_a_process_of_its_own(root: Path, level: str) -> tuple[subprocess.Popen[str], int]:
    """A process that starts one waiting child, and the child's process id."""
    program = f"""
import sys, time
from pathlib import Path
from catalog.jobs.states import Queue
from catalog.settings import Settings
from tests.workers.conftest import StandInSandbox
from workers.children import Children
sandbox = StandInSandbox({level!r}, Settings(data_dir=Path({str(root)!r})), Queue.CPU)
children = Children(sandbox, Path({str(root)!r}), warm=0, refill_at_once=True)
print(children.take().pid, flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    return parent, int(parent.stdout.readline())


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("level", ["rlimits", "bubblewrap"])
def test_a_child_dies_with_its_worker(tmp_path, level):
    require_level(level, tmp_path)
    parent, child = start_in_a_process_of_its_own(tmp_path, level)
    time.sleep(1)
    assert running(child)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 5
    while running(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not running(child)


def test_a_child_whose_parent_is_gone_already_ends_at_once(tmp_path):
    limits = Limits(address_space=None, processes=None, die_with=1 if os.getpid() != 1 else 2)
    done = subprocess.run(
        [sys.executable, "-m", "workers.runner", limits.model_dump_json()],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b"")


@pytest.mark.parametrize("at_once", [True, False])
def test_warm_children_wait_and_are_replaced(bench, at_once):
    children = Children(bench.sandbox, bench.settings.folder("work"), warm=2, refill_at_once=at_once)

    def count() -> int:
        # The spawner works in order: once it has answered, what was asked of it before is done.
        children._spawner.submit(lambda: None).result()
        return len(list(bench.settings.folder("work").iterdir()))

    children.prepare()
    assert count() == 2
    taken = children.take()
    assert count() == (3 if at_once else 2)
    children.dismiss(taken)
    children.prepare()
    assert count() == 2
    children.close()
    bench.assert_tidy()


def test_a_spare_that_died_is_not_given_out(bench):
    children = Children(bench.sandbox, bench.settings.folder("work"), warm=1, refill_at_once=True)
    children.prepare()
    children._spawner.submit(lambda: None).result()
    (spare,) = children._spares
    os.kill(spare.pid, signal.SIGKILL)
    while spare.alive():
        time.sleep(0.01)
    taken = children.take()
    assert taken.pid != spare.pid
    assert taken.alive()
    children.dismiss(taken)
    children.close()
    bench.assert_tidy()


def test_auto_falls_back_and_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(Sandbox, "why_not", lambda _self: "no user namespaces.")
    assert Sandbox.choose(Settings(data_dir=tmp_path, sandbox="auto"), Queue.CPU).level == "rlimits"
    assert "no user namespaces" in caplog.text
    with pytest.raises(SandboxUnavailable, match="no user namespaces"):
        Sandbox.choose(Settings(data_dir=tmp_path, sandbox="bubblewrap"), Queue.CPU)


def test_gpu_children_have_no_limit_on_address_space(tmp_path):
    assert Sandbox("rlimits", Settings(data_dir=tmp_path), Queue.GPU).memory_limit is None


def test_what_a_worker_says_of_its_sandbox_is_what_a_child_can_do(bench_of_each_level, listeners, monkeypatch):
    monkeypatch.setenv("LEVITY_DATABASE_URL_SECRET", "hunter2")
    bench = bench_of_each_level
    said = describe(bench.sandbox, threads=1)
    found = look_around(bench, listeners)
    secret = str(bench.settings.root.parent / "secret")
    assert said["sandbox"] == bench.sandbox.level
    assert said["reach"] == {
        "network": found["connected"],
        "files": secret in found["readable"] or secret in found["writable"],
        "processes": found["processes"] > 3,
    }
    assert said["memory_limit_bytes"] == found["address_space"]
    # At no level does it get the worker's environment.
    assert "LEVITY_DATABASE_URL_SECRET" not in found["environment"]
    wide_open = bench.sandbox.level == "rlimits"
    assert set(said["reach"].values()) == {wide_open}


def test_a_sandbox_that_holds_nothing_back_is_not_taken_for_one(tmp_path, monkeypatch, caplog):
    confined = Sandbox.wrap

    def wrap(self, *arguments):
        return confined(Sandbox("rlimits", Settings(data_dir=tmp_path), Queue.CPU), *arguments)

    monkeypatch.setattr(Sandbox, "wrap", wrap)
    assert Sandbox.choose(Settings(data_dir=tmp_path, sandbox="auto"), Queue.CPU).level == "rlimits"
    assert "could reach network, files, processes" in caplog.text
