"""What can be done with uploads."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from anyio.to_thread import run_sync
from starlette.requests import Request

from api.dependencies import Services
from api.errors import InvalidField, RequestError
from api.uploads.receiving import Limits, Received, check_room, receive
from api.uploads.schemas import CompleteUpload, CreateUpload, part_json, upload_json
from catalog.db import Json
from catalog.errors import Conflict, DigestMismatch, NotFound
from catalog.storage.copies import PartKey
from catalog.tenants.usage import Quotas
from catalog.uploads.repository import Uploads
from catalog.uploads.states import UploadState
from catalog.uploads.tables import PartRow, UploadRow

# Well below the shortest time after which an upload is forgotten.
_TOUCH_SECONDS = 600


class UploadService:
    """Uploads of one process.

    Args:
        services: The process's parts.
    """

    def __init__(self, services: Services) -> None:
        self._settings = services.settings
        self._database = services.database
        self._blobs = services.blobs
        self._metrics = services.metrics
        self._writer_threads = services.writer_threads

    def create(self, body: CreateUpload) -> Json:
        if body.size is not None:
            if body.size > self._settings.max_upload_bytes:
                raise RequestError(
                    "upload_too_large", f"An upload may have {self._settings.max_upload_bytes} bytes at most."
                )
            check_room(self._blobs, body.size, self._settings.min_free_bytes)
        with self._database.write() as session:
            Quotas(session).admit_bytes(body.size or 0)
            row = Uploads(session).add(filename=body.filename, size=body.size, sha256=body.sha256)
        return self._json(row, ())

    def get(self, upload_id: str) -> Json:
        with self._database.read() as session:
            uploads = Uploads(session)
            return self._json(uploads.get(upload_id), uploads.parts(upload_id))

    def delete(self, upload_id: str) -> None:
        with self._database.write() as session:
            Uploads(session).delete(upload_id)
        self._blobs.drop_parts(upload_id)

    async def put_content(self, upload_id: str, request: Request, *, sha256: str | None) -> Json:
        row, room = await run_sync(self._touch, upload_id)
        if row.state == UploadState.COMPLETE and sha256 not in (None, row.sha256):
            raise _other_content(row)
        limits = self._limits(self._settings.max_upload_bytes, expected=row.declared_size, room=room)
        staged = self._blobs.new_staging_path()
        try:
            alive = self._keep_alive(upload_id)
            received = await receive(request, staged, self._blobs, limits, self._writer_threads, alive=alive)
            return await run_sync(self._take_content, row, staged, received, sha256)
        finally:
            await run_sync(_remove, staged)

    def _take_content(self, row: UploadRow, staged: Path, received: Received, announced: str | None) -> Json:
        for expected in (announced, row.declared_sha256):
            if expected is not None and received.sha256 != expected:
                raise DigestMismatch(f"The bytes have sha256 {received.sha256}, not {expected}.")
        self._blobs.adopt(staged, received.sha256)
        return self._complete(row.id, received)

    async def put_part(self, upload_id: str, number: int, request: Request, *, sha256: str | None) -> Json:
        most, room = await run_sync(self._room_for_part, upload_id, number)
        staged = self._blobs.new_staging_path()
        try:
            alive = self._keep_alive(upload_id)
            received = await receive(
                request, staged, self._blobs, self._limits(most, room=room), self._writer_threads, alive=alive
            )
            return await run_sync(self._take_part, upload_id, number, staged, received, sha256)
        finally:
            await run_sync(_remove, staged)

    def _room_for_part(self, upload_id: str, number: int) -> tuple[int, int | None]:
        with self._database.write() as session:
            uploads = Uploads(session)
            uploads.get_open(upload_id)
            uploads.touch(upload_id)
            others = sum(part.size for part in uploads.parts(upload_id) if part.number != number)
            return self._settings.max_upload_bytes - others, Quotas(session).room_bytes()

    def _take_part(self, upload_id: str, number: int, staged: Path, received: Received, announced: str | None) -> Json:
        if announced is not None and received.sha256 != announced:
            raise DigestMismatch(f"Part {number} has sha256 {received.sha256}, not {announced}.")
        self._blobs.put_part(PartKey(upload_id, number, received.sha256), staged)
        try:
            with self._database.write() as session:
                Quotas(session).admit_bytes(received.size)
                row = Uploads(session).put_part(upload_id, number, size=received.size, sha256=received.sha256)
        except (Conflict, NotFound):
            # Completed or deleted meanwhile: nobody would ever ask for the part.
            self._blobs.drop_parts(upload_id)
            raise
        self._metrics.upload_bytes.inc(received.size)
        return part_json(row)

    def complete(self, upload_id: str, body: CompleteUpload) -> Json:
        with self._database.write() as session:
            uploads = Uploads(session)
            row = uploads.touch(upload_id)
            known = {part.number: part for part in uploads.parts(upload_id)}
        if row.state == UploadState.COMPLETE:
            if body.sha256 not in (None, row.sha256):
                raise _other_content(row)
            return self._json(row, ())
        parts = _chosen_parts(body.parts, known)
        size = sum(part.size for part in parts)
        if row.declared_size is not None and size != row.declared_size:
            raise RequestError(
                "size_mismatch", f"The upload was announced with {row.declared_size} bytes, its parts have {size}."
            )
        if None not in (body.sha256, row.declared_sha256) and body.sha256 != row.declared_sha256:
            raise DigestMismatch(f"The upload was announced with sha256 {row.declared_sha256}, not {body.sha256}.")
        check_room(self._blobs, size, self._settings.min_free_bytes)
        keys = [PartKey(upload_id, part.number, part.sha256) for part in parts]
        sha256, size = self._blobs.assemble(keys, expected_sha256=body.sha256 or row.declared_sha256)
        return self._complete(upload_id, Received(size, sha256), count=False)

    def _complete(self, upload_id: str, received: Received, *, count: bool = True) -> Json:
        with self._database.write() as session:
            uploads = Uploads(session)
            row = uploads.get(upload_id, lock=True)
            if row.state == UploadState.COMPLETE:
                if row.sha256 != received.sha256:
                    raise _other_content(row)
            else:
                # Its parts are counted already, what arrived at once is not.
                Quotas(session).admit_bytes(received.size if count else 0)
                row = uploads.complete(upload_id, size=received.size, sha256=received.sha256)
        self._blobs.drop_parts(upload_id)
        if count:
            self._metrics.upload_bytes.inc(received.size)
        return self._json(row, ())

    def _touch(self, upload_id: str) -> tuple[UploadRow, int | None]:
        with self._database.write() as session:
            return Uploads(session).touch(upload_id), Quotas(session).room_bytes()

    def _keep_alive(self, upload_id: str) -> Callable[[], None]:
        """What a long body calls as it arrives, so that its upload is not taken for abandoned meanwhile."""
        due = time.monotonic() + _TOUCH_SECONDS

        def touch() -> None:
            nonlocal due
            if time.monotonic() >= due:
                due = time.monotonic() + _TOUCH_SECONDS
                self._touch(upload_id)

        return touch

    def _limits(self, max_bytes: int, *, expected: int | None = None, room: int | None = None) -> Limits:
        return Limits(
            max_bytes=max_bytes,
            idle_seconds=self._settings.upload_idle_seconds,
            min_free_bytes=self._settings.min_free_bytes,
            expected_bytes=expected,
            tenant_bytes=room,
        )

    def _json(self, row: UploadRow, parts: Sequence[PartRow]) -> Json:
        return upload_json(row, parts, part_size=self._settings.upload_part_bytes)


def contiguous_bytes(upload: Json) -> int:
    """Bytes that are there without a gap, from the start."""
    if upload["state"] == UploadState.COMPLETE:
        return int(upload["received_bytes"])
    size = 0
    for expected, part in enumerate(upload["parts"], start=1):
        if part["number"] != expected:
            break
        size += part["size"]
    return size


def _chosen_parts(numbers: Sequence[int] | None, known: dict[int, PartRow]) -> list[PartRow]:
    if numbers is None:
        numbers = range(1, max(known, default=1) + 1)
    elif not numbers or list(numbers) != sorted(set(numbers)):
        raise InvalidField("/parts", "List at least one part, and each once, in ascending order.")
    for number in numbers:
        if number not in known:
            raise Conflict(f"Part {number} has not arrived; send it, then complete the upload.", code="part_missing")
    return [known[number] for number in numbers]


def _other_content(row: UploadRow) -> Conflict:
    return Conflict(
        f"Upload {row.id} is complete with sha256 {row.sha256}; create a new one to send other bytes.",
        code="upload_complete",
    )


def _remove(staged: Path) -> None:
    staged.unlink(missing_ok=True)
