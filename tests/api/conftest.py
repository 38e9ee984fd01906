from __future__ import annotations

import secrets
from contextlib import contextmanager

import pytest
from sqlalchemy import create_engine, make_url, text

from catalog.settings import Settings
from tests.api.harness import serve


@contextmanager
def own_database(url):
    """A database beside `url`, which other tests empty as they like."""
    server = create_engine(url, isolation_level="AUTOCOMMIT")
    name = f"levity_test_api_{secrets.token_hex(6)}"
    with server.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield make_url(url).set(database=name).render_as_string(hide_password=False)
    with server.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    server.dispose()


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def shared_service(request, tmp_path_factory):
    data_dir = tmp_path_factory.mktemp(request.param)
    if request.param == "sqlite":
        with serve(Settings(data_dir=data_dir)) as service:
            yield service
        return
    with (
        own_database(request.getfixturevalue("postgresql_url")) as url,
        serve(Settings(data_dir=data_dir, database_url=url)) as service,
    ):
        yield service


@pytest.fixture
def service(shared_service):
    """A server that all tests share; each leaves no job to claim."""
    yield shared_service
    shared_service.end_all_jobs()


@pytest.fixture
def http(service):
    return service.http
