"""Whose things are whose. A session that belongs to a tenant sees, changes and makes that tenant's rows alone.

This is the one place that enforces it: no repository and no endpoint filters by tenant for itself, so none can forget
to. What belongs to another tenant is not there, and is answered like what never was.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import Select, String, event
from sqlalchemy.orm import Mapped, ORMExecuteState, Session, UOWTransaction, mapped_column, with_loader_criteria
from sqlalchemy.orm.util import LoaderCriteriaOption

DEFAULT_TENANT = "default"
"""Owns everything of a service without keys, and what was made before there were tenants."""
_KEY = "levity.actor"


@dataclass(frozen=True)
class Actor:
    """Who does something."""

    tenant: str
    name: str
    """A key's id, or `local` where no key is needed, or `operator` for who works on the database itself."""
    request_id: str = ""


class Tenanted:
    """A table each of whose rows belongs to a tenant. Rows below such a row are reached through it."""

    tenant: Mapped[str] = mapped_column(String(40), default=DEFAULT_TENANT, server_default=DEFAULT_TENANT)


class TenantSession(Session):
    """A session; with an actor it is confined to the actor's tenant, without one (workers) it sees all."""

    def __init__(self, bind: Any, *, actor: Actor | None = None, **options: Any) -> None:  # noqa: ANN401 - as Session
        super().__init__(bind, **options)
        self.info[_KEY] = actor


def actor_of(session: Session) -> Actor | None:
    """Who acts in the session; None in a worker's."""
    actor: Actor | None = session.info.get(_KEY)
    return actor


def tenant_of(session: Session) -> str:
    """The tenant that what the session makes belongs to."""
    actor = actor_of(session)
    return DEFAULT_TENANT if actor is None else actor.tenant


@lru_cache(maxsize=4096)
def _confined_to(tenant: str) -> LoaderCriteriaOption:
    return with_loader_criteria(Tenanted, lambda table: table.tenant == tenant, include_aliases=True)


@event.listens_for(TenantSession, "do_orm_execute")
def _confine(state: ORMExecuteState) -> None:
    actor = actor_of(state.session)
    if actor is not None and (state.is_select or state.is_update or state.is_delete):
        statement: Select[Any] = state.statement  # type: ignore[assignment] # updates and deletes take options too
        state.statement = statement.options(_confined_to(actor.tenant))
    elif actor is not None and state.is_insert and "tenant" in getattr(state.bind_mapper, "columns", ()):
        raise RuntimeError("what belongs to a tenant is added as an object, which is given its tenant")


@event.listens_for(TenantSession, "before_flush")
def _own(session: Session, _context: UOWTransaction, _instances: object) -> None:
    actor = actor_of(session)
    if actor is not None:
        for row in session.new:
            if isinstance(row, Tenanted):
                row.tenant = actor.tenant
