"""Fixtures for all tests: databases of both kinds, an S3 server."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import OperationalError

from catalog.db import Database
from tests.s3 import S3Server, s3_server

if "PYTEST_XDIST_WORKER" in os.environ:
    # Every process has a core; read by torch and the runtime when they are imported, here and in what tests start.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

POSTGRESQL_URL = os.environ.get("LEVITY_TEST_POSTGRESQL_URL", "postgresql+psycopg://postgres@127.0.0.1:5432/postgres")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Files stay whole, except that each backend's acceptance tests stay together: its service starts once."""
    from xdist.scheduler import LoadFileScheduling

    from tests.acceptance.backends import NAMES

    class ByBackendOrFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            if nodeid.startswith("tests/acceptance/"):
                for name in NAMES:
                    if f"[{name}" in nodeid:
                        return name
            return super()._split_scope(nodeid)

    return ByBackendOrFile(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    """A PostgreSQL database for this test run; skips where no server answers."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    server = create_engine(POSTGRESQL_URL, isolation_level="AUTOCOMMIT", connect_args={"connect_timeout": 2})
    name = f"levity_test_{secrets.token_hex(6)}"
    try:
        with server.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
    except OperationalError as error:
        server.dispose()
        pytest.skip(
            f"no PostgreSQL at {make_url(POSTGRESQL_URL).render_as_string()} (LEVITY_TEST_POSTGRESQL_URL): {error.orig}"
        )
    yield make_url(POSTGRESQL_URL).set(database=name).render_as_string(hide_password=False)
    with server.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    server.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database, of each kind in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'levity.db'}"
    url: str = request.getfixturevalue("postgresql_url")
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()
    return url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A database with all tables, of each kind in turn."""
    database = Database(database_url)
    database.migrate()
    yield database
    database.dispose()


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """An S3 server for this test run; skips where there is none."""
    with s3_server() as server:
        yield server
