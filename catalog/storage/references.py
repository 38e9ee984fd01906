"""What names a blob. A blob that none of these places names is not needed, so all of them must be here."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy import bindparam, text
from sqlalchemy.orm import Session

_COLUMNS = """
    SELECT sha256 FROM datasets
    UNION ALL SELECT sha256 FROM artifacts
    UNION ALL SELECT sha256 FROM uploads
"""
# Lists of `{name, sha256, size}`, and a model's `source`: see `ModelRow` and `StepCacheRow`.
_DOCUMENTS = {
    "sqlite": """
    UNION ALL SELECT json_extract(file.value, '$.sha256') FROM models, json_each(models.files) AS file
    UNION ALL SELECT json_extract(models.source, '$.file.sha256') FROM models
    UNION ALL SELECT json_extract(file.value, '$.sha256') FROM step_cache, json_each(step_cache.files) AS file
""",
    "postgresql": """
    UNION ALL SELECT file.value ->> 'sha256' FROM models, json_array_elements(models.files) AS file(value)
    UNION ALL SELECT models.source #>> '{file,sha256}' FROM models
    UNION ALL SELECT file.value ->> 'sha256' FROM step_cache, json_array_elements(step_cache.files) AS file(value)
""",
}
NAMING_COLUMNS = frozenset(
    {
        ("datasets", "sha256"),
        ("artifacts", "sha256"),
        ("uploads", "sha256"),
        ("models", "files"),
        ("models", "source"),
        ("step_cache", "files"),
    }
)
"""The columns that the queries below read."""


def _named(session: Session) -> str:
    """A query for every digest that is named, those that are named twice twice."""
    return _COLUMNS + _DOCUMENTS[session.get_bind().dialect.name]


def named(session: Session) -> set[str]:
    """Every digest that is named."""
    query = text(f"SELECT DISTINCT sha256 FROM ({_named(session)}) AS named WHERE sha256 IS NOT NULL")  # noqa: S608 - above
    return set(session.scalars(query))


def named_among(session: Session, digests: Collection[str]) -> set[str]:
    """Those of `digests` that are named.

    One statement, and so one state of the database: a digest that moves from one row to another is seen in one of them.
    """
    known = f"({_named(session)}) AS named"
    query = text(f"SELECT DISTINCT sha256 FROM {known} WHERE sha256 IN :digests")  # noqa: S608 - our own names
    return set(session.scalars(query.bindparams(bindparam("digests", expanding=True)), {"digests": list(digests)}))


def unnamed(session: Session, *, stored_before: float, limit: int) -> Sequence[str]:
    """Live blobs that nothing names, are not known to be unused, and were stored before a time."""
    query = text(
        "SELECT sha256 FROM blobs WHERE live AND unused_since IS NULL AND stored_at < :before"  # noqa: S608 - constants
        f" EXCEPT SELECT sha256 FROM ({_named(session)}) AS named LIMIT :limit"
    )
    return session.scalars(query, {"before": stored_before, "limit": limit}).all()
