"""What is said about datasets."""

from __future__ import annotations

from pydantic import AwareDatetime, ConfigDict, Field

from api.dependencies import Body, Document, Page
from api.models.schemas import Rejection
from api.uploads.schemas import Sha256
from catalog.datasets.states import DatasetState
from catalog.datasets.tables import DatasetRow
from catalog.db import Json
from catalog.times import rfc3339
from compression.data_spec import ImagePreprocessing
from compression.signature import DatasetSummary


class CreateDataset(Body):
    """Registers a dataset."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"upload_id": "upl_0193f0c2a6b77c0d8a4be21d09f1a2b3", "name": "calibration"},
                {
                    "upload_id": "upl_0193f0c2a6b77c0d8a4be21d09f1a2b3",
                    "images": {
                        "height": 224,
                        "width": 224,
                        "resize_shorter_to": 256,
                        "mean": [0.485, 0.456, 0.406],
                        "std": [0.229, 0.224, 0.225],
                    },
                },
            ]
        }
    )

    upload_id: str
    """A complete upload: safetensors or `.npz` of named arrays, or a zip of class folders with pictures."""
    name: str = Field(default="", max_length=255)
    """What people call it; the upload's file name unless given."""
    images: ImagePreprocessing | None = None
    """How a picture becomes a sample; needed for pictures, and for nothing else."""


class Dataset(Document):
    """Samples."""

    id: str
    name: str
    state: DatasetState
    sha256: Sha256
    size: int
    """Bytes."""
    images: ImagePreprocessing | None
    summary: DatasetSummary | None
    """What inspection found."""
    error: Rejection | None
    """Why it was rejected."""
    created_at: AwareDatetime


class DatasetPage(Page):
    items: list[Dataset]


def dataset_json(row: DatasetRow) -> Json:
    return {
        "id": row.id,
        "name": row.name,
        "state": row.state,
        "sha256": row.sha256,
        "size": row.size,
        "images": row.images,
        "summary": row.summary,
        "error": row.error,
        "created_at": rfc3339(row.created_at),
    }
