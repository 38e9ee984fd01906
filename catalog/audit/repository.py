"""All SQL about the audit log."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from catalog.audit.tables import AuditRow
from catalog.db import db_now, newest_first
from catalog.ids import new_id
from catalog.tenancy import actor_of


def note(session: Session, action: str, subject: str) -> None:
    """Write down what the session's actor does, in the transaction that does it. What workers do is a job's event."""
    actor = actor_of(session)
    if actor is not None:
        session.add(
            AuditRow(
                id=new_id("aud"),
                at=db_now(),
                actor=actor.name,
                action=action,
                subject=subject,
                request_id=actor.request_id,
            )
        )


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
