"""The database: one code path for SQLite (WAL) and PostgreSQL.

Times are seconds since 1970 as double precision, taken from the database's own clock (`db_now`): leases must not
depend on the clocks of workers, and SQLite has no type for points in time.
"""

from __future__ import annotations

import copy
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from sqlalchemy import JSON, Double, MetaData, Select, bindparam, make_url, select, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, InstrumentedAttribute, Session
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from catalog.engines import READING, UPSERTS, build_engine
from catalog.tenancy import Actor, TenantSession

if TYPE_CHECKING:
    from alembic.config import Config

logger = logging.getLogger(__name__)

Json = dict[str, Any]
Row = TypeVar("Row")

AWAY = (OperationalError, InterfaceError)
"""The database is away, or too busy to answer; every other error is a defect and is not worth another try."""


class TablesBehind(Exception):
    """The tables are of an older release, and this process is not to change them."""


_POSTGRESQL_DISK_FULL = "53100"


def out_of_room(error: DBAPIError) -> bool:
    """Whether the database has no room on its disk left."""
    code = getattr(error.orig, "sqlite_errorcode", None) or getattr(error.orig, "sqlstate", None)
    return code in (sqlite3.SQLITE_FULL, _POSTGRESQL_DISK_FULL)


# Names for constraints that do not depend on the engine, so that migrations can refer to them.
_NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=_NAMING)
    type_annotation_map = {Json: JSON, list[Json]: JSON, list[str]: JSON, float: Double}  # noqa: RUF012 - SQLAlchemy's form


class db_now(FunctionElement[float]):  # noqa: N801 - reads as the SQL function that it is
    """The database's wall clock in seconds since 1970."""

    type = Double()
    inherit_cache = True


@compiles(db_now, "sqlite")
def _sqlite_now(_element: db_now, _compiler: SQLCompiler, **_kw: object) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(db_now, "postgresql")
def _postgresql_now(_element: db_now, _compiler: SQLCompiler, **_kw: object) -> str:
    # Not now(), which stands still inside a transaction: a claim that waited for a lock would be born stale.
    return "extract(epoch from clock_timestamp())::double precision"


def read_clock(session: Session) -> float:
    """`db_now` as a number."""
    return float(session.scalar(select(db_now())) or 0.0)


def upsert(session: Session, table: type[Base]) -> Any:  # noqa: ANN401 - two classes of one form without a common base
    """`insert(table)` that knows `on_conflict_…`."""
    return UPSERTS[session.get_bind().dialect.name](table)


Entity = TypeVar("Entity", bound=Base)


@cache  # building it takes longer than running it, and every submission asks
def _keeping(table: type[Entity]) -> Select[Entity]:
    return (
        select(table)
        .where(table.__table__.c.id == bindparam("row_id"))
        .with_for_update(read=True, key_share=True)
        .execution_options(populate_existing=True)
    )


def kept(session: Session, table: type[Entity], row_id: str) -> Entity | None:
    """The row with this id, which nobody can delete until the transaction ends. Those who keep it do not wait for each
    other: many jobs are submitted on one model.
    """
    return session.scalars(_keeping(table), {"row_id": row_id}).one_or_none()


def newest_first(
    query: Select[Row], row_id: InstrumentedAttribute[str], *, limit: int, before_id: str | None
) -> Select[Row]:
    """A page of a query's rows, those older than `before_id`: ids grow with time."""
    query = query.order_by(row_id.desc()).limit(limit)
    return query if before_id is None else query.where(row_id < before_id)


class Database:
    """Sessions on one database.

    Args:
        url: SQLAlchemy URL of SQLite or PostgreSQL (psycopg).
        pool_size: Connections kept open.
    """

    def __init__(self, url: str, *, pool_size: int = 10) -> None:
        self.url = url
        # SQLite has one writer, and makes those that wait poll with growing pauses. Threads of one process need not.
        self._turn: AbstractContextManager[object] = nullcontext()
        if make_url(url).get_backend_name() == "sqlite":
            self._turn = threading.RLock()
        self._engine = build_engine(url, pool_size=pool_size)
        self._readers = self._engine.execution_options(**READING[self._engine.dialect.name])
        self.after_outbox: Callable[[], None] = _nothing
        """Called after a commit that put something into the outbox (`note_outbox`): whoever can wakes a sender."""
        self._actor: Actor | None = None

    def acting(self, actor: Actor) -> Self:
        """The same database as `actor` may see it: sessions are confined to the actor's tenant."""
        view = copy.copy(self)
        view._actor = actor  # noqa: SLF001 - its own
        return view

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that only reads. What must fit together comes from one statement, or from a `snapshot`."""
        with TenantSession(self._readers, actor=self._actor, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def snapshot(self) -> Iterator[Session]:
        """A session that only reads, whose statements all see one state of the database, also on PostgreSQL."""
        engine = self._readers
        if engine.dialect.name == "postgresql":
            engine = self._engine.execution_options(isolation_level="REPEATABLE READ")
        with TenantSession(engine, actor=self._actor, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session that commits at the end, or rolls back when an exception leaves the block."""
        with TenantSession(self._engine, actor=self._actor, expire_on_commit=False) as session:
            with self._turn, session.begin():
                yield session
            for send in session.info.pop("after_commit", ()):
                send()
            if session.info.pop("outbox", False):
                self.after_outbox()

    def ping(self) -> None:
        """Raise unless the database answers."""
        with self.read() as session:
            session.execute(text("SELECT 1"))

    def prepare(self, *, migrate: bool) -> None:
        """At a process's start: bring the tables to this release's form, or only see that they are.

        Raises:
            TablesBehind: They are not, and `migrate` is false.
        """
        if migrate:
            self.migrate()
        else:
            self._check_tables()

    def migrate(self) -> None:
        """Bring the tables to this release's form; safe to call from several processes at once."""
        # Only processes that start need it, and it takes a fifth of a second to import.
        from alembic import command  # noqa: PLC0415

        config = _migrations()
        with self._engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                # One migrator at a time: an arbitrary but fixed advisory lock, held until the commit.
                connection.execute(text("SELECT pg_advisory_xact_lock(7203415)"))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def _check_tables(self) -> None:
        from alembic.migration import MigrationContext  # noqa: PLC0415 - as above
        from alembic.script import ScriptDirectory  # noqa: PLC0415

        revisions = {script.revision for script in ScriptDirectory.from_config(_migrations()).walk_revisions()}
        head = ScriptDirectory.from_config(_migrations()).get_current_head()
        with self._readers.connect() as connection:
            current = MigrationContext.configure(connection).get_current_revision()
        if current is not None and current not in revisions:
            # A newer release has migrated already, as in every rolling upgrade; this one must live with it.
            logger.warning("the database's tables are of a newer release (%s)", current)
        elif current != head:
            raise TablesBehind(
                f"The database's tables are at revision {current}, this release needs {head}: run "
                "`python -m catalog migrate`, or leave that to LEVITY_MIGRATE=true."
            )

    def dispose(self) -> None:
        """Close all connections."""
        self._engine.dispose()


def _migrations() -> Config:
    """What alembic needs to know of the folder `migrations`."""
    from alembic.config import Config  # noqa: PLC0415 - see `migrate`

    # It announces its plugins at every start.
    logging.getLogger("alembic.runtime.plugins").setLevel(logging.WARNING)
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def after_commit(session: Session, send: Callable[[], None]) -> None:
    """Call `send` once `session` has committed, never when it rolls back."""
    session.info.setdefault("after_commit", []).append(send)


def note_outbox(session: Session) -> None:
    """Have `Database.after_outbox` called once `session` has committed."""
    session.info["outbox"] = True


def _nothing() -> None:
    pass
