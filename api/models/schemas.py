"""What is said about models."""

from __future__ import annotations

from typing import Self

from pydantic import AwareDatetime, ConfigDict, Field, model_validator

from api.dependencies import Body, Document, Page
from api.uploads.schemas import Sha256
from catalog.db import Json
from catalog.models.states import ModelState
from catalog.models.tables import ModelRow
from catalog.times import rfc3339
from compression.graph.architectures.spec import COMPANION, MODEL, Architecture, Inputs, check_inputs
from compression.signature import ModelSummary

GRAPH_NAME = MODEL
"""The graph's file among a model's files."""
WEIGHTS_NAME = "weights"
"""The upload's file among a model's files, as long as its graph is not made."""


class ExternalData(Body):
    """A file of weights beside the graph."""

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._+@-]{0,254}$", examples=["model.onnx.data"])
    """The location that the graph names: a plain file name."""
    upload_id: str
    """A complete upload with its bytes."""


class CreateModel(Body):
    """Registers a model."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"upload_id": "upl_0193f0c2a6b77c0d8a4be21d09f1a2b3", "name": "resnet18"},
                {
                    "upload_id": "upl_0193f0c2a6b77c0d8a4be21d09f1a2b4",
                    "architecture": {"name": "torchvision:resnet18", "arguments": {"num_classes": 10}},
                    "input": {"shape": [3, 224, 224]},
                },
            ]
        }
    )

    upload_id: str
    """A complete upload: an ONNX or `.levity` file, or the weights of `architecture` as safetensors or as torch saves a
    `state_dict` (`.pt`, `.pth`)."""
    name: str = Field(default="", max_length=255)
    """What people call it; the upload's file name unless given."""
    external_data: tuple[ExternalData, ...] = Field(default=(), max_length=1000)
    """Files that hold weights outside the graph."""
    architecture: Architecture | None = None
    """For weights without a graph, the network that they belong to: it is built, takes every one of the weights and
    none else, and is written as an ONNX graph once. Jobs on it give back a complete `state_dict`."""
    input: Inputs | None = None
    """What that network takes, where it is not the architecture's usual input."""

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [GRAPH_NAME, COMPANION, *(file.name for file in self.external_data)]
        if len(set(names)) != len(names):
            msg = f"names of external data must differ from each other and from {GRAPH_NAME} and {COMPANION}"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _weights_or_graph(self) -> Self:
        if self.architecture is None:
            if self.input is not None:
                msg = "input describes what an architecture takes: give 'architecture' too"
                raise ValueError(msg)
        elif self.external_data:
            msg = "external_data belongs to ONNX graphs; weights of an architecture come in one file"
            raise ValueError(msg)
        check_inputs(self.input)
        return self


class FileEntry(Document):
    """A file of a model."""

    name: str
    sha256: Sha256
    size: int
    """Bytes."""


class Source(Document):
    """What a graph was made from."""

    architecture: Architecture
    input: Inputs | None
    """As given; null is the architecture's usual input."""
    file: FileEntry
    """The upload."""


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
                    "source": None,
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
    """The graph first, then its external data. Of a `.levity` file and of weights with an architecture it is the
    upload until the graph is made; then the graph, and beside it what else the `state_dict` holds."""
    source: Source | None
    """The architecture and the upload that the graph was made from; null for an ONNX upload."""
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
        "source": row.source,
        "summary": row.summary,
        "error": row.error,
        "created_at": rfc3339(row.created_at),
    }
