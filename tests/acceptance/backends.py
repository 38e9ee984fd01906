"""The pairs of database and broker that the service runs on, each made for a test session and removed after it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
import redis

# Where a developer's or a CI's servers are. The database and the number below are made, emptied and dropped.
POSTGRES = os.environ.get("LEVITY_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/postgres")
REDIS = os.environ.get("LEVITY_TEST_REDIS", "redis://127.0.0.1:6379")
# One for each of the processes that `make test` runs tests in (gw0, gw1, …).
REDIS_NUMBER = 8 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 4


@dataclass(frozen=True)
class Embedded:
    """SQLite and files, the default."""

    data_dir: Path

    @property
    def environment(self) -> dict[str, str]:
        return {}

    def wipe_broker(self) -> int:
        """Forget every message; how many there were."""
        messages = list((self.data_dir / "broker" / "queue").glob("*.msg"))
        for message in messages:
            message.unlink(missing_ok=True)
        return len(messages)


@dataclass(frozen=True)
class Production:
    """PostgreSQL and Redis."""

    database: str

    @property
    def environment(self) -> dict[str, str]:
        url = POSTGRES.replace("postgresql://", "postgresql+psycopg://", 1).rpartition("/")[0]
        return {
            "LEVITY_DATABASE_URL": f"{url}/{self.database}",
            "LEVITY_BROKER_URL": f"{REDIS}/{REDIS_NUMBER}",
        }

    def wipe_broker(self) -> int:
        """Forget every message; how many there were."""
        with redis.Redis.from_url(f"{REDIS}/{REDIS_NUMBER}") as connection:
            waiting = sum(connection.llen(key) for key in connection.scan_iter(_type="list"))
            connection.flushdb()
        return waiting


Backend = Embedded | Production
NAMES = ("sqlite+files", "postgresql+redis")


@contextmanager
def backend(name: str, data_dir: Path) -> Iterator[Backend]:
    """The backend of this name; skips the test where its servers are absent."""
    if name == "sqlite+files":
        yield Embedded(data_dir)
        shutil.rmtree(data_dir, ignore_errors=True)
        return
    _skip_unless_servers_answer()
    database = f"levity_acceptance_{os.getpid()}"
    with psycopg.connect(POSTGRES, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{database}"')
    production = Production(database)
    production.wipe_broker()
    try:
        yield production
    finally:
        production.wipe_broker()
        with psycopg.connect(POSTGRES, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE "{database}" WITH (FORCE)')
        shutil.rmtree(data_dir, ignore_errors=True)


def _skip_unless_servers_answer() -> None:
    try:
        psycopg.connect(POSTGRES, connect_timeout=2).close()
    except psycopg.OperationalError as error:
        pytest.skip(f"no PostgreSQL at {POSTGRES} (LEVITY_TEST_POSTGRES): {str(error).splitlines()[0]}")
    try:
        with redis.Redis.from_url(f"{REDIS}/{REDIS_NUMBER}", socket_connect_timeout=2) as connection:
            connection.ping()
    except redis.ConnectionError as error:
        pytest.skip(f"no Redis at {REDIS} (LEVITY_TEST_REDIS): {error}")
