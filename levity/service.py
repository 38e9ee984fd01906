"""The whole service on one machine: an API process and workers, started, watched and stopped together."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import ipaddress
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from levity.errors import LevityError

_FIRST_BACKOFF_SECONDS = 0.5
_LONGEST_BACKOFF_SECONDS = 30.0
# A process that ran for so long is taken to have started well: its next death is not the continuation of a series.
_HEALTHY_SECONDS = 60.0
_READY_SECONDS = 60.0
_API_STOP_SECONDS = 10.0
# A worker that stops may take LEVITY_DRAIN_SECONDS, which default to this in the service, LEVITY_GRACE_SECONDS, and
# a little more.
_DRAIN_SECONDS = 30.0
_GRACE_SECONDS = 5.0
_WORKER_STOP_SLACK_SECONDS = 10.0
_NEEDED_BY_API = ("fastapi", "uvicorn", "celery", "sqlalchemy")
_NEEDED_BY_WORKERS = ("numpy", "onnx", "onnxruntime")

Log = Callable[[str], None]


@dataclass
class _Process:
    """One process of the service, over all its restarts."""

    name: str
    command: list[str]
    popen: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    backoff: float = _FIRST_BACKOFF_SECONDS
    restart_at: float | None = None
    reader: threading.Thread | None = field(default=None, repr=False)


class Service:
    """API and workers below one data folder. Use it as a context manager.

    Everything is started from the thread that calls `start` and `watch`, which must live as long as the service:
    the processes die with it.

    Args:
        data_dir: Folder for all that is kept; made when missing. One service at a time can use it.
        host: Address to listen on: a loopback one, unless LEVITY_AUTH is `keys`.
        port: TCP port; 0 takes a free one.
        workers: Whether to start workers too.
        api_processes: Processes that answer requests, on the same port.
        log: Takes each line that the processes write, with the process's name before it.
        inherit: Whether `LEVITY_*` variables of this process hold for the service; without them it is embedded, with
            its database, queue and blobs in `data_dir`, whatever production they name.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        workers: bool = True,
        api_processes: int = 1,
        log: Log,
        inherit: bool = True,
    ) -> None:
        if not (inherit and os.environ.get("LEVITY_AUTH") == "keys"):
            _check_loopback(host)
        _check_installed(workers=workers)
        self._data_dir = data_dir.expanduser().resolve()
        self._log = log
        port = _usable_port(host, port)
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._lock = _lock(self._data_dir)
        kept = {key: value for key, value in os.environ.items() if inherit or not key.startswith("LEVITY_")}
        self._environment = {**kept, "LEVITY_DATA_DIR": str(self._data_dir), "PYTHONUNBUFFERED": "1"}
        # The processes write into pipes; whether a person reads along is known here alone.
        if self._environment.get("LEVITY_LOG_FORMAT", "auto") == "auto":
            self._environment["LEVITY_LOG_FORMAT"] = "text" if sys.stderr.isatty() else "json"
        self._json = self._environment["LEVITY_LOG_FORMAT"] == "json"
        api = ["uvicorn", "api.app:create_app", "--factory", "--host", host, "--port", str(port)]
        api += ["--workers", str(api_processes)] if api_processes > 1 else []
        if api_processes > 1:
            self._environment["PROMETHEUS_MULTIPROC_DIR"] = str(_emptied(self._data_dir / "metrics"))
        self._api = _Process("api", [*api, "--no-access-log", "--timeout-graceful-shutdown", "5"])
        queues = ["cpu", "io", *(["gpu"] if Path("/dev/nvidia0").exists() else [])] if workers else []
        self._workers = [_Process(f"worker-{queue}", ["workers", "--queue", queue]) for queue in queues]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.stop()
        else:
            self.kill()

    def start(self) -> None:
        """Start all processes and return when the service answers.

        Raises:
            LevityError: `not_started` when the API died or did not answer in time; then everything is stopped.
        """
        try:
            for process in (self._api, *self._workers):
                self._spawn(process)
            self._wait_until_ready()
        except BaseException:
            self.kill()
            raise

    def watch(self) -> None:
        """Start again what died, each time after a longer pause. Call it often."""
        now = time.monotonic()
        for process in (self._api, *self._workers):
            if process.restart_at is not None:
                if now >= process.restart_at:
                    self._spawn(process)
            elif process.popen is not None and process.popen.poll() is not None:
                if now - process.started_at > _HEALTHY_SECONDS:
                    process.backoff = _FIRST_BACKOFF_SECONDS
                self.tell(process.name, f"ended ({_how(process.popen)}), starts again in {process.backoff:g} s")
                process.restart_at = now + process.backoff
                process.backoff = min(process.backoff * 2, _LONGEST_BACKOFF_SECONDS)

    def stop(self) -> None:
        """Stop the API, then let the workers finish or give back their jobs, then make sure that all are gone."""
        _terminate([self._api], _API_STOP_SECONDS)
        drain = float(self._environment.get("LEVITY_DRAIN_SECONDS", _DRAIN_SECONDS))
        grace = float(self._environment.get("LEVITY_GRACE_SECONDS", _GRACE_SECONDS))
        _terminate(self._workers, drain + grace + _WORKER_STOP_SLACK_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End all processes at once; the service can be started again from its folder."""
        for process in (self._api, *self._workers):
            if process.popen is not None:
                process.popen.kill()
                process.popen.wait()
            if process.reader is not None:
                process.reader.join(timeout=1)
        self._lock.close()

    def _spawn(self, process: _Process) -> None:
        process.restart_at = None
        process.started_at = time.monotonic()
        # -P: a folder named like one of our packages where the user happens to stand is not ours.
        python = [sys.executable, "-P", "-m", *process.command]
        wrapper = [sys.executable, "-S", "-E", str(Path(__file__).with_name("die_with_parent.py")), str(os.getpid())]
        process.popen = subprocess.Popen(  # noqa: S603 - our own modules
            [*wrapper, *python],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # Out of the terminal's group: Ctrl-C reaches this process alone, which then stops the others in order.
            process_group=0,
        )
        process.reader = threading.Thread(target=self._forward, args=(process.name, process.popen), daemon=True)
        process.reader.start()

    def _forward(self, name: str, popen: subprocess.Popen[bytes]) -> None:
        with popen.stdout or contextlib.nullcontext(()) as lines:
            for line in lines:
                self.tell(name, line.decode(errors="replace").rstrip())

    def tell(self, name: str, line: str) -> None:
        """Pass a line on, with its process's name. Lines of JSON have it, other lines between them are given both."""
        if not self._json:
            self._log(f"{name} | {line}")
        elif line.startswith("{"):
            self._log(line)
        elif line:
            self._log(json.dumps({"message": line, "process": name}))

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        with httpx.Client(trust_env=False, timeout=2) as client:
            while time.monotonic() < deadline:
                if self._api.popen is not None and self._api.popen.poll() is not None:
                    raise LevityError(
                        "not_started", f"The API ended at once ({_how(self._api.popen)}); its log says why."
                    )
                try:
                    if client.get(f"{self.url}/readyz").is_success:
                        return
                except httpx.TransportError:
                    pass
                time.sleep(0.05)
        raise LevityError("not_started", f"The API does not answer after {_READY_SECONDS:g} s; its log may say why.")


def _terminate(processes: list[_Process], seconds: float) -> None:
    """Ask processes to end and wait for them together."""
    running = [process.popen for process in processes if process.popen is not None]
    for popen in running:
        if popen.poll() is None:
            popen.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + seconds
    for popen in running:
        try:
            popen.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            continue


def _how(popen: subprocess.Popen[bytes]) -> str:
    code = popen.returncode
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


def _check_loopback(host: str) -> None:
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise LevityError(
            "not_loopback",
            f"Without API keys Levity listens on loopback addresses only, not on {host}. Make a key with "
            "`levity keys create`, then set LEVITY_AUTH=keys, and LEVITY_ALLOWED_HOSTS to the names that callers use.",
        )


def _check_installed(*, workers: bool) -> None:
    needed = _NEEDED_BY_API + (_NEEDED_BY_WORKERS if workers else ())
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise LevityError(
            "not_installed",
            f"This needs the service's packages ({', '.join(missing)} missing): pip install 'levity[serve]'",
        )


def _lock(data_dir: Path) -> _Lock:
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        return _Lock(data_dir / "serve.lock")
    except BlockingIOError as error:
        raise LevityError(
            "in_use", f"Another `levity serve` uses {data_dir}; stop it or name another --data-dir."
        ) from error
    except OSError as error:
        raise LevityError(
            "data_dir_unusable", f"The data folder {data_dir} cannot be used: {error.strerror}."
        ) from error


def _emptied(folder: Path) -> Path:
    """A folder without what an earlier service left in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    return folder


class _Lock:
    """A lock that ends with the process, whatever ends it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        self._file.close()


def _usable_port(host: str, port: int) -> int:
    """`port`, or a free one for 0; raises when it is taken."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return int(probe.getsockname()[1])
    except OSError as error:
        raise LevityError("port_unusable", f"Port {port} of {host} cannot be used: {error.strerror}.") from error
