"""All SQL about API keys."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from catalog.audit.repository import note
from catalog.db import db_now, newest_first, read_clock
from catalog.errors import Conflict, NotFound
from catalog.ids import new_id
from catalog.keys.scopes import Scope
from catalog.keys.secrets import matches, new_key, prefix_of
from catalog.keys.tables import ApiKeyRow
from catalog.tenants.tables import TenantRow

_LAST_USED_STEP_SECONDS = 300


@dataclass(frozen=True)
class Principal:
    """Whom a key stands for."""

    tenant: str
    key_id: str
    scopes: frozenset[Scope]
    requests_per_minute: int | None = None
    """The tenant's own limit, where it has one."""


class Keys:
    """Keys of the session's tenant."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(
        self, *, name: str, scopes: Collection[Scope], expires_in_seconds: float | None = None
    ) -> tuple[ApiKeyRow, str]:
        """Make a key; its row, and its text, which is never to be had again."""
        made = new_key()
        row = ApiKeyRow(
            id=new_id("key"),
            name=name,
            prefix=made.prefix,
            sha256=made.sha256,
            scopes=sorted(scopes),
            created_at=db_now(),
            expires_at=None if expires_in_seconds is None else db_now() + expires_in_seconds,
        )
        self._session.add(row)
        self._session.flush()
        self._session.refresh(row)
        note(self._session, "key.created", row.id)
        return row, made.text

    def get(self, key_id: str, *, lock: bool = False) -> ApiKeyRow:
        row = self._session.get(ApiKeyRow, key_id, with_for_update=lock or None)
        if row is None:
            raise NotFound(f"There is no key {key_id}.", code="key_not_found")
        return row

    def page(self, *, limit: int, before_id: str | None = None) -> Sequence[ApiKeyRow]:
        """Newest first, those older than `before_id`."""
        query = newest_first(select(ApiKeyRow), ApiKeyRow.id, limit=limit, before_id=before_id)
        return self._session.scalars(query).all()

    def rotate(self, key_id: str, *, overlap_seconds: float) -> tuple[ApiKeyRow, str]:
        """Make a key in the place of another, which goes on for `overlap_seconds` at most.

        The new one lives as long as the old one was meant to, counted from now.
        """
        old = self.get(key_id, lock=True)
        if not self._valid(old):
            raise Conflict(f"Key {key_id} was revoked or has expired; create a new one.", code="key_not_valid")
        if old.replaced_by is not None:
            raise Conflict(f"Key {key_id} was rotated already; rotate {old.replaced_by}.", code="key_not_valid")
        lifetime = None if old.expires_at is None else old.expires_at - old.created_at
        row, text = self.add(name=old.name, scopes=[Scope(scope) for scope in old.scopes], expires_in_seconds=lifetime)
        until = read_clock(self._session) + overlap_seconds
        old.expires_at = until if old.expires_at is None else min(old.expires_at, until)
        old.replaced_by = row.id
        self._session.flush()
        note(self._session, "key.rotated", key_id)
        return row, text

    def revoke(self, key_id: str) -> ApiKeyRow:
        """Let the key open nothing any more; once is enough."""
        row = self.get(key_id, lock=True)
        if row.revoked_at is None:
            row.revoked_at = read_clock(self._session)
            self._session.flush()
            note(self._session, "key.revoked", key_id)
        return row

    def _valid(self, row: ApiKeyRow) -> bool:
        return row.revoked_at is None and (row.expires_at is None or row.expires_at > read_clock(self._session))


_VALID = (ApiKeyRow.revoked_at.is_(None), or_(ApiKeyRow.expires_at.is_(None), ApiKeyRow.expires_at > db_now()))
_STALE = or_(ApiKeyRow.last_used_at.is_(None), ApiKeyRow.last_used_at < db_now() - _LAST_USED_STEP_SECONDS)


def find_principal(session: Session, text: str) -> tuple[Principal, bool] | None:
    """Whom a key stands for, and whether its use should be noted (`note_use`); None where it opens nothing.

    Args:
        session: Not of a tenant, since only the key tells which one it is.
        text: The key as it was shown.
    """
    prefix = prefix_of(text)
    if prefix is None:
        return None
    found = session.execute(
        select(ApiKeyRow, TenantRow.requests_per_minute, _STALE.label("stale"))
        .join(TenantRow, TenantRow.id == ApiKeyRow.tenant)
        .where(ApiKeyRow.prefix == prefix, *_VALID)
    ).one_or_none()
    if found is None:
        return None
    row, requests_per_minute, stale = found
    if not matches(text, row.sha256):
        return None
    return Principal(row.tenant, row.id, frozenset(map(Scope, row.scopes)), requests_per_minute), bool(stale)


def note_use(session: Session, key_id: str) -> None:
    """Note that a key was used about now."""
    session.execute(update(ApiKeyRow).where(ApiKeyRow.id == key_id, _STALE).values(last_used_at=db_now()))


def any_key(session: Session) -> bool:
    """Whether some key opens something."""
    return session.scalar(select(ApiKeyRow.id).where(*_VALID).limit(1)) is not None
