"""What endpoints are given: the catalog's parts, and the pieces of a request that several of them read."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

from anyio import CapacityLimiter
from fastapi import Depends, Header, Query, Request
from pydantic import AfterValidator, BaseModel, ConfigDict

from api.authentication import PRINCIPAL
from api.errors import REQUEST_ID, InvalidField
from api.metrics import Metrics
from catalog.blobs import Blobs
from catalog.db import Database, Json
from catalog.keys.repository import Principal
from catalog.settings import Settings
from catalog.tenancy import Actor
from compression._spec_base import Exact

if TYPE_CHECKING:
    # Celery takes long to import and nothing needs it before the first request.
    from catalog.broker import Wakeups

MAX_WAIT_SECONDS = 30
_WAIT = re.compile(r'(?:^|[,;])\s*wait\s*=\s*"?(\d{1,9})"?\s*(?=$|[,;])', re.IGNORECASE)


@dataclass(frozen=True)
class Services:
    """The parts of this process."""

    settings: Settings
    database: Database
    blobs: Blobs
    wakeups: Wakeups
    metrics: Metrics
    writer_threads: CapacityLimiter
    """Threads that write uploads, apart from those that answer requests: no number of uploads keeps others waiting."""
    stopping: asyncio.Event
    """Set when the process was told to stop: answers that wait for something end then."""


async def _process(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


async def _caller(request: Request) -> Principal:
    # A request that came past the authentication has none, and ends here.
    principal: Principal = request.scope[PRINCIPAL]
    return principal


async def _request_id(request: Request) -> str:
    value: str = request.scope[REQUEST_ID]
    return value


async def _services(request: Request) -> Services:
    # Called, not asked for as dependencies: resolving those takes longer than all that is done here.
    services, caller = await _process(request), await _caller(request)
    actor = Actor(caller.tenant, caller.key_id, await _request_id(request))
    return replace(services, database=services.database.acting(actor))


def storable(text: str) -> str:
    """`text` as a database can look for it: PostgreSQL has no NUL, and nothing has a name with its stand-in."""
    return text.replace("\0", "\ufffd")


def wait_seconds(prefer: str | None) -> int:
    """Seconds that `Prefer: wait=N` (RFC 7240) asks for, at most 30; 0 without it."""
    found = _WAIT.search(prefer or "")
    return min(int(found[1]), MAX_WAIT_SECONDS) if found else 0


async def _wait(
    prefer: Annotated[
        str | None,
        Header(description="`wait=N` holds the answer back for up to N seconds, 30 at most (RFC 7240)."),
    ] = None,
) -> int:
    return wait_seconds(prefer)


ServicesParameter = Annotated[Services, Depends(_services)]
"""The process's parts as the caller may use them: the database shows the caller's tenant alone."""
ProcessServices = Annotated[Services, Depends(_process)]
"""The same unconfined, for probes."""
Caller = Annotated[Principal, Depends(_caller)]
RequestId = Annotated[str, Depends(_request_id)]
WaitSeconds = Annotated[int, Depends(_wait)]
Key = Annotated[str, AfterValidator(storable)]
"""A name that is looked up."""


class Body(Exact):
    """What a caller sends. Unknown fields are errors, so a typo never passes silently."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Document(BaseModel):
    """What the service answers."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Page(Document):
    next_cursor: str | None
    """Give it as `cursor` to get the next page; null on the last one."""


@dataclass(frozen=True)
class PageRequest:
    limit: int
    before_id: str | None

    def answer(self, rows: Sequence[Any], items: list[Json]) -> Json:
        """A page with these items. `rows` are what `limit + 1` found, so that the last page is known as such."""
        more = len(rows) > self.limit
        return {
            "items": items[: self.limit],
            "next_cursor": _encode(rows[self.limit - 1].id) if more else None,
        }


async def _page(
    limit: Annotated[int, Query(ge=1, le=200, description="Items on a page.")] = 50,
    cursor: Annotated[str | None, Query(max_length=200, description="`next_cursor` of the page before.")] = None,
) -> PageRequest:
    return PageRequest(limit, None if cursor is None else _decode(cursor))


PageParameters = Annotated[PageRequest, Depends(_page)]


def _encode(last_id: str) -> str:
    return base64.urlsafe_b64encode(last_id.encode()).decode().rstrip("=")


def _decode(cursor: str) -> str:
    try:
        return storable(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode())
    except (binascii.Error, ValueError) as error:
        raise InvalidField("/query/cursor", "This is not a cursor that a page gave.") from error
