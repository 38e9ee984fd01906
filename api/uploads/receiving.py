"""A request's body on its way to a file: hashed and written in threads while the next bytes arrive."""

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from starlette.requests import Request

from api.errors import RequestError
from catalog.blobs import Blobs
from catalog.errors import StoreFull
from catalog.storage.files import store_error
from catalog.tenants.usage import storage_used_up

_BLOCK_BYTES = 2 * 2**20
_WRITEBACK_BYTES = 8 * 2**20
_SYNC_FILE_RANGE_WRITE = 2
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Limits:
    """What a body may do."""

    max_bytes: int
    idle_seconds: float
    min_free_bytes: int
    expected_bytes: int | None = None
    """Size that was announced for it."""
    tenant_bytes: int | None = None
    """What the tenant may still keep, where that is limited."""


@dataclass(frozen=True)
class Received:
    """A body that arrived whole."""

    size: int
    sha256: str


async def receive(
    request: Request,
    path: Path,
    blobs: Blobs,
    limits: Limits,
    threads: CapacityLimiter,
    *,
    alive: Callable[[], None],
) -> Received:
    """Write the body to a new file at `path`, which is left to the caller also when this fails.

    Two blocks are in memory at most: one that fills and one that is hashed and written.

    Args:
        request: Its body must not have been read.
        path: In the staging folder of `blobs`.
        blobs: Knows how much room is left.
        limits: When to give up.
        threads: Bounds how many blocks are written at once, over all uploads.
        alive: Called now and then as the body arrives, in a thread; may raise to give it up.

    Raises:
        RequestError: `upload_too_large`, `size_mismatch` or `upload_stalled`.
        QuotaExceeded: `storage_used_up`.
        StoreFull: The disk would be left with less than `min_free_bytes`.
        ClientDisconnect: The caller went away.
    """
    announced = int(request.headers.get("content-length", 0))
    _check_size(announced, limits)
    file = _File(path, blobs, limits.min_free_bytes, alive)
    writing: asyncio.Task[None] | None = None
    try:
        await run_sync(file.open, announced)
        async for block in _blocks(request, limits):
            if writing is not None:
                await writing
            writing = asyncio.create_task(run_sync(file.write, block, limiter=threads))
        if writing is not None:
            await writing
    finally:
        if writing is not None:
            # A thread cannot be stopped, and the file must not be closed under it.
            await asyncio.wait([writing])
        file.close()
    if limits.expected_bytes is not None and file.size != limits.expected_bytes:
        raise _size_mismatch(file.size, limits.expected_bytes)
    return Received(file.size, file.digest.hexdigest())


async def _blocks(request: Request, limits: Limits) -> AsyncIterator[bytearray]:
    """The body in blocks: the pieces that arrive are too small to be worth a thread's attention each."""
    block = bytearray()
    size = 0
    pieces = request.stream()
    while True:
        try:
            async with asyncio.timeout(limits.idle_seconds):
                piece = await anext(pieces, None)
        except TimeoutError as error:
            raise RequestError(
                "upload_stalled",
                f"Nothing arrived for {limits.idle_seconds:g} s; send the content again, or in parts.",
                headers={"connection": "close"},
            ) from error
        if piece is None:
            break
        size += len(piece)
        _check_size(size, limits)
        block += piece
        if len(block) >= _BLOCK_BYTES:
            yield block
            block = bytearray()
    if block:
        yield block


def _check_size(size: int, limits: Limits) -> None:
    if size > limits.max_bytes:
        raise RequestError("upload_too_large", f"An upload may have {limits.max_bytes} bytes at most.")
    if limits.tenant_bytes is not None and size > limits.tenant_bytes:
        raise storage_used_up(limits.tenant_bytes)
    if limits.expected_bytes is not None and size > limits.expected_bytes:
        raise _size_mismatch(size, limits.expected_bytes)


def _size_mismatch(size: int, expected: int) -> RequestError:
    return RequestError("size_mismatch", f"The upload was announced with {expected} bytes, but has {size} or more.")


class _File:
    """The file and its hash; every method but `close` may wait for the disk."""

    def __init__(self, path: Path, blobs: Blobs, min_free_bytes: int, alive: Callable[[], None]) -> None:
        self.size = 0
        self.digest = hashlib.sha256()
        self._path = path
        self._blobs = blobs
        self._alive = alive
        self._min_free_bytes = min_free_bytes
        self._descriptor = -1
        self._flushed = 0

    def open(self, size: int) -> None:
        """Create the file, when `size` bytes fit on the disk."""
        check_room(self._blobs, size, self._min_free_bytes)
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def write(self, block: bytearray) -> None:
        self._alive()
        self.digest.update(block)
        rest = memoryview(block)
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError as error:
            raise store_error(error) from error
        self.size += len(block)
        if self.size - self._flushed >= _WRITEBACK_BYTES:
            check_room(self._blobs, 0, self._min_free_bytes)
            self._start_writeback()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def _start_writeback(self) -> None:
        # Left to itself the kernel would keep the bytes back, and the fsync at the end would wait for all of them.
        # Only a hint: where it is refused, the fsync does the whole work.
        _LIBC.sync_file_range(
            self._descriptor,
            ctypes.c_int64(self._flushed),
            ctypes.c_int64(self.size - self._flushed),
            _SYNC_FILE_RANGE_WRITE,
        )
        self._flushed = self.size


def check_room(blobs: Blobs, size: int, min_free_bytes: int) -> None:
    """Raise `StoreFull` unless `size` more bytes leave `min_free_bytes` of disk free."""
    if blobs.free_bytes() - size < min_free_bytes:
        raise StoreFull("There is no room left on the server's disk.")
