"""Backups: the database, then the blobs that it names, in a folder; and the way back.

The database comes first. A blob that it names cannot be collected before a grace period has passed, so every blob is
still there when it is copied; one that comes later is not missed, for nothing in the copy names it. A folder may be
used again: blobs that it has already are not copied once more.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path

from sqlalchemy import delete, inspect, make_url, text

from catalog.blobs import Blobs
from catalog.db import Database, Json
from catalog.errors import CatalogError, DigestMismatch, NotFound
from catalog.storage.ledger import enter
from catalog.storage.references import named
from catalog.storage.tables import BlobRow, CollectionRow, RemovalRow
from catalog.storage.verification import Verdict
from catalog.uploads.tables import PartRow

_MANIFEST = "manifest.json"
_BLOBS = "blobs"
_SQLITE = "levity.db"
_POSTGRESQL = "levity.pgdump"
_FORM = 1


class BackupFailed(CatalogError):
    """A backup that could not be made or restored."""

    code = "backup_failed"


def back_up(database: Database, blobs: Blobs, folder: Path) -> Verdict:
    """Write a backup into `folder` while the service runs; what it holds, and which named blobs it could not find.

    The manifest is written last: a folder without one holds no whole backup.

    Raises:
        BackupFailed: The database could not be copied.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    (folder / _MANIFEST).unlink(missing_ok=True)
    dump = _SQLITE if _is_sqlite(database) else _POSTGRESQL
    digests = _copy_sqlite(database, folder / dump) if _is_sqlite(database) else _dump(database, folder / dump)
    target = _blobs_in(folder)
    number = size = 0
    missing: list[str] = []
    corrupt: list[str] = []
    for sha256 in sorted(digests):
        try:
            if not target.exists(sha256):
                target.take_in(blobs.read(sha256), expected_sha256=sha256)
        except NotFound:
            missing.append(sha256)
        except DigestMismatch:
            corrupt.append(sha256)
        else:
            number, size = number + 1, size + _size(target, sha256)
    manifest = {
        "form": _FORM,
        "made_at": time.time(),
        "database": dump,
        "blobs": number,
        "bytes": size,
        "missing": missing,
        "corrupt": corrupt,
    }
    _write(folder / _MANIFEST, json.dumps(manifest, indent=2) + "\n")
    return Verdict(number, size, missing, corrupt)


def restore(database: Database, blobs: Blobs, folder: Path) -> Verdict:
    """Fill an empty database, and the store, from a backup; nothing else may use them meanwhile.

    Blobs come first, each checked on its way in, so that what the database names is there from its first moment on.
    Parts of unfinished uploads are not in a backup: clients send them again.

    Raises:
        BackupFailed: There is no whole backup, or the database is of another kind, or not empty.
    """
    manifest = _manifest(folder)
    sqlite = _is_sqlite(database)
    if (manifest["database"] == _SQLITE) != sqlite:
        raise BackupFailed(f"The backup is {manifest['database']}; LEVITY_DATABASE_URL names another kind of database.")
    if not _is_empty(database):
        raise BackupFailed("The database is not empty; restore into a new one.")
    source = _blobs_in(folder)
    stored: list[Json] = []
    corrupt: list[str] = []
    for sha256 in _all(source):
        try:
            _, size = blobs.take_in(source.read(sha256), expected_sha256=sha256)
        except DigestMismatch:
            corrupt.append(sha256)
        else:
            stored.append({"sha256": sha256, "size": size})
    if sqlite:
        _put_sqlite(database, folder / _SQLITE)
    else:
        _load(database, folder / _POSTGRESQL)
    database.migrate()
    with database.write() as session:
        needed = named(session)
        # The ledger of the store that was backed up says nothing about this one.
        for table in (RemovalRow, BlobRow, CollectionRow, PartRow):
            session.execute(delete(table))
        for start in range(0, len(stored), 500):
            enter(session, stored[start : start + 500])
    missing = sorted(needed - {entry["sha256"] for entry in stored})
    return Verdict(len(stored), sum(entry["size"] for entry in stored), missing, corrupt)


def _manifest(folder: Path) -> Json:
    try:
        manifest: Json = json.loads((folder / _MANIFEST).read_text())
    except FileNotFoundError as error:
        raise BackupFailed(f"There is no whole backup in {folder}: {_MANIFEST} is missing.") from error
    if manifest.get("form") != _FORM:
        raise BackupFailed(f"The backup has form {manifest.get('form')}; this release reads form {_FORM}.")
    return manifest


def _blobs_in(folder: Path) -> Blobs:
    return Blobs((folder / _BLOBS).absolute().as_uri(), folder.absolute() / "staging")


def _all(source: Blobs) -> list[str]:
    return sorted({copy.sha256 for _, batch in source.copies() for copy in batch})


def _size(blobs: Blobs, sha256: str) -> int:
    path = blobs.local_path(sha256)
    return 0 if path is None else path.stat().st_size


def _write(path: Path, content: str) -> None:
    unfinished = path.with_name(f".{path.name}")
    with unfinished.open("w") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


# SQLite


def _is_sqlite(database: Database) -> bool:
    return make_url(database.url).get_backend_name() == "sqlite"


def _path(database: Database) -> str:
    return make_url(database.url).database or ""


def _copy_sqlite(database: Database, target: Path) -> set[str]:
    """Copy the database as of one moment, writers and all; what it names."""
    unfinished = target.with_name(f".{target.name}")
    unfinished.unlink(missing_ok=True)
    with closing(sqlite3.connect(_path(database))) as source, closing(sqlite3.connect(unfinished)) as copy:
        source.backup(copy)
        # One file, whole without a log beside it.
        copy.execute("PRAGMA journal_mode=DELETE")
    unfinished.replace(target)
    copied = Database(f"sqlite:///{target}", pool_size=1)
    try:
        with copied.read() as session:
            return named(session)
    finally:
        copied.dispose()


def _put_sqlite(database: Database, source: Path) -> None:
    database.dispose()
    target = Path(_path(database))
    for suffix in ("", "-wal", "-shm"):
        target.with_name(target.name + suffix).unlink(missing_ok=True)
    unfinished = target.with_name(f".{target.name}")
    shutil.copyfile(source, unfinished)
    unfinished.chmod(0o600)
    unfinished.replace(target)


# PostgreSQL


def _dump(database: Database, target: Path) -> set[str]:
    """Dump the database as of one moment; what it names in that moment."""
    with database.snapshot() as session:
        snapshot = session.scalar(text("SELECT pg_export_snapshot()"))
        digests = named(session)
        unfinished = target.with_name(f".{target.name}")
        _run(database, "pg_dump", "--format=custom", f"--snapshot={snapshot}", f"--file={unfinished}")
        unfinished.replace(target)
    return digests


def _load(database: Database, source: Path) -> None:
    arguments = ("--no-owner", "--no-privileges", "--exit-on-error", "--single-transaction")
    _run(database, "pg_restore", *arguments, str(source))


def _run(database: Database, program: str, *arguments: str) -> None:
    url = make_url(database.url)
    # By variables, for the list of processes would show a password.
    server = {"PGHOST": url.host, "PGPORT": url.port, "PGUSER": url.username, "PGPASSWORD": url.password}
    options = {name.upper(): str(value) for name, value in url.query.items() if name.startswith("ssl")}
    environment = {
        **os.environ,
        **{name: str(value) for name, value in server.items() if value is not None},
        **{f"PG{name}": value for name, value in options.items()},
    }
    command = [program, f"--dbname={url.database or ''}", *arguments]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, env=environment)  # noqa: S603 - our own command
    except FileNotFoundError as error:
        raise BackupFailed(f"{program} is not installed; it comes with PostgreSQL's client programs.") from error
    except subprocess.CalledProcessError as error:
        raise BackupFailed(f"{program} failed: {error.stderr.strip()[-1000:]}") from error


def _is_empty(database: Database) -> bool:
    if _is_sqlite(database) and not Path(_path(database)).exists():
        return True
    with database.read() as session:
        return not inspect(session.connection()).get_table_names()
