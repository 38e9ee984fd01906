"""`levity serve` over stand-ins for uvicorn and the workers, which note when they start and stop."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

API = """
import os, signal, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from journal import note
note("api start")
def stop(*_):
    note("api stop")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
if "crash" in os.environ.get("STAND_IN", ""):
    print("the database is on fire", flush=True)
    sys.exit(3)
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_):
        pass
HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever(0.05)
"""
WORKER = """
import os, signal, sys, time
from journal import note
queue = sys.argv[sys.argv.index("--queue") + 1]
note(queue + " start")
def stop(*_):
    if "stubborn" in os.environ.get("STAND_IN", ""):
        note(queue + " drains")
        return
    note(queue + " stop")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
while True:
    time.sleep(0.1)
"""
JOURNAL = """
import json
import os
from pathlib import Path
def note(text):
    with (Path(os.environ["LEVITY_DATA_DIR"]) / "journal").open("a") as file:
        file.write(f"{text} {os.getpid()}\\n")
"""


class Served:
    def __init__(self, folder: Path, *, stand_in="", arguments=(), log_format="text"):
        for package, source in (("uvicorn", API), ("workers", WORKER)):
            (folder / "path" / package).mkdir(parents=True)
            (folder / "path" / package / "__init__.py").touch()
            (folder / "path" / package / "__main__.py").write_text(source)
        (folder / "path" / "journal.py").write_text(JOURNAL)
        self.data = folder / "data"
        self.log = folder / "log"
        self.environment = os.environ | {
            "PYTHONPATH": str(folder / "path"),
            "STAND_IN": stand_in,
            "LEVITY_LOG_FORMAT": log_format,
        }
        with self.log.open("wb") as log:
            self.popen = self._start(log, arguments)
        self.first_line = self.popen.stdout.readline()

    def _start(self, log, arguments):
        return subprocess.Popen(
            [sys.executable, "-m", "levity", "serve", "--port", "0", "--data-dir", str(self.data), *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )

    def journal(self):
        return [line.rpartition(" ")[0] for line in (self.data / "journal").read_text().splitlines()]

    def pids(self):
        return {
            line.split()[0]: int(line.split()[-1])
            for line in (self.data / "journal").read_text().splitlines()
            if " start " in line
        }


@pytest.fixture
def start(tmp_path):
    started = []

    def start_one(**options):
        started.append(Served(tmp_path, **options))
        return started[-1]

    yield start_one
    for served in started:
        served.popen.kill()
        served.popen.wait()
        served.popen.stdout.close()


def eventually(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_says_where_it_is_and_stops_in_order(start, number):
    served = start()
    url = re.fullmatch(r"Levity is ready at (http://127\.0\.0\.1:\d+) .*/docs.*\n", served.first_line)[1]
    assert httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
    eventually(lambda: len(served.journal()) == 3)
    served.popen.send_signal(number)
    assert served.popen.wait(timeout=10) == 0
    journal = served.journal()
    assert sorted(journal[:3]) == ["api start", "cpu start", "io start"]
    assert journal[3] == "api stop"
    assert sorted(journal[4:]) == ["cpu stop", "io stop"]


def test_what_dies_is_started_again(start):
    served = start()
    eventually(lambda: len(served.journal()) == 3)
    os.kill(served.pids()["cpu"], signal.SIGKILL)
    eventually(lambda: served.journal().count("cpu start") == 2)
    assert "worker-cpu | ended (killed by SIGKILL), starts again in 0.5 s" in served.log.read_text()
    os.kill(served.pids()["cpu"], signal.SIGKILL)
    eventually(lambda: "starts again in 1 s" in served.log.read_text())


def test_all_die_with_the_supervisor(start):
    served = start()
    eventually(lambda: len(served.journal()) == 3)
    pids = served.pids().values()
    assert all(map(runs, pids))
    served.popen.kill()
    served.popen.wait()
    eventually(lambda: not any(map(runs, pids)))


def test_second_signal_does_not_wait(start):
    served = start(stand_in="stubborn")
    eventually(lambda: len(served.journal()) == 3)
    served.popen.send_signal(signal.SIGINT)
    eventually(lambda: "cpu drains" in served.journal())
    served.popen.send_signal(signal.SIGINT)
    assert served.popen.wait(timeout=5) == 130
    assert not any(map(runs, served.pids().values()))


def test_api_that_cannot_start_ends_it_with_its_words(start):
    served = start(stand_in="crash", arguments=["--no-worker"])
    assert served.popen.wait(timeout=10) == 1
    log = served.log.read_text()
    assert "api | the database is on fire" in log
    assert "levity: The API ended at once (exit status 3); its log says why. (not_started)" in log
    assert served.journal() == ["api start"]


def test_lines_for_machines_are_all_json(start):
    served = start(log_format="auto", stand_in="crash", arguments=["--no-worker"])
    assert served.popen.wait(timeout=20) == 1
    first, *_ = served.log.read_text().splitlines()
    assert json.loads(first) == {"message": "the database is on fire", "process": "api"}
