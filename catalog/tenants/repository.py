"""All SQL about tenants."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from catalog.audit.repository import note
from catalog.db import db_now
from catalog.errors import CatalogError, Conflict, NotFound
from catalog.tenants.tables import TenantRow

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")


class Tenants:
    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, tenant: str) -> TenantRow:
        if _NAME.fullmatch(tenant) is None:
            raise CatalogError(
                f"A tenant's name has up to 40 of a-z, 0-9 and -, not {tenant!r}.", code="bad_tenant_name"
            )
        if self._session.get(TenantRow, tenant) is not None:
            raise Conflict(f"There is a tenant {tenant} already.", code="tenant_exists")
        row = TenantRow(id=tenant, created_at=db_now())
        self._session.add(row)
        self._session.flush()
        self._session.refresh(row)
        note(self._session, "tenant.created", tenant)
        return row

    def get(self, tenant: str) -> TenantRow:
        row = self._session.get(TenantRow, tenant)
        if row is None:
            raise NotFound(f"There is no tenant {tenant}.", code="tenant_not_found")
        return row

    def change(self, tenant: str, **values: float | None) -> TenantRow:
        """Set limits and the share, by the names of their columns; None takes a limit away."""
        row = self.get(tenant)
        self._session.execute(update(TenantRow).where(TenantRow.id == tenant).values(**values))
        self._session.refresh(row)
        note(self._session, "tenant.changed", tenant)
        return row

    def all(self) -> Sequence[TenantRow]:
        return self._session.scalars(select(TenantRow).order_by(TenantRow.id)).all()
