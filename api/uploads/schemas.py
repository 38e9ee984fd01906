"""What is said about uploads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import AwareDatetime, ConfigDict, Field

from api.dependencies import Body, Document
from catalog.db import Json
from catalog.times import rfc3339
from catalog.uploads.states import UploadState
from catalog.uploads.tables import PartRow, UploadRow

MAX_PARTS = 10_000

Sha256 = Annotated[
    str, Field(pattern="^[0-9a-f]{64}$", examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"])
]


class CreateUpload(Body):
    """Announces bytes."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"filename": "resnet18.onnx", "size": 46838023}, {}]})

    filename: str = Field(default="", max_length=255)
    """What the file is called; only shown, never used as a path."""
    size: int | None = Field(default=None, ge=0)
    """Bytes to come, where known: then another number of them is refused."""
    sha256: Sha256 | None = None
    """Hash of the bytes to come, where known: then others are refused."""


class CompleteUpload(Body):
    """Says that all parts are there."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"parts": [1, 2, 3]}, {}]})

    sha256: Sha256 | None = None
    """Hash of the whole."""
    parts: tuple[Annotated[int, Field(ge=1, le=MAX_PARTS)], ...] | None = Field(
        default=None, max_length=MAX_PARTS, json_schema_extra={"minItems": 1}
    )
    """Numbers of the parts that make the whole, ascending; all from 1 to the highest that arrived unless given."""


class Part(Document):
    """A part that arrived."""

    number: int = Field(ge=1, le=MAX_PARTS)
    size: int
    """Bytes."""
    sha256: Sha256


class Upload(Document):
    """Bytes in the store, or on their way there."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "upl_0193f0c2a6b77c0d8a4be21d09f1a2b3",
                    "state": "complete",
                    "filename": "resnet18.onnx",
                    "size": 46838023,
                    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
                    "received_bytes": 46838023,
                    "parts": [],
                    "part_size": 16777216,
                    "created_at": "2026-11-24T17:23:35.816Z",
                    "completed_at": "2026-11-24T17:23:36.104Z",
                }
            ]
        }
    )

    id: str
    state: UploadState
    filename: str
    size: int | None
    """Bytes of the whole; null while open and not announced."""
    sha256: Sha256 | None
    """Hash of the whole; null while open and not announced."""
    received_bytes: int
    """Bytes that are stored: of the parts so far, or of the whole."""
    parts: list[Part]
    """Parts that arrived; none any more when complete."""
    part_size: int
    """Bytes of a part, as suggested."""
    created_at: AwareDatetime
    completed_at: AwareDatetime | None


def part_json(row: PartRow) -> Json:
    return {"number": row.number, "size": row.size, "sha256": row.sha256}


def upload_json(row: UploadRow, parts: Sequence[PartRow], *, part_size: int) -> Json:
    complete = row.state == UploadState.COMPLETE
    return {
        "id": row.id,
        "state": row.state,
        "filename": row.filename,
        "size": row.size if complete else row.declared_size,
        "sha256": row.sha256 if complete else row.declared_sha256,
        "received_bytes": row.size if complete else sum(part.size for part in parts),
        "parts": [part_json(part) for part in parts],
        "part_size": part_size,
        "created_at": rfc3339(row.created_at),
        "completed_at": rfc3339(row.completed_at),
    }
