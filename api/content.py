"""Files on their way out: whole or a range of them (RFC 9110, sections 13 and 14), read ahead of what is sent."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from functools import partial
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import quote

from anyio.to_thread import run_sync
from starlette.datastructures import Headers
from starlette.responses import Response, StreamingResponse

from api.errors import RequestError
from api.uploads import digest
from catalog.blobs import Blobs
from catalog.errors import NotFound

BYTES: dict[str, Any] = {
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    "headers": {
        name: {"schema": {"type": "string"}}
        for name in ("ETag", "Content-Digest", "Repr-Digest", "Accept-Ranges", "Content-Disposition")
    },
}
"""How OpenAPI describes the answers of `respond`."""

# One range only: a server may ignore others, and lists of many ranges have been used to exhaust servers.
_RANGE = re.compile(r"\s*bytes\s*=\s*(\d*)\s*-\s*(\d*)\s*", re.IGNORECASE | re.ASCII)


class Content(Protocol):
    """A file in the store."""

    @property
    def name(self) -> str: ...
    @property
    def sha256(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def media_type(self) -> str: ...


def respond(content: Content, blobs: Blobs, request: Headers, *, body: bool, missing: str) -> Response:
    """The answer to a GET of `content`, or to a HEAD without `body`; `missing` is the code where its bytes are gone.

    Raises:
        RequestError: `range_not_satisfiable`.
        NotFound: Somebody emptied the store.
    """
    etag = f'"{content.sha256}"'
    headers = {
        "etag": etag,
        "cache-control": "private, max-age=31536000, immutable",
        "accept-ranges": "bytes",
        "repr-digest": digest.field(content.sha256),
    }
    if _matches(request.get("if-none-match"), etag):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    headers |= {
        "content-type": content.media_type,
        "content-disposition": f"attachment; filename*=UTF-8''{quote(content.name, safe='')}",
        # What is in a model's names ends up in its report: a browser must not run it as a page of this service.
        "content-security-policy": "sandbox",
        "x-content-type-options": "nosniff",
    }
    part = _range(request, etag, content.size)
    if part is None:
        status, (start, end) = HTTPStatus.OK, (0, content.size)
        headers["content-digest"] = headers["repr-digest"]
    else:
        status, (start, end) = HTTPStatus.PARTIAL_CONTENT, part
        headers["content-range"] = f"bytes {start}-{end - 1}/{content.size}"
    headers["content-length"] = str(end - start)
    if not blobs.exists(content.sha256):
        # Once the first bytes are sent it is too late to say so.
        raise NotFound(f"The bytes of {content.name} are gone from the store.", code=missing)
    if not body:
        return Response(status_code=status, headers=headers)
    chunks = _read_ahead(blobs.read(content.sha256, start, end))
    return StreamingResponse(chunks, status_code=status, headers=headers)


def _matches(if_none_match: str | None, etag: str) -> bool:
    if if_none_match is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return etag in tags or tags == ["*"]


def _range(request: Headers, etag: str, size: int) -> tuple[int, int] | None:
    """Start and end (after the last byte) of the range to send; None for the whole."""
    asked = _RANGE.fullmatch(request.get("range", ""))
    if asked is None or asked.groups() == ("", ""):
        return None
    if request.get("if-range", etag) != etag:
        return None
    # More digits than any file has bytes: Python would refuse to convert thousands of them.
    first, last = (int(digits[:19]) if digits else None for digits in asked.groups())
    if first is None:
        start, end = max(0, size - (last or 0)), size
    else:
        start, end = first, size if last is None else min(last + 1, size)
        if last is not None and last < first:
            return None
    if start >= end:
        raise RequestError(
            "range_not_satisfiable",
            f"The file has {size} bytes.",
            headers={"content-range": f"bytes */{size}"},
        )
    return start, end


async def _read_ahead(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    """The chunks, each read in a thread while the one before it is sent."""
    following = asyncio.create_task(run_sync(partial(next, chunks, b"")))
    try:
        while chunk := await following:
            following = asyncio.create_task(run_sync(partial(next, chunks, b"")))
            yield chunk
    finally:
        following.cancel()
