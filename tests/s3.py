"""An S3 server on loopback: moto in a process of its own, with buckets that vanish with it."""

from __future__ import annotations

import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from urllib.error import URLError

import pytest

from tests.spawn import spawn


class S3Server:
    """Where it listens, what obstore needs in its environment to talk to it, and the process, to be stopped."""

    def __init__(self, port: int, process: subprocess.Popen[bytes]) -> None:
        self.port = port
        self.process = process
        self.endpoint = f"http://127.0.0.1:{port}"
        self.environment = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }

    def new_bucket(self) -> str:
        """Make an empty bucket; its name."""
        name = f"levity-{secrets.token_hex(4)}"
        self.make_bucket(name)
        return name

    def make_bucket(self, name: str) -> None:
        urllib.request.urlopen(urllib.request.Request(f"{self.endpoint}/{name}", method="PUT"), timeout=10).close()


@contextmanager
def s3_server(*, port: int = 0) -> Iterator[S3Server]:
    """A server until the block ends, at a free port unless given; skips the test where moto is not installed."""
    if find_spec("moto") is None or find_spec("flask") is None:
        pytest.skip("no S3 server: moto[server] is not installed")
    if not port:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = spawn(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    server = S3Server(port, process)
    try:
        _wait_until_it_answers(server, process)
        yield server
    finally:
        process.kill()
        process.wait()


def _wait_until_it_answers(server: S3Server, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"{server.endpoint}/moto-api/", timeout=10).close()
        except (URLError, ConnectionError, TimeoutError):
            assert process.poll() is None, "moto ended at once"
            assert time.monotonic() < deadline, "moto does not answer"
            time.sleep(0.05)
        else:
            return
