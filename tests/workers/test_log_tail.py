"""Every failure comes with the end of its child's log, and that tells nothing about this machine."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
from sqlalchemy import update

import catalog
from catalog.db import db_now
from catalog.jobs.leases import Leases
from catalog.jobs.repository import Jobs
from catalog.jobs.tables import JobRow
from tests.workers.conftest import MIB
from workers.log_tail import LOG_TAIL_BYTES, end_of, tidied

REPOSITORY = str(Path(catalog.__path__[0]).parent)


def error_of(bench, job):
    with bench.database.read() as session:
        return job.error or Jobs(session).attempts(job.id)[-1].error


@pytest.mark.parametrize(
    ("do", "order", "code", "words"),
    [
        ("die", {"number": signal.SIGSEGV}, "child_crashed", "last words"),
        ("die", {"number": signal.SIGKILL}, "child_killed", "last words"),
        ("allocate", {"size": 3 * 1024 * MIB}, "out_of_memory", "loading 0% stand-in"),
        ("explode", {}, "internal_error", "RuntimeError: a defect"),
        ("reject", {}, "operator_unsupported", "operator_unsupported: Node n1"),
        ("sleep", {"time_limit_seconds": 1.5}, "time_limit_exceeded", "benchmarking"),
    ],
)
def test_each_kind_of_failure(bench_of_each_level, do, order, code, words):
    bench = bench_of_each_level
    error = error_of(bench, bench.run(do, **order))
    assert error["code"] == code
    assert words in error["log_tail"]
    assert len(error["log_tail"].encode()) <= LOG_TAIL_BYTES
    # The stand-in lies in the tests' folder, which no worker of a service has.
    for path in (str(bench.settings.root), sys.prefix, f"{REPOSITORY}/workers", f"{REPOSITORY}/catalog"):
        assert path not in error["log_tail"] + error["message"]


def test_a_worker_that_fails_itself(bench, monkeypatch):
    def fail(*_args, **_options):
        raise RuntimeError(f"{bench.settings.root}/blobs is gone, password=hunter2")

    monkeypatch.setattr("workers.supervisor.lay_out", fail)
    error = error_of(bench, bench.run("succeed"))
    assert (error["code"], error["message"]) == ("worker_error", "RuntimeError: <data>/blobs is gone, password=***")
    assert "has said nothing" in error["log_tail"]


def test_a_worker_that_is_lost(bench):
    job_id = bench.add("sleep", max_attempts=1)
    claim, _ = bench.claim()
    with bench.database.write() as session:
        Leases(session).progress(claim, phase="training", fraction=0.43, message="epoch 3 of 7")
        session.execute(update(JobRow).values(lease_until=db_now() - 1))
        Leases(session).sweep()
    error = bench.job(job_id).error
    assert (error["code"], error["log_tail"]) == (
        "worker_lost",
        "Last heard of in phase training at 43%. epoch 3 of 7",
    )


def test_what_is_cut_shows_no_part_of_a_path():
    names = (("/srv/levity/data", "<data>"),)
    whole = b"/srv/levity/data/x is gone\n"
    assert end_of(whole, names, whole=True) == "<data>/x is gone\n"
    # Its first bytes are missing, so that the path is not known for what it is.
    assert end_of(b"vity/data/x is gone\nnext line\n", names, whole=False) == "next line\n"
    assert end_of(b"vity/data/x is gone", names, whole=False) == "is gone"
    long = end_of(b"\xff" * LOG_TAIL_BYTES, (), whole=True)
    assert len(long.encode()) <= LOG_TAIL_BYTES
    assert set(long) == {"\ufffd"}


def test_longer_paths_first_and_no_secrets():
    names = (("/data/venv", "<python>"), ("/data", "<data>"))
    text = "/data/venv/lib /data/blobs lv_0123456789ab_" + "x" * 43 + " a\0b"
    assert tidied(text, names) == "<python>/lib <data>/blobs lv_0123456789ab_*** a\ufffdb"
