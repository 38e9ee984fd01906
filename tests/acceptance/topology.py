"""What docker-compose.yml starts, as processes of this machine: its settings, with its hosts replaced."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psycopg
import pytest
import redis

from levity import Levity, die_with_parent
from tests.acceptance.backends import POSTGRES
from tests.acceptance.processes import eventually
from tests.deploy import compose


@dataclass
class Started:
    """A process, where its log is, and where it keeps its files, as a container would."""

    popen: subprocess.Popen[bytes]
    log: Path
    data_dir: Path
    environment: dict[str, str]

    def stop(self, seconds: float = 60) -> int:
        self.popen.terminate()
        return self.popen.wait(seconds)


class Topology:
    """Engines and processes below one folder. Use it as a context manager.

    PostgreSQL is the machine's own, in which the test has a database and a role; Redis and the S3 server are started.
    """

    def __init__(self, folder: Path) -> None:
        if shutil.which("redis-server") is None:
            pytest.skip("redis-server is not installed")
        pytest.importorskip("moto.server", reason="no S3 server: moto[server] is not installed")
        try:
            psycopg.connect(POSTGRES, connect_timeout=2).close()
        except psycopg.OperationalError as error:
            pytest.skip(f"no PostgreSQL at {POSTGRES} (LEVITY_TEST_POSTGRES): {str(error).splitlines()[0]}")
        self.folder = folder
        self.services = compose.services()
        self.secrets = folder / "secrets"
        self.processes: dict[str, Started] = {}
        self.database = f"levity_topology_{os.getpid()}"
        self.redis_port, self.s3_port = free_port(), free_port()
        subprocess.run([compose.ROOT / "deploy/make-secrets.sh", self.secrets], check=True, timeout=10)

    def secret(self, name: str) -> str:
        return (self.secrets / name).read_text()

    def __enter__(self) -> Self:
        self._create_database()
        self._start_redis()
        self._start_s3()
        return self

    def __exit__(self, *_: object) -> None:
        # The engines last, since those that stop have things to say to them.
        for started in reversed(self.processes.values()):
            if started.popen.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    started.stop()
            started.popen.kill()
            started.popen.wait()
        with psycopg.connect(POSTGRES, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{self.database}" WITH (FORCE)')
            connection.execute(f'DROP ROLE IF EXISTS "{self.database}"')

    # Engines

    def _create_database(self) -> None:
        with psycopg.connect(POSTGRES, autocommit=True) as connection:
            password = self.secret("database_password")
            connection.execute(f"CREATE ROLE \"{self.database}\" LOGIN PASSWORD '{password}'")
            connection.execute(f'CREATE DATABASE "{self.database}" OWNER "{self.database}"')

    def _start_redis(self) -> None:
        """By the very command of docker-compose.yml, on a port and in a folder of its own."""
        folder = self.folder / "redis"
        folder.mkdir()
        *shell, script = self.services["redis"]["command"]
        script = script.replace("dir /data", f"dir {folder}\nport {self.redis_port}\nbind 127.0.0.1")
        self._spawn("redis", [*shell, self._with_secrets(script)], os.environ)

        def answers() -> bool:
            try:
                with redis.Redis(port=self.redis_port, password=self.secret("broker_password")) as connection:
                    return bool(connection.ping())
            except redis.ConnectionError:
                return False

        eventually(answers, what="redis-server answers")

    def _start_s3(self) -> None:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.s3_port)]
        self._spawn("s3", command, os.environ)
        bucket = self.services["api"]["environment"]["LEVITY_STORE_URL"].removeprefix("s3://")
        request = urllib.request.Request(f"http://127.0.0.1:{self.s3_port}/{bucket}", method="PUT")

        def made() -> bool:
            try:
                urllib.request.urlopen(request, timeout=10).close()
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                return False
            return True

        eventually(made, seconds=180, pause=0.1, what="the S3 server answers")

    # Levity

    def environment(self, service: str, data_dir: Path) -> dict[str, str]:
        """A service's environment as docker-compose.yml has it, on this machine's engines."""
        host, _, port = POSTGRES.rpartition("@")[2].partition("/")[0].partition(":")
        places = {
            "//levity@postgres:5432/levity": f"//{self.database}@{host}:{port or 5432}/{self.database}",
            "//redis:6379": f"//127.0.0.1:{self.redis_port}",
            "//s3:7070": f"//127.0.0.1:{self.s3_port}",
        }
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("LEVITY_", "AWS_"))}
        for name, value in self.services[service]["environment"].items():
            environment[name] = self._with_secrets(value)
            for place, here in places.items():
                environment[name] = environment[name].replace(place, here)
        # As the images set it; two that compute at once share this machine's cores.
        return environment | {"LEVITY_DATA_DIR": str(data_dir), "OMP_NUM_THREADS": "1"}

    def run(self, service: str, command: list[str]) -> subprocess.CompletedProcess[str]:
        """`docker compose run SERVICE COMMAND`, to its end."""
        return subprocess.run(
            [sys.executable, "-P", *command],
            env=self.environment(service, self.folder / "run"),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def migrate(self) -> None:
        python, *command = self.services["migrate"]["command"]
        assert python == "python"
        done = self.run("migrate", command)
        assert done.returncode == 0, done.stderr

    def new_key(self, *arguments: str) -> str:
        """The text of an API key, made as docker-compose.yml says."""
        done = self.run("api", ["-m", "catalog", "keys", "create", *arguments])
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def start_api(self, name: str, key: str) -> Levity:
        """An API process with a port of its own; a client of it, once it answers."""
        port = free_port()
        data_dir = self.folder / name
        arguments = ["uvicorn", "api.app:create_app", "--factory", "--host", "127.0.0.1", "--port", str(port)]
        started = self._spawn(
            name, [sys.executable, "-P", "-m", *arguments], self.environment("api", data_dir), data_dir
        )

        def ready() -> bool:
            assert started.popen.poll() is None, started.log.read_text()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10) as answer:
                    return bool(answer.status == 200)
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                return False

        eventually(ready, seconds=180, pause=0.1, what=f"{name} is ready")
        return Levity(f"http://127.0.0.1:{port}", api_key=key)

    def start_worker(self, name: str, service: str) -> Started:
        """A worker as the service's image starts it."""
        data_dir = self.folder / name
        command = [sys.executable, "-P", "-m", "workers", *self.services[service]["command"]]
        return self._spawn(name, command, self.environment(service, data_dir), data_dir)

    def healthy(self, name: str, service: str) -> bool:
        """What the service's health check says."""
        kind, python, *command = self.services[service]["healthcheck"]["test"]
        assert (kind, python) == ("CMD", "python")
        environment = self.processes[name].environment
        return subprocess.run([sys.executable, *command], env=environment, timeout=30, check=False).returncode == 0

    def _with_secrets(self, text: str) -> str:
        return text.replace(compose.SECRETS, str(self.secrets))

    def _spawn(
        self, name: str, command: list[str], environment: dict[str, str], data_dir: Path | None = None
    ) -> Started:
        log = self.folder / f"{name}.log"
        program = shutil.which(command[0]) or command[0]
        wrapper = [sys.executable, "-S", "-E", die_with_parent.__file__, str(os.getpid())]
        with log.open("wb") as file:
            popen = subprocess.Popen(
                [*wrapper, program, *command[1:]],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        started = Started(popen, log, data_dir or self.folder, dict(environment))
        self.processes[name] = started
        return started


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
