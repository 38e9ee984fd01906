"""Connections to SQLite and PostgreSQL, set up as `catalog.db` wants them."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import ConnectionPoolEntry

READING = {
    "sqlite": {"levity_begin": "BEGIN"},
    # A transaction would show each statement a state of its own all the same, and cost two messages more.
    "postgresql": {"isolation_level": "AUTOCOMMIT"},
}
"""Options of connections that only read, by dialect."""

UPSERTS: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
"""`insert` with `on_conflict_…`, which each dialect has for itself and in the same words."""

_MAX_OVERFLOW = 30
_USED = "levity.used"
_UNASKED_SECONDS = 1.0


def build_engine(url: str, *, pool_size: int) -> Engine:
    """An engine for SQLite or PostgreSQL (psycopg) that keeps `pool_size` connections open."""
    backend = make_url(url).get_backend_name()
    return _sqlite(url, pool_size) if backend == "sqlite" else _postgresql(url, pool_size)


def _postgresql(url: str, pool_size: int) -> Engine:
    engine = create_engine(url, pool_size=pool_size, max_overflow=_MAX_OVERFLOW)

    @event.listens_for(engine, "checkin")
    def _note(_connection: object, record: ConnectionPoolEntry) -> None:
        record.info[_USED] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def _check(connection: DBAPIConnection, record: ConnectionPoolEntry, _proxy: object) -> None:
        # One that was used just now need not be asked whether it is there, which costs as much as a query.
        if time.monotonic() - record.info.get(_USED, math.inf) > _UNASKED_SECONDS:
            try:
                engine.dialect.do_ping(connection)
            except engine.dialect.loaded_dbapi.Error as error:
                raise DisconnectionError from error

    return engine


def _sqlite(url: str, pool_size: int) -> Engine:
    path = make_url(url).database
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    engine = create_engine(
        url, pool_size=pool_size, max_overflow=30, connect_args={"check_same_thread": False, "timeout": 30}
    )

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: object) -> None:  # noqa: ANN401 - sqlite3.Connection behind the DBAPI
        connection.isolation_level = None  # transactions begin where _begin says so, not at the first write
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A transaction that starts as a reader and then writes can fail at once with "database is locked";
        # one that asks for the write lock first waits for its turn.
        connection.exec_driver_sql(connection.get_execution_options().get("levity_begin", "BEGIN IMMEDIATE"))

    return engine
