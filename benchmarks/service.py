"""What the service benchmarks share: a service of their own on a free port, and small statistics."""

from __future__ import annotations

import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parent.parent
DIGITS = ROOT / "examples" / "digits"


@dataclass(frozen=True)
class Service:
    url: str
    data_dir: Path
    pid: int
    """The supervisor."""

    def pid_of(self, part: str) -> int:
        """The process in whose command line `part` occurs, among the supervisor's descendants."""
        for pid in descendants(self.pid):
            if part in Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "):
                return pid
        raise LookupError(part)


@contextmanager
def running_service(*arguments: str, **environment: str) -> Iterator[Service]:
    """`levity serve` on a temporary folder until the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="levity-bench-") as folder:
        log = Path(folder) / "serve.log"
        command = [sys.executable, "-m", "levity", "serve", "--port", str(port), "--data-dir", f"{folder}/data"]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, *arguments], env={**os.environ, **environment}, stdout=output, stderr=output
            )
        try:
            _wait_ready(url, process, log)
            yield Service(url, Path(folder) / "data", process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(300):
        if process.poll() is not None:
            raise SystemExit(f"the service did not start:\n{log.read_text()}")
        try:
            if httpx.get(f"{url}/readyz", timeout=1).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise SystemExit(f"the service was not ready after 30 s:\n{log.read_text()}")


def descendants(pid: int) -> list[int]:
    """Process ids below `pid`, children before grandchildren."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += [int(child), *descendants(int(child))]
    return found


def resident_bytes(pid: int, field: str = "VmRSS") -> int:
    """A memory figure of /proc/pid/status, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def table(rows: Sequence[Sequence[object]]) -> str:
    """Rows, the first of them the head, as a Markdown table."""
    head, *body = [[str(cell) for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *body])


def median(values: Sequence[float]) -> float:
    return statistics.median(values)
