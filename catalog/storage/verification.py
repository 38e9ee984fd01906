"""Whether the bytes of everything that is named are there, and are what their name says."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from catalog.blobs import Blobs
from catalog.db import Database
from catalog.errors import NotFound
from catalog.storage.references import named, named_among


@dataclass(frozen=True)
class Verdict:
    """What was found."""

    blobs: int
    bytes: int
    """Read and right."""
    missing: Sequence[str]
    """Digests whose bytes are not there."""
    corrupt: Sequence[str]
    """Digests whose bytes have another hash."""

    @property
    def sound(self) -> bool:
        return not self.missing and not self.corrupt


def verify(database: Database, blobs: Blobs, *, quick: bool = False) -> Verdict:
    """Look at every blob that is named; `quick` looks whether they are there, and reads none."""
    with database.read() as session:
        digests = named(session)
    verdict = check(blobs, digests, quick=quick)
    # What was deleted and collected meanwhile is not missed.
    with database.read() as session:
        missing = sorted(named_among(session, verdict.missing)) if verdict.missing else []
    return Verdict(verdict.blobs, verdict.bytes, missing, verdict.corrupt)


def check(blobs: Blobs, digests: Iterable[str], *, quick: bool = False) -> Verdict:
    """Look at these blobs."""
    found = size = 0
    missing: list[str] = []
    corrupt: list[str] = []
    for sha256 in sorted(digests):
        if quick:
            if blobs.exists(sha256):
                found += 1
            else:
                missing.append(sha256)
            continue
        digest = hashlib.sha256()
        read = 0
        try:
            for chunk in blobs.read(sha256):
                digest.update(chunk)
                read += len(chunk)
        except NotFound:
            missing.append(sha256)
            continue
        if digest.hexdigest() == sha256:
            found, size = found + 1, size + read
        else:
            corrupt.append(sha256)
    return Verdict(found, size, missing, corrupt)
