"""From files that a child left to blobs. Nothing here trusts the child: see `workers.files`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from catalog.blobs import CHUNK_BYTES, Blobs
from catalog.db import Json
from catalog.errors import StoreFull
from catalog.jobs.leases import NewArtifact
from compression.result import ArtifactFile
from workers.files import UnsafeFile, list_folder, open_folder, open_regular
from workers.protocol import OUT_FOLDER

_MAX_FILES = 1000
_MEDIA_TYPE = re.compile(r"[a-z]+/[a-z0-9.+-]+(; ?charset=[a-z0-9-]+)?")


def store_artifacts(
    files: Sequence[ArtifactFile], folder: Path, blobs: Blobs, *, min_free_bytes: int, between: Callable[[], None]
) -> list[NewArtifact]:
    """Store the files that a child says it left in its folder `out`.

    Raises:
        UnsafeFile: A file is not what the child says, or no plain file.
        DigestMismatch: A file does not have the announced hash.
        StoreFull: There is no room.
    """
    names = [file.name for file in files]
    if len(set(names)) != len(names) or len(names) > _MAX_FILES:
        raise UnsafeFile("The answer names a file twice, or too many of them.")
    artifacts: list[NewArtifact] = []
    if not files:
        return artifacts  # then there need not be a folder either
    with open_folder(folder, OUT_FOLDER) as out:
        for announced in files:
            between()
            if _MEDIA_TYPE.fullmatch(announced.media_type) is None:
                raise UnsafeFile(f"Artifact {announced.name} has no proper media type.")
            with open_regular(out, announced.name) as file:
                sha256, size = _store(file, blobs, min_free_bytes, expected_sha256=announced.sha256)
            if size != announced.size:
                raise UnsafeFile(f"Artifact {announced.name} has {size} bytes, not {announced.size}.")
            artifacts.append(NewArtifact(announced.name, sha256, size, announced.media_type))
    return artifacts


def store_step(folder: Path, relative: str, blobs: Blobs, *, min_free_bytes: int) -> list[Json]:
    """Store what a step left in `folder/relative`, as the step cache notes it. Raises like `store_artifacts`."""
    files: list[Json] = []
    with open_folder(folder, relative) as step:
        names = list_folder(step)
        if len(names) > _MAX_FILES:
            raise UnsafeFile("A step left too many files.")
        for name in names:
            with open_regular(step, name) as file:
                sha256, size = _store(file, blobs, min_free_bytes)
            files.append({"name": name, "sha256": sha256, "size": size})
    return files


def _store(file: BinaryIO, blobs: Blobs, min_free_bytes: int, *, expected_sha256: str | None = None) -> tuple[str, int]:
    size = file.seek(0, 2)
    file.seek(0)
    # A sparse file claims any size at no cost; it must not fill the store.
    if size > blobs.free_bytes() - min_free_bytes:
        raise StoreFull("There is no room left on the server's disk.")
    return blobs.take_in(iter(lambda: file.read(CHUNK_BYTES), b""), expected_sha256=expected_sha256)
