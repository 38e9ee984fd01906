"""`python -m catalog collect`: what an operator does with the store by hand."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from catalog.blobs import Blobs
from catalog.db import Database
from catalog.settings import Settings
from catalog.storage.collector import Collector
from catalog.storage.ledger import DatabaseLedger

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001 - argparse gives its class no other name


def add_commands(commands: Commands) -> None:
    """Add this module's commands to those of `python -m catalog`."""
    command = commands.add_parser("collect", help="forget what is old, and remove bytes that nothing names")
    command.add_argument("--dry-run", action="store_true", help="only say what there is to do")
    command.set_defaults(run=_collect)


def _collect(database: Database, options: argparse.Namespace) -> None:
    settings = Settings()
    collector = Collector(settings, database, Blobs.from_settings(settings, DatabaseLedger(database)))
    if not options.dry_run:
        done = collector.run()
        _say(f"Removed {_sum(done['blobs'], done['bytes'])}.")
        _say(f"Forgot {', '.join(f'{done[name]} {words}' for name, words in _OLD.items())}.")
    survey = collector.survey()
    if options.dry_run:
        _say(f"To forget: {', '.join(f'{survey.old[name]} {words}' for name, words in _OLD.items())}.")
    holdings = survey.holdings
    _say(f"In the store: {_sum(holdings.blobs, holdings.bytes)}.")
    _say(f"Nothing names {_sum(holdings.unused_blobs, holdings.unused_bytes)} of them.")
    _say(
        f"Past the grace period of {settings.collect_grace_seconds / 3600:g} h are"
        f" {_sum(holdings.due_blobs, holdings.due_bytes)}."
    )
    if holdings.condemned:
        _say(f"Given up, and still to be removed: {holdings.condemned} copies.")


_OLD = {"uploads": "uploads", "jobs": "jobs", "idempotency_keys": "Idempotency-Keys", "steps": "cached steps"}


def _sum(blobs: int, size: int) -> str:
    return f"{blobs} blobs with {size:,} bytes"


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
