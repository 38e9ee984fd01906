"""Bearer tokens of an OpenID Connect provider, beside API keys: the provider says who somebody is and what they may.

The token is a signed JWT (RFC 7519, 9068). Its issuer, audience, times and signature are checked against the keys that
the provider publishes; a claim names the tenant, which must exist, and another the scopes.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any
from urllib.parse import urlsplit

import httpx
import jwt

from api.errors import RequestError, Unauthenticated
from catalog.db import Database
from catalog.keys.repository import Principal
from catalog.keys.scopes import Scope
from catalog.settings import Settings
from catalog.tenants.tables import TenantRow

logger = logging.getLogger(__name__)

# What providers sign with; no shared secrets, and not `none`.
_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
_MAX_TOKEN_BYTES = 16 * 1024
_MAX_SUBJECT = 250
_LEEWAY_SECONDS = 30
_TIMEOUT_SECONDS = 5.0
_KEYS_SECONDS = 300.0
# A token that names an unknown key makes us look for new ones, but not for every such token.
_REFRESH_SECONDS = 30.0
_PREFIX = "levity:"


class Tokens:
    """Verifies tokens of one provider. Waits for the network now and then, so it runs in threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._issuer = settings.oidc_issuer
        parts = urlsplit(self._issuer)
        if parts.scheme != "https" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
            raise ValueError("LEVITY_OIDC_ISSUER must begin with https://")
        self._lock = threading.Lock()
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._fetched = 0.0

    def principal(self, database: Database, token: str) -> Principal:
        """Whom a token stands for.

        Raises:
            RequestError: `unauthenticated`, or `identity_provider_away` where its keys cannot be had.
        """
        claims = self._claims(token)
        tenant = claims.get(self._settings.oidc_tenant_claim)
        with database.read() as session:
            row = session.get(TenantRow, tenant) if isinstance(tenant, str) else None
        if row is None:
            raise _refused(f"Its claim `{self._settings.oidc_tenant_claim}` names no tenant of this service.")
        granted = claims.get(self._settings.oidc_scope_claim, ())
        names = granted.split() if isinstance(granted, str) else granted if isinstance(granted, list) else ()
        wanted = {name.removeprefix(_PREFIX) for name in names if isinstance(name, str)}
        scopes = frozenset(scope for scope in Scope if scope in wanted)
        return Principal(row.id, f"oidc:{claims['sub'][:_MAX_SUBJECT]}", scopes, row.requests_per_minute)

    def _claims(self, token: str) -> dict[str, Any]:
        if len(token) > _MAX_TOKEN_BYTES:
            raise _refused("It is too long.")
        try:
            key = self._key(jwt.get_unverified_header(token).get("kid"))
            claims = jwt.decode(
                token,
                key,
                algorithms=_ALGORITHMS,
                audience=self._settings.oidc_audience,
                issuer=self._issuer,
                leeway=_LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.PyJWTError as error:
            raise _refused(f"{error}.") from error
        if not isinstance(claims["sub"], str) or not claims["sub"].isprintable():
            raise _refused("Its subject is not a text.")
        return claims

    def _key(self, kid: str | None) -> jwt.PyJWK:
        with self._lock:
            age = time.monotonic() - self._fetched
            if not self._fetched or age > _KEYS_SECONDS or (kid not in self._keys and age > _REFRESH_SECONDS):
                self._refresh()
            if kid not in self._keys:
                raise _refused("It is signed with a key that its issuer does not publish.")
            return self._keys[kid]

    def _refresh(self) -> None:
        try:
            keys = self._published()
        except (httpx.HTTPError, ValueError, KeyError, TypeError, jwt.PyJWTError) as error:
            logger.warning("the keys of %s cannot be had: %s", self._issuer, error)
            if self._keys:
                # Those that were known go on for now.
                self._fetched = time.monotonic() - _KEYS_SECONDS + _REFRESH_SECONDS
                return
            raise RequestError(
                "identity_provider_away", "The keys of the identity provider cannot be had; try again later."
            ) from error
        self._keys = {key.key_id: key for key in keys if key.public_key_use in (None, "sig")}
        self._fetched = time.monotonic()

    def _published(self) -> list[jwt.PyJWK]:
        with httpx.Client(timeout=_TIMEOUT_SECONDS, follow_redirects=False) as http:
            found = http.get(f"{self._issuer.rstrip('/')}/.well-known/openid-configuration")
            document = found.raise_for_status().json()
            if document["issuer"] != self._issuer:
                raise ValueError("its document names another issuer")
            return jwt.PyJWKSet.from_dict(http.get(document["jwks_uri"]).raise_for_status().json()).keys


def _refused(why: str) -> Unauthenticated:
    return Unauthenticated(f"This token opens nothing. {why}")
