"""What happens to every request: an identifier, the check of its Host, counting, and an answer whatever goes wrong."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Collection

from sqlalchemy.exc import DBAPIError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.authentication import PROBES
from api.errors import REQUEST_ID, RequestError, problem_response
from api.exchange import Exchange
from api.metrics import Metrics
from catalog import tracing
from catalog.db import AWAY, out_of_room
from catalog.logs import bound

logger = logging.getLogger(__name__)

MAX_JSON_BYTES = 2**20

_TOO_LARGE = f"A JSON body may have {MAX_JSON_BYTES} bytes."
# These endpoints count for themselves, against `LEVITY_MAX_UPLOAD_BYTES`.
_RAW_BODY = re.compile(r"^/v1/uploads/[^/]+/(content|parts/[^/]+)$")
_JOB = re.compile(r"/v1/jobs/(job_[A-Za-z0-9-]{1,40})(?:/|$)")
_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
# What nginx logs when the client went away before the answer.
_CLIENT_WENT_AWAY = 499


class RequestMiddleware:
    """Pure ASGI, so that bodies stream through without a task between them and the endpoint.

    Args:
        app: The next application.
        allowed_hosts: Names in the Host header that are answered; `*` among them answers all.
    """

    def __init__(self, app: ASGIApp, *, allowed_hosts: Collection[str]) -> None:
        self._app = app
        self._hosts = None if "*" in allowed_hosts else frozenset(host.lower() for host in allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        scope[REQUEST_ID] = request_id = given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex
        named = _JOB.match(scope["path"])
        tracing.current().note(request_id=request_id)
        with bound(request_id=request_id, job_id=named and named[1]):
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        request_id: str = scope[REQUEST_ID]
        exchange = Exchange(headers, receive, send, request_id)
        start = time.perf_counter()
        try:
            if self._hosts is None or scope["path"] in PROBES or _host(headers) in self._hosts:
                await self._app(scope, exchange.receive, exchange.send)
            else:
                error = RequestError("host_not_allowed", "This service does not answer for this Host.")
                await problem_response(scope, error)(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            exchange.status = exchange.status or _CLIENT_WENT_AWAY
        except AWAY as away:
            logger.warning("%s %s: the database does not answer: %s", scope["method"], scope["path"], away.orig)
            if exchange.status:
                raise
            await problem_response(scope, _away(away))(scope, exchange.receive, exchange.send)
        except Exception:
            logger.exception("%s %s failed (request %s)", scope["method"], scope["path"], request_id)
            if exchange.status:
                # Too late for another answer: breaking the connection is all that can tell the client.
                raise
            error = RequestError("internal_error", "Something went wrong here; the server's log says what.")
            await problem_response(scope, error)(scope, exchange.receive, exchange.send)
        finally:
            _count(scope, exchange, time.perf_counter() - start)


def _away(error: DBAPIError) -> RequestError:
    if out_of_room(error):
        return RequestError("store_full", "There is no room left on the database's disk.")
    return RequestError(
        "database_away",
        "The database does not answer at this moment; ask again. A submission with the same Idempotency-Key is safe.",
        headers={"retry-after": "1"},
    )


def _host(headers: Headers) -> str:
    """Name in the Host header without its port; IPv6 addresses keep their brackets."""
    host = headers.get("host", "").lower()
    return host[: host.rfind("]") + 1] if host.startswith("[") else host.partition(":")[0]


def _count(scope: Scope, exchange: Exchange, seconds: float) -> None:
    services = getattr(scope["app"].state, "services", None) if "app" in scope else None
    if services is None:
        return
    metrics: Metrics = services.metrics
    # Paths that match nothing are one series: their number is the callers' choice.
    route = getattr(scope.get("route"), "path", "unmatched")
    method = scope["method"] if scope["method"] in _METHODS else "other"
    metrics.requests.labels(method, route, str(exchange.status)).inc()
    metrics.latency.labels(method, route).observe(seconds)
    metrics.received.labels(route).inc(exchange.received)
    metrics.sent.labels(route).inc(exchange.sent)


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"})


def _limited(receive: Receive) -> Receive:
    """Count what arrives. FastAPI's own limit would answer in plain text, before a request id is given."""
    received = 0

    async def receive_some() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > MAX_JSON_BYTES:
            raise HTTPException(413, _TOO_LARGE)
        return message

    return receive_some
