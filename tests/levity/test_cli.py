from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from levity import Event, Job, LevityError
from levity.cli import main
from levity.console import ProgressBar, summary, table
from levity.service import Service
from tests.levity.stub import problem, reply

WRAPPER = Path(__file__).parents[2] / "levity" / "die_with_parent.py"


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr("levity._transport._FIRST_PAUSE_SECONDS", 0.001)


def test_unreachable_service_has_an_exit_status_of_its_own(capsys, fast):
    assert main(["jobs", "list", "--url", "http://127.0.0.1:9"]) == 3
    assert capsys.readouterr().err.startswith("levity: The service at http://127.0.0.1:9 does not answer")


def test_refusal_is_one_line(stub, capsys, fast):
    stub.on("GET /v1/jobs/job_1", problem(404, "job_not_found"))
    assert main(["jobs", "show", "job_1", "--url", stub.url]) == 1
    assert capsys.readouterr().err == "levity: It is job_not_found. (job_not_found)\n"


def test_wrong_step_is_wrong_usage(capsys):
    with pytest.raises(SystemExit) as ending:
        main(["compress", "m.onnx", "--step", "{prune", "--out", "x"])
    assert ending.value.code == 2
    assert "argument --step: not JSON" in capsys.readouterr().err


def test_missing_model_file_is_one_line(stub, capsys, fast):
    assert main(["compress", "/nowhere.onnx", "--step", "{}", "--out", "x", "--url", stub.url]) == 1
    assert capsys.readouterr().err == "levity: [Errno 2] No such file or directory: '/nowhere.onnx'\n"


def test_pipeline_file_must_hold_a_list(tmp_path, capsys):
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"type": "prune"}))
    assert main(["compress", "m.onnx", "--pipeline", str(path), "--out", "x"]) == 1
    assert "must hold a list of steps" in capsys.readouterr().err


def test_jobs_list_shows_no_more_than_asked(stub, capsys):
    items = [{"id": f"job_{n}", "state": "succeeded", "progress": 1.0, "created_at": "now"} for n in range(3)]
    stub.on("GET /v1/jobs", reply({"items": items, "next_cursor": "more"}))
    assert main(["jobs", "list", "--limit", "2", "--url", stub.url]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["job_0", "job_1"]


def test_serving_the_network_is_refused(tmp_path, capsys):
    assert main(["serve", "--host", "0.0.0.0", "--data-dir", str(tmp_path)]) == 1
    assert "Without API keys" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named_with_the_command_that_brings_them(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "uvicorn" else object())
    with pytest.raises(LevityError, match=r"uvicorn missing\): pip install 'levity\[serve\]'"):
        Service(tmp_path, log=print)


def test_taken_port_is_said(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(LevityError) as error:
        Service(tmp_path, port=server.getsockname()[1], log=print)
    assert error.value.code == "port_unusable"


def test_two_services_on_one_folder_are_refused(tmp_path):
    first = Service(tmp_path, log=print)
    with pytest.raises(LevityError, match="Another `levity serve` uses"):
        Service(tmp_path, log=print)
    first.kill()
    Service(tmp_path, log=print).kill()


def test_child_dies_with_its_killed_parent(tmp_path):
    script = (
        "import os, subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, {str(WRAPPER)!r}, str(os.getpid()), '/bin/sleep', '60'])\n"
        "time.sleep(0.3); print(child.pid, flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    child = int(parent.stdout.readline())
    assert Path(f"/proc/{child}/cmdline").read_bytes().startswith(b"/bin/sleep")
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 5
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _runs(child)


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_table_aligns_columns():
    assert table([("a", "bb"), ("ccc", "d")]) == ["a    bb", "-------", "ccc  d"]


def test_summary_shows_numbers_in_readable_units_and_every_note():
    def metric(name, unit, original, result, **more):
        return {
            "name": name,
            "unit": unit,
            "direction": "lower_is_better",
            "original": original,
            "result": result,
        } | more

    job = Job.from_json(
        {
            "id": "job_1",
            "state": "succeeded",
            "notes": ["It is slower than the original."],
            "metrics": [
                metric("file_bytes", "bytes", 123_456, 30_864, ratio=4.0),
                metric("latency_p50", "seconds", 0.000_25, 0.000_5, ratio=0.5, interval=[0.4, 0.6], verdict="slower"),
                metric("parameters", "count", 1_234_567, 1_234_567),
                metric("cosine_similarity", "ratio", None, 0.998_877),
            ],
        }
    )
    lines = summary(job).splitlines()
    assert lines[2].split() == ["file", "size", "123", "kB", "30.9", "kB", "4.00x"]
    assert lines[3].split() == ["latency,", "median", "250", "\N{MICRO SIGN}s", "500", "\N{MICRO SIGN}s", "slower"]
    assert lines[4].split() == ["parameters", "1,234,567", "1,234,567"]
    assert lines[5].split() == ["cosine", "similarity", "0.9989"]
    assert lines[6] == "- It is slower than the original."


def test_progress_without_a_terminal_is_a_line_for_each_phase():
    out = io.StringIO()
    bar = ProgressBar(out)
    for seq, (phase, progress) in enumerate([("pruning", 0.1), ("pruning", 0.2), ("verifying", 0.5)]):
        data = {"phase": phase, "progress": progress, "message": ""}
        bar(Event(raw={}, seq=seq, at="", type="progress", attempt=1, data=data))
    bar.close()
    assert out.getvalue() == "   10%  pruning\n   50%  verifying\n"
