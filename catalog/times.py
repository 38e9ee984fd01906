"""Points in time as people and programs read them; the database has seconds since 1970."""

from __future__ import annotations

from datetime import UTC, datetime


def rfc3339(seconds: float | None) -> str | None:
    """A point in time in UTC, from seconds since 1970.

    >>> rfc3339(1.5)
    '1970-01-01T00:00:01.500Z'
    """
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
