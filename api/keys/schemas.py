"""What is said about keys and of what was done."""

from __future__ import annotations

from typing import Annotated

from pydantic import AwareDatetime, ConfigDict, Field

from api.dependencies import Body, Document, Page
from catalog.audit.tables import AuditRow
from catalog.db import Json
from catalog.keys.scopes import Scope
from catalog.keys.tables import ApiKeyRow
from catalog.times import rfc3339

_DAY = 24 * 3600


class CreateKey(Body):
    """Makes a key of the caller's tenant."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"name": "ci", "scopes": ["read", "write", "jobs"], "expires_in_seconds": 7776000}]
        }
    )

    name: str = Field(default="", max_length=255)
    """What people know it by."""
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1, max_length=16)]
    """What it may do: at most what the key that makes it may."""
    expires_in_seconds: int | None = Field(default=None, ge=60, le=10 * 366 * _DAY)
    """It opens nothing any more after so long; never unless given."""


class RotateKey(Body):
    """Makes a key in the place of another."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"overlap_seconds": 3600}]})

    overlap_seconds: int = Field(default=_DAY, ge=0, le=30 * _DAY)
    """The old key stays valid for so long, unless it expires before."""


class ApiKey(Document):
    """A key, without its secret."""

    id: str
    name: str
    prefix: str
    """`lv_` and the part that may be shown."""
    scopes: list[Scope]
    created_at: AwareDatetime
    expires_at: AwareDatetime | None
    revoked_at: AwareDatetime | None
    replaced_by: str | None
    """The key that a rotation made in its place."""
    last_used_at: AwareDatetime | None
    """Correct to about five minutes."""


class NewApiKey(Document):
    """A key just made."""

    key: ApiKey
    secret: str
    """The whole key, for the header `Authorization: Bearer …`. It is not shown again."""


class ApiKeyPage(Page):
    items: list[ApiKey]


class AuditEntry(Document):
    """Something that somebody did."""

    id: str
    at: AwareDatetime
    actor: str
    """A key's id; `local` on a service without keys; `operator` for who works on the database itself."""
    action: str
    """Such as `job.created`, `model.deleted` or `key.rotated`."""
    subject: str
    """Id of what it was done to."""
    request_id: str
    """The request's X-Request-ID."""


class AuditPage(Page):
    items: list[AuditEntry]


def key_json(row: ApiKeyRow) -> Json:
    return {
        "id": row.id,
        "name": row.name,
        "prefix": f"lv_{row.prefix}",
        "scopes": row.scopes,
        "created_at": rfc3339(row.created_at),
        "expires_at": rfc3339(row.expires_at),
        "revoked_at": rfc3339(row.revoked_at),
        "replaced_by": row.replaced_by,
        "last_used_at": rfc3339(row.last_used_at),
    }


def audit_json(row: AuditRow) -> Json:
    return {
        "id": row.id,
        "at": rfc3339(row.at),
        "actor": row.actor,
        "action": row.action,
        "subject": row.subject,
        "request_id": row.request_id,
    }
