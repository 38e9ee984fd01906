"""What the service runs on, database, broker and blob store, each made for a test session and removed after it."""

from __future__ import annotations

import os
import secrets
import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
import redis

from tests.acceptance.redis_server import RedisServer, redis_server
from tests.s3 import S3Server, s3_server

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

    def repeat_messages(self, times: int) -> int:
        """Put every message into the queue so many times more; how many that makes."""
        messages = list((self.data_dir / "broker" / "queue").glob("*.msg"))
        for message in messages:
            queue = message.name.partition(".")[2]
            for _ in range(times):
                shutil.copyfile(message, message.with_name(f"{uuid.uuid4()}.{queue}"))
        return times * len(messages)


@dataclass(frozen=True)
class Production:
    """PostgreSQL, Redis and an S3 server.

    Attributes:
        own_redis: The Redis server when it is this backend's alone, so that it can be stopped and killed.
    """

    database: str
    redis_url: str
    s3: S3Server
    bucket: str
    own_redis: RedisServer | None = None

    @property
    def environment(self) -> dict[str, str]:
        url = POSTGRES.replace("postgresql://", "postgresql+psycopg://", 1).rpartition("/")[0]
        return {
            "LEVITY_DATABASE_URL": f"{url}/{self.database}",
            "LEVITY_BROKER_URL": self.redis_url,
            "LEVITY_STORE_URL": f"s3://{self.bucket}/blobs",
            **self.s3.environment,
        }

    def wipe_broker(self) -> int:
        """Forget every message; how many there were."""
        with redis.Redis.from_url(self.redis_url) as connection:
            waiting = sum(connection.llen(key) for key in connection.scan_iter(_type="list"))
            connection.flushdb()
        return waiting

    def repeat_messages(self, times: int) -> int:
        """Put every message into the queue so many times more; how many that makes."""
        with redis.Redis.from_url(self.redis_url) as connection:
            queues = {key: connection.lrange(key, 0, -1) for key in connection.scan_iter(_type="list")}
            for key, messages in queues.items():
                connection.lpush(key, *(times * messages))
        return times * sum(map(len, queues.values()))

    def cut_connections(self) -> int:
        """End every connection to the database as its administrator would; how many there were."""
        with psycopg.connect(POSTGRES, autocommit=True) as connection:
            ended = connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [self.database]
            ).fetchall()
        return len(ended)


Backend = Embedded | Production
NAMES = ("sqlite+files", "postgresql+redis+s3")


@contextmanager
def backend(name: str, data_dir: Path, *, own_redis: bool = False) -> Iterator[Backend]:
    """The backend of this name; skips the test where its servers are absent.

    Args:
        name: One of `NAMES`.
        data_dir: The service's data folder; removed afterwards.
        own_redis: Start a Redis server for this backend, instead of a database of the one that is there.
    """
    if name == NAMES[0]:
        yield Embedded(data_dir)
        shutil.rmtree(data_dir, ignore_errors=True)
        return
    with ExitStack() as stack:
        server = stack.enter_context(redis_server(data_dir.parent / "redis")) if own_redis else None
        redis_url = server.url if server is not None else f"{REDIS}/{REDIS_NUMBER}"
        _skip_unless_servers_answer(redis_url)
        s3 = stack.enter_context(s3_server())
        database = f"levity_acceptance_{os.getpid()}_{secrets.token_hex(3)}"
        with psycopg.connect(POSTGRES, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{database}"')
        production = Production(database, redis_url, s3, s3.new_bucket(), server)
        production.wipe_broker()
        try:
            yield production
        finally:
            if server is None:
                production.wipe_broker()
            with psycopg.connect(POSTGRES, autocommit=True) as connection:
                connection.execute(f'DROP DATABASE "{database}" WITH (FORCE)')
            shutil.rmtree(data_dir, ignore_errors=True)


def _skip_unless_servers_answer(redis_url: str) -> None:
    try:
        psycopg.connect(POSTGRES, connect_timeout=2).close()
    except psycopg.OperationalError as error:
        pytest.skip(f"no PostgreSQL at {POSTGRES} (LEVITY_TEST_POSTGRES): {str(error).splitlines()[0]}")
    try:
        with redis.Redis.from_url(redis_url, socket_connect_timeout=2) as connection:
            connection.ping()
    except redis.ConnectionError as error:
        pytest.skip(f"no Redis at {redis_url} (LEVITY_TEST_REDIS): {error}")
