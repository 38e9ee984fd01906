"""`python -m catalog tenants …`: what an operator does about tenants."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

from catalog.console import say
from catalog.db import Database
from catalog.tenancy import Actor
from catalog.tenants.repository import Tenants
from catalog.tenants.tables import TenantRow

_MINUTE = 60
_OPTIONS: dict[str, tuple[type[int | float], float, str]] = {
    "max_bytes": (int, 1, "bytes of its uploads, models, datasets and artifacts together"),
    "max_queued_jobs": (int, 1, "jobs that may wait at once"),
    "max_worker_minutes": (float, _MINUTE, "minutes of workers in 30 days"),
    "requests_per_minute": (int, 1, "instead of LEVITY_REQUESTS_PER_MINUTE"),
}


def add_commands(nouns: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the noun `tenants` to a command line."""
    tenants = nouns.add_parser("tenants", help="make, limit and list tenants").add_subparsers(
        title="commands", metavar="COMMAND", required=True
    )
    limits = argparse.ArgumentParser(add_help=False)
    for name, (kind, _, text) in _OPTIONS.items():
        limits.add_argument(
            f"--{name.replace('_', '-')}",
            type=_limit(kind),
            default=argparse.SUPPRESS,
            metavar="N",
            help=f"{text}; `none` for no limit",
        )
    limits.add_argument(
        "--share",
        type=_positive(float),
        default=argparse.SUPPRESS,
        metavar="N",
        help="weight where several tenants want the same workers; 1 unless given",
    )
    for name, action, text in (
        ("create", _create, "make a tenant"),
        ("set", _set, "change a tenant's limits; what is not named stays"),
    ):
        command = tenants.add_parser(name, parents=[limits], help=text)
        command.add_argument("tenant", metavar="NAME", help="a short name of a-z, 0-9 and -")
        command.set_defaults(run=action)
    command = tenants.add_parser("list", help="all tenants and their limits")
    command.set_defaults(run=_list)


def _positive(kind: type[int | float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = kind(text)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    parse.__name__ = f"positive {kind.__name__}"  # argparse names it when it refuses
    return parse


def _limit(kind: type[int | float]) -> Callable[[str], float | None]:
    positive = _positive(kind)

    def parse(text: str) -> float | None:
        return None if text == "none" else positive(text)

    parse.__name__ = positive.__name__
    return parse


def _create(database: Database, options: argparse.Namespace) -> None:
    with database.acting(Actor(options.tenant, "operator")).write() as session:
        tenants = Tenants(session)
        tenants.add(options.tenant)
        if values := _values(options):
            tenants.change(options.tenant, **values)
    say(f"{options.tenant} is there; make its first key: keys create --tenant {options.tenant}")


def _set(database: Database, options: argparse.Namespace) -> None:
    with database.acting(Actor(options.tenant, "operator")).write() as session:
        tenants = Tenants(session)
        values = _values(options)
        row = tenants.change(options.tenant, **values) if values else tenants.get(options.tenant)
    _show(row)


def _list(database: Database, _options: argparse.Namespace) -> None:
    with database.read() as session:
        for row in Tenants(session).all():
            _show(row)


def _values(options: argparse.Namespace) -> dict[str, float | None]:
    """Columns to set."""
    values: dict[str, float | None] = {}
    for name, (_, factor, _) in _OPTIONS.items():
        if name in options:
            given = getattr(options, name)
            values[name.replace("minutes", "seconds")] = None if given is None else given * factor
    if "share" in options:
        values["share"] = options.share
    return values


def _show(row: TenantRow) -> None:
    limits = []
    for name, (_, factor, _) in _OPTIONS.items():
        value = getattr(row, name.replace("minutes", "seconds"))
        if value is not None:
            limits.append(f"{name}={value / factor:g}" if factor > 1 else f"{name}={value}")
    say("  ".join((row.id, f"share={row.share:g}", *limits)))
