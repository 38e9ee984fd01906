"""Blobs: bytes that never change, named by their SHA-256, in a local folder or an S3-compatible store.

Both kinds go through obstore. The local one adds what an object store gives for free: a blob appears whole or not at
all, and is on disk before anyone is told that it exists.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import NotFoundError
from obstore.store import LocalStore, ObjectStore, from_url

from catalog.errors import DigestMismatch, NotFound, StoreFull
from catalog.settings import Settings

CHUNK_BYTES = 4 * 2**20


@dataclass(frozen=True)
class PartKey:
    """Names a stored part. Its hash is in it, so that two senders of one number cannot mix up each other's bytes."""

    upload_id: str
    number: int
    sha256: str

    def __str__(self) -> str:
        return f"uploads/{self.upload_id}/{self.number:06d}-{self.sha256}"


class Blobs:
    """The blob store that `settings` name.

    Args:
        url: `file:///folder` or `s3://bucket/prefix`.
        staging: Local folder for files on their way in or out. With a local store it must be on the same file
            system, so that taking a file in is a rename.
        credentials: Keys of an S3-compatible store, as obstore names them; without them the `AWS_*` variables hold.
    """

    def __init__(self, url: str, staging: Path, *, credentials: Mapping[str, str] | None = None) -> None:
        parts = urlsplit(url)
        self._folder = Path(unquote(parts.path)) if parts.scheme == "file" else None
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._store: ObjectStore = LocalStore(self._folder)
        else:
            self._store = from_url(url, **(credentials or {}))  # type: ignore[call-overload]
        self.staging = staging
        staging.mkdir(parents=True, exist_ok=True, mode=0o700)

    @classmethod
    def from_settings(cls, settings: Settings) -> Blobs:
        """The store of this deployment."""
        return cls(settings.resolved_store_url, settings.folder("staging"), credentials=settings.store_credentials)

    def adopt(self, path: Path, sha256: str) -> None:
        """Take over a file in whose name `sha256` is known to be right; `path` is gone afterwards.

        Durable on return. A blob that is there already is left alone.

        Raises:
            StoreFull: There is no room. `path` still exists.
        """
        if self.exists(sha256):
            path.unlink()
            return
        path.chmod(0o444)
        self._move_in(path, _key(sha256))

    def copy_in(self, path: Path, *, expected_sha256: str | None = None) -> tuple[str, int]:
        """Copy a file into the store and return its hash and size; `path` stays.

        The bytes that are hashed are the bytes that are stored, whatever happens to `path` meanwhile.

        Raises:
            DigestMismatch: The file does not have the expected hash.
            StoreFull: There is no room.
        """
        with path.open("rb") as source:
            return self.take_in(iter(lambda: source.read(CHUNK_BYTES), b""), expected_sha256=expected_sha256)

    def take_in(self, chunks: Iterator[bytes], *, expected_sha256: str | None = None) -> tuple[str, int]:
        """Store a stream of bytes and return its hash and size. Raises like `copy_in`."""
        digest = hashlib.sha256()
        size = 0
        staged = self.new_staging_path()
        try:
            with staged.open("xb") as target:
                for chunk in chunks:
                    digest.update(chunk)
                    target.write(chunk)
                    size += len(chunk)
            sha256 = digest.hexdigest()
            if expected_sha256 is not None and sha256 != expected_sha256:
                raise DigestMismatch(f"The bytes have sha256 {sha256}, not {expected_sha256}.")
            self.adopt(staged, sha256)
        except OSError as error:
            raise store_error(error) from error
        finally:
            staged.unlink(missing_ok=True)
        return sha256, size

    def new_staging_path(self) -> Path:
        """A name in the staging folder that nobody else uses."""
        return self.staging / f"{os.getpid()}-{os.urandom(12).hex()}"

    def remove_abandoned(self, *, older_than: float) -> None:
        """Remove staged files not written to since `older_than` (seconds since 1970): leftovers of killed processes."""
        for path in self.staging.iterdir():
            try:
                if path.stat().st_mtime < older_than:
                    path.unlink()
            except FileNotFoundError:
                continue

    def exists(self, sha256: str) -> bool:
        """Whether the blob is there."""
        try:
            obstore.head(self._store, _key(sha256))
        except (NotFoundError, FileNotFoundError):
            return False
        return True

    def local_path(self, sha256: str) -> Path | None:
        """The blob's file where the store is a local folder, else None. Never write to it."""
        if self._folder is None:
            return None
        path = self._folder / _key(sha256)
        if not path.is_file():
            raise _missing(sha256)
        return path

    def fetch(self, sha256: str, target: Path) -> None:
        """Write a private copy of the blob to `target`.

        Raises:
            NotFound: There is no such blob.
            StoreFull: No room for the copy.
        """
        try:
            local = self.local_path(sha256)
            if local is not None:
                # copyfile shares extents or copies inside the kernel where the file system can.
                shutil.copyfile(local, target)
                return
            with target.open("xb") as file:
                for chunk in self.read(sha256):
                    file.write(chunk)
        except OSError as error:
            raise store_error(error) from error

    def read(self, sha256: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The blob's bytes from `start` to before `end`, in chunks."""
        try:
            size = obstore.head(self._store, _key(sha256))["size"]
        except (NotFoundError, FileNotFoundError) as error:
            raise _missing(sha256) from error
        stop = size if end is None else min(end, size)
        while start < stop:
            upto = min(start + CHUNK_BYTES, stop)
            yield bytes(obstore.get_range(self._store, _key(sha256), start=start, end=upto))
            start = upto

    def delete(self, sha256: str) -> None:
        """Remove the blob; nothing happens when it is not there."""
        self._delete_key(_key(sha256))

    def put_part(self, part: PartKey, path: Path) -> None:
        """Keep a part of an upload until it is assembled; `path` is gone afterwards."""
        self._move_in(path, str(part))

    def assemble(self, parts: Sequence[PartKey], *, expected_sha256: str | None) -> tuple[str, int]:
        """Join parts in this order to one blob and return its hash and size; the parts stay until `drop_parts`.

        Raises:
            DigestMismatch: The whole does not have the expected hash.
            NotFound: A part is missing.
            StoreFull: There is no room.
        """

        def chunks() -> Iterator[bytes]:
            for part in parts:
                try:
                    yield from (bytes(chunk) for chunk in obstore.get(self._store, str(part)))
                except (NotFoundError, FileNotFoundError) as error:
                    raise NotFound(f"Part {part.number} of upload {part.upload_id} is gone; send it again.") from error

        return self.take_in(chunks(), expected_sha256=expected_sha256)

    def drop_parts(self, upload_id: str) -> None:
        """Forget the parts of an upload."""
        keys = [entry["path"] for batch in obstore.list(self._store, f"uploads/{upload_id}") for entry in batch]
        for key in keys:
            self._delete_key(key)
        if self._folder is not None:
            shutil.rmtree(self._folder / "uploads" / upload_id, ignore_errors=True)

    def free_bytes(self) -> int:
        """Room left on the disk that takes new bytes in."""
        return shutil.disk_usage(self.staging).free

    def ping(self) -> None:
        """Raise unless the store answers."""
        try:
            obstore.head(self._store, "levity-ping")
        except (NotFoundError, FileNotFoundError):
            return

    def _move_in(self, path: Path, key: str) -> None:
        """Put a file under `key`, durably; `path` is gone afterwards."""
        if self._folder is None:
            with path.open("rb") as file:
                obstore.put(self._store, key, file)
            path.unlink()
            return
        target = self._folder / key
        try:
            _sync(path, os.O_RDONLY)
            _make_durable_folder(target.parent)
            path.replace(target)
            _sync_folder(target.parent)
        except OSError as error:
            raise store_error(error) from error

    def _delete_key(self, key: str) -> None:
        try:
            obstore.delete(self._store, key)
        except (NotFoundError, FileNotFoundError):
            return


def _key(sha256: str) -> str:
    # Two levels of folders, so that no folder of a local store grows beyond what tools can list.
    return f"sha256/{sha256[:2]}/{sha256[2:4]}/{sha256}"


def _missing(sha256: str) -> NotFound:
    return NotFound(f"There is no blob {sha256}.")


def store_error(error: OSError) -> Exception:
    """What to raise for an error of the file system: `StoreFull` when the disk is, else the error itself."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull("There is no room left on the server's disk.")
    return error


def _make_durable_folder(folder: Path) -> None:
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        path.mkdir(exist_ok=True, mode=0o700)
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
