"""Names of what lies in the store, and who knows which copy of a blob counts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from obstore import ObjectMeta

_KEY = re.compile(r"sha256/../../([0-9a-f]{64})|again/([0-9a-f]{64})/([0-9]+)")


class Ledger(Protocol):
    """Knows which copy of a blob counts; `catalog.storage.ledger` keeps it in the database."""

    def generation(self, sha256: str) -> int:
        """Which copy of these bytes counts, or would."""

    def note_stored(self, sha256: str, *, generation: int, size: int) -> bool:
        """Note that this copy is there; False when it was given up meanwhile."""


class NoLedger:
    """Of a store whose blobs nobody collects."""

    def generation(self, sha256: str) -> int:  # noqa: ARG002
        """The first."""
        return 0

    def note_stored(self, sha256: str, *, generation: int, size: int) -> bool:  # noqa: ARG002
        """Always."""
        return True


@dataclass(frozen=True)
class StoredCopy:
    """A copy of a blob as the store lists it."""

    key: str
    sha256: str
    generation: int
    size: int
    modified: float
    """Seconds since 1970, by the store's clock."""

    @classmethod
    def of(cls, entry: ObjectMeta) -> Self | None:
        """What an entry of a listing is; None for what is no blob."""
        match = _KEY.fullmatch(entry["path"])
        if match is None:
            return None
        return cls(
            entry["path"], match[1] or match[2], int(match[3] or 0), entry["size"], entry["last_modified"].timestamp()
        )


def key_of(sha256: str, generation: int) -> str:
    # Two levels of folders, so that no folder of a local store grows beyond what tools can list.
    return f"again/{sha256}/{generation}" if generation else f"sha256/{sha256[:2]}/{sha256[2:4]}/{sha256}"


@dataclass(frozen=True)
class PartKey:
    """Names a stored part. Its hash is in it, so that two senders of one number cannot mix up each other's bytes."""

    upload_id: str
    number: int
    sha256: str

    def __str__(self) -> str:
        return f"uploads/{self.upload_id}/{self.number:06d}-{self.sha256}"
