"""Files on their way to and from the service."""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import httpx

from levity._transport import Transport
from levity.errors import LevityError
from levity.resources import Upload

_PIECE_BYTES = 2**20
_DOWNLOAD_TRIES = 5
# Joining the parts of many gigabytes takes the service a while.
_COMPLETE_SECONDS = 600

Report = Callable[[int, int], None]


def send(http: Transport, path: Path, *, on_progress: Report | None, resume: str | None) -> Upload:
    """Upload `path`; see `Levity.upload`."""
    size = path.stat().st_size
    if resume is None:
        answer = http.request("POST", "/v1/uploads", json={"filename": path.name, "size": size})
    else:
        answer = http.request("GET", f"/v1/uploads/{resume}")
    upload = Upload.from_json(answer.json())
    if upload.state == "complete":
        _check_same(path, upload)
        return upload
    url = f"/v1/uploads/{upload.id}"
    arrived = {part["number"]: part["sha256"] for part in upload.parts}
    if size <= upload.part_size and not arrived:
        block = path.read_bytes()
        _check_length(path, block, size)
        return Upload.from_json(_put(http, f"{url}/content", block, _reporter(on_progress, 0, size)).json())

    whole = hashlib.sha256()
    numbers: list[int] = []
    with path.open("rb") as file:
        for start in range(0, size, upload.part_size):
            block = file.read(upload.part_size)
            _check_length(path, block, min(upload.part_size, size - start))
            whole.update(block)
            numbers.append(len(numbers) + 1)
            if arrived.get(numbers[-1]) != hashlib.sha256(block).hexdigest():
                _put(http, f"{url}/parts/{numbers[-1]}", block, _reporter(on_progress, start, size))
    body = {"sha256": whole.hexdigest(), "parts": numbers}
    answer = http.request("POST", f"{url}/complete", json=body, read_timeout=_COMPLETE_SECONDS, repeatable=True)
    return Upload.from_json(answer.json())


def _put(http: Transport, url: str, block: bytes, report: Callable[[int], None]) -> httpx.Response:
    def pieces() -> Iterator[bytes]:
        for start in range(0, len(block), _PIECE_BYTES):
            yield block[start : start + _PIECE_BYTES]
            report(min(start + _PIECE_BYTES, len(block)))

    digest = base64.b64encode(hashlib.sha256(block).digest()).decode()
    headers = {
        "content-length": str(len(block)),
        "content-type": "application/octet-stream",
        "content-digest": f"sha-256=:{digest}:",
    }
    return http.request("PUT", url, body=pieces, headers=headers)


def _reporter(on_progress: Report | None, before: int, size: int) -> Callable[[int], None]:
    return lambda sent: on_progress(before + sent, size) if on_progress is not None else None


def _check_length(path: Path, block: bytes, expected: int) -> None:
    if len(block) != expected:
        raise LevityError("file_changed", f"{path} changed while it was being sent.")


def _check_same(path: Path, upload: Upload) -> None:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != upload.sha256:
        raise LevityError("digest_mismatch", f"Upload {upload.id} is complete, but with other bytes than {path}.")


def receive(http: Transport, url: str, target: Path) -> None:
    """Download `url` to `target`, whose bytes must have the sha256 that the ETag names."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # A folder of its own, so that the file gets the mode of any new file, which a temporary file has not.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        partial = Path(folder) / target.name
        with partial.open("wb") as file:
            _fetch(http, url, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)


def _fetch(http: Transport, url: str, file: BinaryIO) -> None:
    digest = hashlib.sha256()
    etag = ""
    received = 0
    for tries_left in reversed(range(_DOWNLOAD_TRIES)):
        headers = {"accept-encoding": "identity"}
        if received:
            headers |= {"range": f"bytes={received}-", "if-range": etag}
        try:
            with http.stream(url, headers=headers) as response:
                if response.status_code != httpx.codes.PARTIAL_CONTENT:
                    etag = response.headers.get("etag", "")
                    digest, received = hashlib.sha256(), 0
                    file.seek(0)
                    file.truncate()
                for piece in response.iter_bytes():
                    file.write(piece)
                    digest.update(piece)
                    received += len(piece)
            break
        except httpx.TransportError as error:
            if not tries_left:
                raise http.unreachable(error) from error
            http.pause()
    if digest.hexdigest() != etag.strip('"'):
        raise LevityError(
            "digest_mismatch",
            f"{url} has sha256 {digest.hexdigest()}, but the service announced ETag {etag or 'none'}.",
        )
