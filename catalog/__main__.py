"""`python -m catalog migrate`, `collect`, `backup`, `keys …` and more: what an operator does on database and store."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from catalog.console import say
from catalog.db import Database, TablesBehind
from catalog.errors import CatalogError
from catalog.keys.repository import Keys
from catalog.keys.scopes import TENANT_SCOPES, Scope
from catalog.settings import Settings
from catalog.storage import commands as storage
from catalog.tenancy import DEFAULT_TENANT, Actor
from catalog.tenants import commands as tenants
from catalog.tenants.repository import Tenants
from catalog.times import rfc3339

_HOUR = 3600
_DAY = 24 * _HOUR


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it is done, 1 when it is refused."""
    options = _parser().parse_args(arguments)
    settings = Settings()
    database = Database(settings.resolved_database_url, pool_size=1)
    try:
        if not options.empty:
            database.prepare(migrate=(settings.migrate and options.migrates) or options.run is _migrate)
        options.run(database, options)
    except (CatalogError, TablesBehind) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    finally:
        database.dispose()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("levity", description="Tables, store, keys and tenants.")
    # Whether the database has to be empty, rather than to have its tables; and whether it may be changed to have them.
    parser.set_defaults(empty=False, migrates=True)
    nouns = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    of = argparse.ArgumentParser(add_help=False)
    of.add_argument("--tenant", default=DEFAULT_TENANT, help="whose keys (%(default)s)")

    command = nouns.add_parser("migrate", help="bring the tables to this release's form")
    command.set_defaults(run=_migrate)

    storage.add_commands(nouns)

    keys = nouns.add_parser("keys", help="make, list, rotate, revoke API keys").add_subparsers(
        title="commands", metavar="COMMAND", required=True
    )
    command = keys.add_parser("create", parents=[of], help="make a key and print it, once")
    command.add_argument("--name", default="", help="what people know it by")
    command.add_argument(
        "--scope",
        action="append",
        type=Scope,
        choices=list(Scope),
        help="repeat for more; all but metrics unless given",
    )
    command.add_argument("--days", type=float, help="it expires after so many; never unless given")
    command.set_defaults(run=_create)
    command = keys.add_parser("list", parents=[of], help="newest first")
    command.set_defaults(run=_list)
    command = keys.add_parser("rotate", parents=[of], help="make a key in the place of another and print it, once")
    command.add_argument("key", metavar="KEY", help="the key's id")
    command.add_argument(
        "--overlap-hours", type=float, default=24, help="the old one stays valid so long (%(default)s)"
    )
    command.set_defaults(run=_rotate)
    command = keys.add_parser("revoke", parents=[of], help="let a key open nothing any more")
    command.add_argument("key", metavar="KEY", help="the key's id")
    command.set_defaults(run=_revoke)

    tenants.add_commands(nouns)
    return parser


def _migrate(_database: Database, _options: argparse.Namespace) -> None:
    say("The tables are up to date.")


def _of_tenant(database: Database, options: argparse.Namespace) -> Database:
    with database.read() as session:
        Tenants(session).get(options.tenant)
    return database.acting(Actor(options.tenant, "operator"))


def _create(database: Database, options: argparse.Namespace) -> None:
    lifetime = None if options.days is None else options.days * _DAY
    with _of_tenant(database, options).write() as session:
        row, text = Keys(session).add(
            name=options.name, scopes=set(options.scope or TENANT_SCOPES), expires_in_seconds=lifetime
        )
    sys.stderr.write(f"{row.id} of tenant {row.tenant} may {', '.join(row.scopes)}. Keep it: it is not shown again.\n")
    say(text)


def _list(database: Database, options: argparse.Namespace) -> None:
    with _of_tenant(database, options).read() as session:
        for row in Keys(session).page(limit=10_000):
            end = "revoked" if row.revoked_at else f"expires {rfc3339(row.expires_at) or 'never'}"
            used = f"used {rfc3339(row.last_used_at) or 'never'}"
            say("  ".join((row.id, f"lv_{row.prefix}", ",".join(row.scopes), end, used, row.name)))


def _rotate(database: Database, options: argparse.Namespace) -> None:
    with _of_tenant(database, options).write() as session:
        keys = Keys(session)
        row, text = keys.rotate(options.key, overlap_seconds=options.overlap_hours * _HOUR)
        until = rfc3339(keys.get(options.key).expires_at)
    sys.stderr.write(f"{row.id} takes the place of {options.key}, which is valid until {until}.\n")
    say(text)


def _revoke(database: Database, options: argparse.Namespace) -> None:
    with _of_tenant(database, options).write() as session:
        Keys(session).revoke(options.key)
    say(f"{options.key} is revoked.")


if __name__ == "__main__":
    sys.exit(main())
