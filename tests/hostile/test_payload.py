"""The payloads of the corpus do harm where nothing holds them, and none in a child."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from catalog.jobs.states import Queue
from catalog.settings import Settings
from tests.hostile import torch_files
from tests.hostile.case import Payload
from tests.hostile.watch import watching
from tests.workers.conftest import require_level
from workers.sandbox import Sandbox

LOAD = "import pickle, sys; pickle.load(open(sys.argv[1], 'rb'))"
ALL = {"opened", "changed", "called", "sent"}


@pytest.fixture
def watch(tmp_path):
    with watching(tmp_path) as found:
        yield found


def payload(watch, folder):
    folder.mkdir(exist_ok=True)
    (folder / "payload").write_bytes(pickle.dumps(Payload(watch.lure)))


def test_payloads_work(watch, tmp_path):
    assert watch.happened() == set()
    payload(watch, tmp_path / "job")
    subprocess.run([sys.executable, "-c", LOAD, tmp_path / "job" / "payload"], check=True, timeout=120)
    assert watch.happened() == ALL


def test_a_crafted_pt2_runs_code_where_torch_loads_it(watch, tmp_path):
    """Why these archives are refused unread. When torch stops doing this, the test says so."""
    (tmp_path / "crafted.pt2").write_bytes(torch_files.pt2(watch.lure))
    load = "import sys, torch; torch.export.load(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", load, tmp_path / "crafted.pt2"],
        check=False,
        timeout=170,
        stderr=subprocess.DEVNULL,
    )
    assert watch.happened() >= {"called", "changed"}


def test_a_payload_that_runs_in_the_sandbox_reaches_nothing(watch, tmp_path):
    require_level("bubblewrap", tmp_path)
    payload(watch, tmp_path / "job")
    sandbox = Sandbox("bubblewrap", Settings(data_dir=tmp_path / "data"), Queue.IO)
    command = sandbox.wrap([sys.executable, "-c", LOAD, "payload"], tmp_path / "job")
    subprocess.run(command.arguments, env=command.environment, cwd=command.folder, check=True, timeout=120)
    assert watch.happened() == set()
    assert watch.lure.canary.read_text() == watch.lure.secret
