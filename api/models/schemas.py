"""What is said about models."""

from __future__ import annotations

from typing import Self

from pydantic import AwareDatetime, ConfigDict, Field, model_validator

from api.dependencies import Body, Document, Page, rfc3339
from api.uploads.schemas import Sha256
from catalog.db import Json
from catalog.models.states import ModelState
from catalog.models.tables import ModelRow
from compression.signature import ModelSummary

GRAPH_NAME = "model.onnx"
"""The graph's file among a model's files."""


class ExternalData(Body):
    """A file of weights beside the graph."""

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._+@-]{0,254}$", examples=["model.onnx.data"])
    """The location that the graph names: a plain file name."""
    upload_id: str
    """A complete upload with its bytes."""


class CreateModel(Body):
    """Registers a model."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"upload_id": "upl_0193f0c2a6b77c0d8a4be21d09f1a2b3", "name": "resnet18"}]}
    )

    upload_id: str
    """A complete upload of an ONNX file."""
    name: str = Field(default="", max_length=255)
    """What people call it; the upload's file name unless given."""
    external_data: tuple[ExternalData, ...] = Field(default=(), max_length=1000)
    """Files that hold weights outside the graph."""

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [GRAPH_NAME, *(file.name for file in self.external_data)]
        if len(set(names)) != len(names):
            msg = f"names of external data must differ from each other and from {GRAPH_NAME}"
            raise ValueError(msg)
        return self


class FileEntry(Document):
    """A file of a model."""

    name: str
    sha256: Sha256
    size: int
    """Bytes."""


class Rejection(Document):
    """Why an upload is not accepted."""

    code: str
    """Stable machine-readable identifier, such as `not_onnx`."""
    message: str


class Model(Document):
    """A neural network."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "mdl_0193f0c2a6b77c0d8a4be21d09f1a2b3",
                    "name": "resnet18",
                    "state": "inspecting",
                    "files": [
                        {
                            "name": GRAPH_NAME,
                            "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
                            "size": 46838023,
                        }
                    ],
                    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
                    "size": 46838023,
                    "summary": None,
                    "error": None,
                    "created_at": "2026-11-24T17:23:35.816Z",
                }
            ]
        }
    )

    id: str
    name: str
    state: ModelState
    files: list[FileEntry]
    """The graph first, then its external data."""
    sha256: Sha256
    """Hash of the graph's file, or over the names and hashes of all files where there are several."""
    size: int
    """Bytes of all files."""
    summary: ModelSummary | None
    """What inspection found."""
    error: Rejection | None
    """Why it was rejected."""
    created_at: AwareDatetime


class ModelPage(Page):
    items: list[Model]


def model_json(row: ModelRow) -> Json:
    return {
        "id": row.id,
        "name": row.name,
        "state": row.state,
        "files": row.files,
        "sha256": row.sha256,
        "size": row.size,
        "summary": row.summary,
        "error": row.error,
        "created_at": rfc3339(row.created_at),
    }
