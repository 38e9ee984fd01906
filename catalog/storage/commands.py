"""`python -m catalog collect`, `verify`, `backup`, `restore`: what an operator does with the store by hand."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from catalog.blobs import Blobs
from catalog.console import say
from catalog.db import Database
from catalog.errors import CatalogError
from catalog.settings import Settings
from catalog.storage.backup import back_up, restore
from catalog.storage.collector import Collector
from catalog.storage.ledger import DatabaseLedger
from catalog.storage.verification import Verdict, verify

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001 - argparse gives its class no other name


def add_commands(commands: Commands) -> None:
    """Add this module's commands to those of `python -m catalog`."""
    command = commands.add_parser("collect", help="forget what is old, and remove bytes that nothing names")
    command.add_argument("--dry-run", action="store_true", help="only say what there is to do")
    command.set_defaults(run=_collect, migrates=False)

    command = commands.add_parser("verify", help="read all bytes that are named, and say which are missing or wrong")
    command.add_argument("--quick", action="store_true", help="only look whether they are there")
    command.set_defaults(run=_verify, migrates=False)
    command = commands.add_parser("backup", help="copy the database, then the blobs that it names, while all runs")
    command.add_argument(
        "folder", type=Path, metavar="DIR", help="new, or with an earlier backup that is brought up to date"
    )
    command.set_defaults(run=_back_up, migrates=False)
    command = commands.add_parser("restore", help="fill an empty database and the store from a backup")
    command.add_argument("folder", type=Path, metavar="DIR", help="with a backup")
    command.set_defaults(run=_restore, empty=True)


def _verify(database: Database, options: argparse.Namespace) -> None:
    verdict = verify(database, Blobs.from_settings(Settings()), quick=options.quick)
    if options.quick:
        _report(f"There are {verdict.blobs} blobs.", verdict)
    else:
        _report(f"Sound are {_sum(verdict.blobs, verdict.bytes)}.", verdict)


def _back_up(database: Database, options: argparse.Namespace) -> None:
    verdict = back_up(database, Blobs.from_settings(Settings()), options.folder)
    _report(f"The backup holds {_sum(verdict.blobs, verdict.bytes)}.", verdict)


def _restore(database: Database, options: argparse.Namespace) -> None:
    verdict = restore(database, Blobs.from_settings(Settings()), options.folder)
    _report(f"Restored are {_sum(verdict.blobs, verdict.bytes)}.", verdict)


def _report(what: str, verdict: Verdict) -> None:
    for sha256 in verdict.missing:
        say(f"missing {sha256}")
    for sha256 in verdict.corrupt:
        say(f"corrupt {sha256}")
    say(what)
    if not verdict.sound:
        raise Unsound(f"{len(verdict.missing)} blobs are missing, {len(verdict.corrupt)} are corrupt.")


class Unsound(CatalogError):
    """Bytes are missing or wrong."""

    code = "unsound"


def _collect(database: Database, options: argparse.Namespace) -> None:
    settings = Settings()
    collector = Collector(settings, database, Blobs.from_settings(settings, DatabaseLedger(database)))
    if not options.dry_run:
        done = collector.run()
        say(f"Removed {_sum(done['blobs'], done['bytes'])}.")
        say(f"Forgot {', '.join(f'{done[name]} {words}' for name, words in _OLD.items())}.")
    survey = collector.survey()
    if options.dry_run:
        say(f"To forget: {', '.join(f'{survey.old[name]} {words}' for name, words in _OLD.items())}.")
    holdings = survey.holdings
    say(f"In the store: {_sum(holdings.blobs, holdings.bytes)}.")
    say(f"Nothing names {_sum(holdings.unused_blobs, holdings.unused_bytes)} of them.")
    say(
        f"Past the grace period of {settings.collect_grace_seconds / 3600:g} h are"
        f" {_sum(holdings.due_blobs, holdings.due_bytes)}."
    )
    if holdings.condemned:
        say(f"Given up, and still to be removed: {holdings.condemned} copies.")


_OLD = {
    "uploads": "uploads",
    "jobs": "jobs",
    "idempotency_keys": "Idempotency-Keys",
    "steps": "cached steps",
    "usage": "hours of use",
}


def _sum(blobs: int, size: int) -> str:
    return f"{blobs} blobs with {size:,} bytes"
