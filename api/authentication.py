"""Who asks, and whether they may: before anything of a request is read or looked up.

With `LEVITY_AUTH=keys` every request for data shows a key. With `none`, the default, everybody on this machine may do
everything as the tenant `default`, and nobody else anything: a peer must be a loopback address, and what a proxy has
forwarded is refused, since a proxy makes all the world look local.
"""

from __future__ import annotations

import ipaddress
import logging
import time
from collections import OrderedDict

from anyio.to_thread import run_sync
from sqlalchemy.exc import SQLAlchemyError
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api.errors import RequestError, Unauthenticated, problem_response
from catalog.db import Database
from catalog.keys.repository import Principal, find_principal, note_use
from catalog.keys.scopes import EVERYTHING
from catalog.keys.scopes import Scope as KeyScope
from catalog.keys.secrets import KEY_MARK, sha256_of
from catalog.logs import bound
from catalog.settings import Settings
from catalog.tenancy import DEFAULT_TENANT

logger = logging.getLogger(__name__)

PRINCIPAL = "levity.principal"
"""Key of the request's `Principal` in its ASGI scope."""
LOCAL = Principal(DEFAULT_TENANT, "local", EVERYTHING)
"""Whoever asks a service without keys."""

PROBES = ("/livez", "/readyz")
"""Orchestrators ask these by address and without a key: the answers tell nothing that a web page could use."""

# A key that was revoked opens for so long, in exchange for one look-up in many.
_REMEMBERED_SECONDS = 2.0
_REMEMBERED_KEYS = 10_000
_FORWARDED = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
_WRITING = {
    "uploads": KeyScope.WRITE,
    "models": KeyScope.WRITE,
    "datasets": KeyScope.WRITE,
    "jobs": KeyScope.JOBS,
    "webhooks": KeyScope.WEBHOOKS,
}


def required_scope(method: str, path: str) -> KeyScope | None:
    """What a key needs for a request; None where no key is needed. What is not known needs most."""
    if path == "/metrics":
        return KeyScope.METRICS
    if path != "/v1" and not path.startswith("/v1/"):
        return None  # probes and documentation
    noun = path.removeprefix("/v1").lstrip("/").partition("/")[0]
    if noun in ("keys", "audit"):
        return KeyScope.ADMIN
    return KeyScope.READ if method in ("GET", "HEAD") else _WRITING.get(noun, KeyScope.ADMIN)


class AuthenticationMiddleware:
    """Pure ASGI. Leaves a `Principal` in the scope of every request for data that it lets through.

    Args:
        app: The next application.
        settings: Whether keys are asked for, and whose tokens are accepted beside them.
    """

    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        self._app = app
        self._auth = settings.auth
        self._tokens = None
        if settings.auth == "keys" and settings.oidc_issuer:
            from api.oidc import Tokens  # noqa: PLC0415 - an extra that few install

            self._tokens = Tokens(settings)
        self._known: OrderedDict[str, tuple[Principal, float]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                await self._admit(scope)
            except RequestError as error:
                await problem_response(scope, error)(scope, receive, send)
                return
        principal: Principal | None = scope.get(PRINCIPAL)
        with bound(tenant=None if principal is None else principal.tenant):
            await self._app(scope, receive, send)

    async def _admit(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if self._auth == "none":
            if scope["path"] not in PROBES and not _is_local(scope, headers):
                raise RequestError(
                    "keys_required",
                    "Without keys this service answers direct requests from its own machine only; "
                    "its operator can make keys and set LEVITY_AUTH=keys.",
                )
            scope[PRINCIPAL] = LOCAL
            return
        needed = required_scope(scope["method"], scope["path"])
        if needed is None:
            return
        principal = await self._authenticate(scope["app"].state.services.database, headers)
        if needed not in principal.scopes:
            raise RequestError(
                "insufficient_scope",
                f"This key lacks the scope `{needed}`.",
                headers={"www-authenticate": f'Bearer error="insufficient_scope", scope="{needed}"'},
            )
        scope[PRINCIPAL] = principal

    async def _authenticate(self, database: Database, headers: Headers) -> Principal:
        kind, _, text = headers.get("authorization", "").partition(" ")
        if not text:
            raise Unauthenticated("Send a key: `Authorization: Bearer lv_…`.", challenge="Bearer")
        text = text.strip()
        name = sha256_of(text)
        known = self._known.get(name)
        if known is not None and known[1] > time.monotonic():
            return known[0]
        principal: Principal | None = None
        if kind.lower() == "bearer" and self._tokens is not None and not text.startswith(KEY_MARK):
            principal = await run_sync(self._tokens.principal, database, text)
        elif kind.lower() == "bearer":
            principal = await run_sync(_look_up, database, text)
        if principal is None:
            self._known.pop(name, None)
            raise Unauthenticated("This key is not known, has expired or was revoked.")
        self._known[name] = (principal, time.monotonic() + _REMEMBERED_SECONDS)
        if len(self._known) > _REMEMBERED_KEYS:
            self._known.popitem(last=False)
        return principal


def _look_up(database: Database, text: str) -> Principal | None:
    with database.read() as session:
        found = find_principal(session, text)
    if found is None:
        return None
    principal, stale = found
    if stale:
        try:
            with database.write() as session:
                note_use(session, principal.key_id)
        except SQLAlchemyError as error:
            logger.warning("the use of key %s was not noted: %s", principal.key_id, error)
    return principal


def _is_local(scope: Scope, headers: Headers) -> bool:
    """Whether the peer is a process of this machine that asks for itself. A Unix socket has no peer address."""
    if any(name in headers for name in _FORWARDED):
        return False
    client = scope.get("client")
    if client is None:
        return True
    try:
        address = ipaddress.ip_address(client[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
