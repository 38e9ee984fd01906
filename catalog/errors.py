"""What the catalog refuses, as named errors with stable codes. The API maps them to HTTP, workers to job errors."""

from __future__ import annotations


class CatalogError(Exception):
    """A request that the catalog cannot fulfil.

    Args:
        message: One or two sentences for a person: what was wrong, where, what would work.
        code: Stable machine-readable identifier; the class's own unless given.
    """

    code = "catalog_error"
    retry_after_seconds: int | None = None
    """When it may be worth another try; None where time alone changes nothing."""

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code


class NotFound(CatalogError):
    """No such thing, or not any more."""

    code = "not_found"


class Conflict(CatalogError):
    """The thing exists, but its state does not allow this."""

    code = "conflict"


class Fenced(CatalogError):
    """Another attempt owns the job now; whatever this attempt still wants to write is refused."""

    code = "fenced"


class DigestMismatch(CatalogError):
    """Bytes arrived that do not have the hash that was announced."""

    code = "digest_mismatch"


class StoreFull(CatalogError):
    """No room for these bytes."""

    code = "store_full"


class BytesGone(CatalogError):
    """Bytes that were stored long ago, and that nothing named since, were collected: store them again."""

    code = "bytes_gone"
    retry_after_seconds = 0


class StoreUnavailable(CatalogError):
    """The blob store does not answer, or refuses to; what was asked may be asked again."""

    code = "store_unavailable"
    retry_after_seconds = 5


class QuotaExceeded(CatalogError):
    """More than the tenant may have.

    Args:
        retry_after_seconds: When it may be worth another try; None where only the tenant can make room.
    """

    code = "quota_exceeded"

    def __init__(self, message: str, *, code: str | None = None, retry_after_seconds: int | None = None) -> None:
        super().__init__(message, code=code)
        self.retry_after_seconds = retry_after_seconds
