"""All SQL about the audit log."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from catalog.audit.tables import AuditRow
from catalog.db import Base, db_now, newest_first
from catalog.ids import new_id
from catalog.tenancy import actor_of

# Of the table, not of the entity: every submission adds an entry, and a unit of work costs more than the insert. So
# `note` names the tenant, which an added object would be given.
_NEW_ENTRY = insert(Base.metadata.tables[AuditRow.__tablename__]).values(at=db_now())


def note(session: Session, action: str, subject: str) -> None:
    """Write down what the session's actor does, in the transaction that does it. What workers do is a job's event."""
    actor = actor_of(session)
    if actor is not None:
        entry = {
            "id": new_id("aud"),
            "tenant": actor.tenant,
            "actor": actor.name,
            "action": action,
            "subject": subject,
            "request_id": actor.request_id,
        }
        session.execute(_NEW_ENTRY, entry)


class Audit:
    """What was done within the session's tenant."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def page(self, *, limit: int, before_id: str | None = None, subject: str | None = None) -> Sequence[AuditRow]:
        """Newest first, those older than `before_id`."""
        query = newest_first(select(AuditRow), AuditRow.id, limit=limit, before_id=before_id)
        if subject is not None:
            query = query.where(AuditRow.subject == subject)
        return self._session.scalars(query).all()
