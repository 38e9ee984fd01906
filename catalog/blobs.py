"""Blobs: bytes that never change, named by their SHA-256, in a local folder or an S3-compatible store.

Both kinds go through obstore. The local one adds what an object store gives for free: a blob appears whole or not at
all, and is on disk before anyone is told that it exists.

A blob lies under `sha256/`. One that was collected and came back lies under `again/`, with its generation in its name:
no name is ever used again once its bytes were given up, so that a removal that comes late removes nothing else. Any
copy of a blob is as good as another, so readers take the one that they find.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import LocalStore, ObjectStore, from_url

from catalog.errors import BytesGone, DigestMismatch, NotFound, StoreUnavailable
from catalog.settings import Settings
from catalog.storage.copies import Ledger, NoLedger, PartKey, StoredCopy, key_of
from catalog.storage.files import put_durably, store_error

CHUNK_BYTES = 4 * 2**20
# Long enough for a server that restarts; who asked is told before a proxy gives up.
_RETRY = {"max_retries": 5, "retry_timeout": timedelta(seconds=15)}
_MISSING = (NotFoundError, FileNotFoundError)
_LAST_TRIES = 4
_STAGED_SECONDS = 24 * 3600.0
_FOLDERS = ("again", *(f"sha256/{first:02x}" for first in range(256)))


class Blobs:
    """The blob store that `settings` name.

    Args:
        url: `file:///folder` or `s3://bucket/prefix`.
        staging: Local folder for files on their way in or out. With a local store it must be on the same file
            system, so that taking a file in is a rename.
        credentials: Keys of an S3-compatible store, as obstore names them; without them the `AWS_*` variables hold.
        ledger: Knows which copies count; without it, those of a store from which nothing is ever collected.
    """

    def __init__(
        self,
        url: str,
        staging: Path,
        *,
        credentials: Mapping[str, str] | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        parts = urlsplit(url)
        self._folder = Path(unquote(parts.path)) if parts.scheme == "file" else None
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._store: ObjectStore = LocalStore(self._folder)
        else:
            options = {"client_options": _client_options(), "retry_config": _RETRY, **(credentials or {})}
            self._store = from_url(url, **options)  # type: ignore[call-overload]
        self._ledger: Ledger = ledger or NoLedger()
        self.staging = staging
        staging.mkdir(parents=True, exist_ok=True, mode=0o700)

    @classmethod
    def from_settings(cls, settings: Settings, ledger: Ledger | None = None) -> Blobs:
        """The store of this deployment; who takes blobs in needs its ledger."""
        staging = settings.folder("staging")
        return cls(settings.resolved_store_url, staging, credentials=settings.store_credentials, ledger=ledger)

    def adopt(self, path: Path, sha256: str) -> None:
        """Take over a file in whose name `sha256` is known to be right; `path` is gone afterwards.

        Durable on return. A blob that is there already is left alone.

        Raises:
            StoreFull: There is no room. `path` still exists.
            StoreUnavailable: The store does not answer. `path` still exists.
        """
        size = path.stat().st_size
        for _ in range(_LAST_TRIES):
            generation = self._ledger.generation(sha256)
            key = key_of(sha256, generation)
            if not self._is_there(key):
                path.chmod(0o444)
                self._put(path, key)
            if self._ledger.note_stored(sha256, generation=generation, size=size):
                path.unlink()
                return
        raise BytesGone(f"Blob {sha256} is given up as often as it is stored; try again.")

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

    def remove_abandoned(self, *, older_than: float | None = None) -> None:
        """Remove staged files not written to since `older_than` (seconds since 1970): leftovers of killed processes.

        Unless it is given, those that lie still for far longer than any transfer pauses, on whoever's behalf.
        """
        if older_than is None:
            older_than = time.time() - _STAGED_SECONDS
        for path in self.staging.iterdir():
            try:
                if path.stat().st_mtime < older_than:
                    path.unlink()
            except FileNotFoundError:
                continue

    def exists(self, sha256: str) -> bool:
        """Whether the blob is there."""
        return self._find(sha256) is not None

    def local_path(self, sha256: str) -> Path | None:
        """The blob's file where the store is a local folder, else None. Never write to it."""
        if self._folder is None:
            return None
        found = self._find(sha256)
        if found is None:
            raise _missing(sha256)
        return self._folder / found[0]

    def fetch(self, sha256: str, target: Path) -> None:
        """Write a private copy of the blob to `target`.

        Raises:
            NotFound: There is no such blob.
            StoreFull: No room for the copy.
        """
        try:
            while (local := self.local_path(sha256)) is not None:
                try:
                    # copyfile shares extents or copies inside the kernel where the file system can.
                    shutil.copyfile(local, target)
                except FileNotFoundError:
                    if local.exists():
                        raise
                    # This copy was collected meanwhile; another one may have come.
                else:
                    return
            with target.open("xb") as file:
                for chunk in self.read(sha256):
                    file.write(chunk)
        except OSError as error:
            raise store_error(error) from error

    def read(self, sha256: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The blob's bytes from `start` to before `end`, in chunks."""
        while True:
            found = self._find(sha256)
            if found is None:
                raise _missing(sha256)
            key, size = found
            try:
                for chunk in self._read_key(key, start, size if end is None else min(end, size)):
                    yield chunk
                    start += len(chunk)
            except _MISSING:
                # This copy was collected meanwhile; another one may have come.
                continue
            return

    def remove(self, sha256: str, generation: int) -> None:
        """Remove a copy of a blob; nothing happens when it is not there."""
        self._delete_key(key_of(sha256, generation))

    def delete(self, sha256: str) -> None:
        """Remove every copy of a blob, whoever may need it: for tests of what happens then."""
        while (found := self._find(sha256)) is not None:
            self._delete_key(found[0])

    def copies(self, start: int = 0) -> Iterator[tuple[int, list[StoredCopy]]]:
        """The copies of blobs in the store, in batches that are not empty, each with the number of its first's folder.

        Args:
            start: Number of the folder to begin with, 0 to 256; their order is fixed.
        """
        if self._folder is not None:
            walks: list[tuple[str, str | None]] = [(folder, None) for folder in _FOLDERS[start:]]
        else:
            # A listing in order, a thousand at once: most stores are not worth a request for each folder.
            walks = [("again", None)] if start == 0 else []
            walks.append(("sha256", _FOLDERS[start] if start else None))
        for folder, after in walks:
            with _answering():
                for batch in obstore.list(self._store, folder, offset=after, chunk_size=1000):
                    copies = [copy for copy in map(StoredCopy.of, batch) if copy is not None]
                    if copies:
                        yield _folder_of(copies[0]), copies

    def has_copy(self, sha256: str, generation: int) -> bool:
        """Whether this copy of a blob is there."""
        return self._is_there(key_of(sha256, generation))

    def uploads_with_parts(self) -> list[str]:
        """Ids of uploads of which parts are stored."""
        with _answering():
            prefixes = obstore.list_with_delimiter(self._store, "uploads")["common_prefixes"]
        return [prefix.rstrip("/").rpartition("/")[2] for prefix in prefixes]

    def put_part(self, part: PartKey, path: Path) -> None:
        """Keep a part of an upload until it is assembled; `path` is gone afterwards."""
        self._put(path, str(part))
        path.unlink()

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
                    yield from self._read_key(str(part), 0, self._size(str(part)))
                except _MISSING as error:
                    raise NotFound(f"Part {part.number} of upload {part.upload_id} is gone; send it again.") from error

        return self.take_in(chunks(), expected_sha256=expected_sha256)

    def drop_parts(self, upload_id: str) -> None:
        """Forget the parts of an upload."""
        with _answering():
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
            with _answering():
                # Asking for an object would not tell a bucket that is missing from an object that is.
                obstore.list_with_delimiter(self._store, "levity-ping")
        except _MISSING as error:
            raise StoreUnavailable("The blob store is not there.") from error
        if self._folder is not None and not self._folder.is_dir():
            raise StoreUnavailable("The blob store is not there.")

    def _find(self, sha256: str) -> tuple[str, int] | None:
        """Key and size of a copy that is there; of the newest where the first is gone."""
        key = key_of(sha256, 0)
        try:
            return key, self._size(key)
        except _MISSING:
            pass
        with _answering():
            again = [entry for batch in obstore.list(self._store, f"again/{sha256}") for entry in batch]
        found = max(again, key=lambda entry: int(entry["path"].rpartition("/")[2]), default=None)
        return None if found is None else (found["path"], found["size"])

    def _is_there(self, key: str) -> bool:
        try:
            self._size(key)
        except _MISSING:
            return False
        return True

    def _size(self, key: str) -> int:
        with _answering():
            return obstore.head(self._store, key)["size"]

    def _read_key(self, key: str, start: int, end: int) -> Iterator[bytes]:
        # Range by range also where all is wanted: each is a request of its own, with its own time and its own retries.
        while start < end:
            upto = min(start + CHUNK_BYTES, end)
            with _answering():
                chunk = bytes(obstore.get_range(self._store, key, start=start, end=upto))
            yield chunk
            start = upto

    def _put(self, path: Path, key: str) -> None:
        """Put a file's bytes under `key`, durably; `path` stays."""
        if self._folder is None:
            with path.open("rb") as file, _answering():
                obstore.put(self._store, key, file)
            return
        put_durably(path, self._folder / key)

    def _delete_key(self, key: str) -> None:
        try:
            with _answering():
                obstore.delete(self._store, key)
        except _MISSING:
            return


def _folder_of(copy: StoredCopy) -> int:
    return 0 if copy.generation else 1 + int(copy.sha256[:2], 16)


def _client_options() -> dict[str, str | bool]:
    # Options that are given here put all of the environment's aside.
    allow_http = os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true", "yes", "on")
    return {"connect_timeout": "5s", "timeout": "60s", "allow_http": allow_http}


@contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except _MISSING:
        raise
    except BaseError as error:
        # The text may name the server and the bucket: it goes to the log, with the cause.
        raise StoreUnavailable("The blob store does not answer; try again later.") from error


def _missing(sha256: str) -> NotFound:
    return NotFound(f"There is no blob {sha256}.")
