"""Which cores calls run on."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from compression.benchmarking import cores as module
from compression.benchmarking.cores import Cores, physical
from compression.runtime import Model
from tests.compression.models import cnn, save

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a thread choose its cores")


def test_the_calling_thread_stays_on_its_core_and_comes_back():
    before = os.sched_getaffinity(0)
    with Cores(1, pin=True) as cores:
        assert cores.why_not == ""
        for load in range(3):
            cores.pin(load)
            assert os.sched_getaffinity(0) == set(cores.of(load))
        cores.release()
        assert os.sched_getaffinity(0) == before
        cores.pin(0)
    assert os.sched_getaffinity(0) == before


def test_each_load_begins_with_another_core(monkeypatch):
    monkeypatch.setattr(module, "allowed", lambda: frozenset({1, 3, 5, 7}))
    monkeypatch.setattr(module.os, "sched_setaffinity", lambda _thread, _cores: None)
    cores = Cores(2, pin=True, start=1)
    assert [cores.of(load) for load in range(4)] == [(3, 5), (5, 7), (7, 1), (1, 3)]
    assert Cores(0, pin=True).threads == 4


def test_one_processor_of_each_physical_core(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_TOPOLOGY", str(tmp_path / "{}"))
    for processor, siblings in ((0, "0,2"), (1, "1,3"), (2, "0,2"), (3, "1,3")):
        (tmp_path / str(processor)).write_text(f"{siblings}\n")
    assert physical([3, 2, 1, 0]) == (0, 1)
    # In a container that may use one of each; and a system that does not tell.
    assert physical([2, 3]) == (2, 3)
    assert physical([8, 9]) == (8, 9)
    # More threads than physical cores get logical ones.
    monkeypatch.setattr(module, "allowed", lambda: frozenset({0, 1, 2, 3}))
    monkeypatch.setattr(module.os, "sched_setaffinity", lambda _thread, _cores: None)
    assert Cores(0, pin=True).threads == 2
    assert Cores(3, pin=True).of(0) == (0, 1, 2)


def test_where_threads_cannot_be_pinned_it_is_said(monkeypatch):
    assert Cores(1, pin=False).why_not == "the job asks for that"
    many = len(os.sched_getaffinity(0)) + 1
    assert Cores(many, pin=True).why_not.startswith(f"{many} threads are more than the ")

    def refuse(_thread, _cores):
        raise PermissionError

    monkeypatch.setattr(module.os, "sched_setaffinity", refuse)
    with Cores(1, pin=True) as cores:
        assert cores.why_not == "this system does not let a process choose its cores"
        cores.pin(0)
        assert cores.of(0) == ()
    monkeypatch.setattr(module, "allowed", frozenset)
    assert Cores(1, pin=True).why_not == "this system does not let a process choose its cores"


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_the_runtimes_threads_stay_on_theirs(tmp_path):
    path = save(cnn(), tmp_path / "model.onnx")
    before = _threads()
    cores = sorted(os.sched_getaffinity(0))[:2]
    model = Model(path, 0, cores[::-1])
    model.run({"x": np.zeros((1, 1, 8, 8), np.float32)})

    def started():
        return [allowed for thread, allowed in _threads().items() if thread not in before]

    # A thread moves itself when it first runs, which on a busy machine is after the model did.
    until = time.monotonic() + 20
    while started() != [str(cores[0])] and time.monotonic() < until:
        time.sleep(0.01)
    assert started() == [str(cores[0])]


def _threads():
    """The processors that each thread of this process may use."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        status = (task / "status").read_text()
        found[task.name] = next(
            line.split(":")[1].strip() for line in status.splitlines() if line.startswith("Cpus_allowed_list:")
        )
    return found
