"""What can be done with keys."""

from __future__ import annotations

from collections.abc import Collection

from api.dependencies import PageRequest, Services
from api.errors import RequestError
from api.keys.schemas import CreateKey, audit_json, key_json
from catalog.audit.repository import Audit
from catalog.db import Json
from catalog.keys.repository import Keys, Principal
from catalog.keys.scopes import Scope


class KeyService:
    """Keys of the caller's tenant.

    Args:
        services: The process's parts.
        caller: Who asks.
    """

    def __init__(self, services: Services, caller: Principal) -> None:
        self._database = services.database
        self._caller = caller

    def create(self, body: CreateKey) -> Json:
        self._check(body.scopes)
        with self._database.write() as session:
            row, secret = Keys(session).add(
                name=body.name, scopes=set(body.scopes), expires_in_seconds=body.expires_in_seconds
            )
            return {"key": key_json(row), "secret": secret}

    def get(self, key_id: str) -> Json:
        with self._database.read() as session:
            return key_json(Keys(session).get(key_id))

    def list(self, page: PageRequest) -> Json:
        with self._database.read() as session:
            rows = Keys(session).page(limit=page.limit + 1, before_id=page.before_id)
        return page.answer(rows, [key_json(row) for row in rows])

    def rotate(self, key_id: str, *, overlap_seconds: float) -> Json:
        with self._database.write() as session:
            keys = Keys(session)
            # Its secret goes to the caller, who must not come to more than they have.
            self._check([Scope(scope) for scope in keys.get(key_id, lock=True).scopes])
            row, secret = keys.rotate(key_id, overlap_seconds=overlap_seconds)
            return {"key": key_json(row), "secret": secret}

    def revoke(self, key_id: str) -> Json:
        with self._database.write() as session:
            return key_json(Keys(session).revoke(key_id))

    def audit(self, page: PageRequest, *, subject: str | None) -> Json:
        with self._database.read() as session:
            rows = Audit(session).page(limit=page.limit + 1, before_id=page.before_id, subject=subject)
        return page.answer(rows, [audit_json(row) for row in rows])

    def _check(self, scopes: Collection[Scope]) -> None:
        lacking = sorted(set(scopes) - self._caller.scopes)
        if lacking:
            raise RequestError(
                "insufficient_scope", f"A key cannot give what it has not: this one lacks {', '.join(lacking)}."
            )
