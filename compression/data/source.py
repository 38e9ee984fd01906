"""From a local file to a dataset; the bytes decide what it is."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from compression.data.arrays import ArrayDataset
from compression.data.base import Batch, Dataset
from compression.data.images import ImageDataset
from compression.data_spec import DatasetFormat, ImagePreprocessing
from compression.errors import DataRejected

__all__ = ["Batch", "DataSource", "Dataset", "detect_format", "open_dataset"]


@dataclass(frozen=True)
class DataSource:
    """A file that holds a dataset.

    Attributes:
        path: The file.
        format: What the caller says it is, or None to find out.
        images: How pictures become samples; needed for archives of pictures.
    """

    path: Path
    format: DatasetFormat | None = None
    images: ImagePreprocessing | None = None


def detect_format(path: Path) -> DatasetFormat:
    """Tell the format by the bytes.

    Raises:
        DataRejected: `not_a_dataset` or `empty_dataset`.
    """
    with path.open("rb") as file:
        head = file.read(9)
    if head[:4] == b"PK\x03\x04":
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise DataRejected("not_a_dataset", f"The file is no complete zip archive: {error}") from None
        return "npz" if any(name.endswith(".npy") for name in names) else "images"
    if head[:4] == b"PK\x05\x06":
        raise DataRejected("empty_dataset", "The archive is empty.")
    # safetensors: the header's length as 8 little-endian bytes, then the header, a JSON object.
    if len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") + 8 <= path.stat().st_size:
        return "safetensors"
    raise DataRejected("not_a_dataset", "The bytes are no safetensors file, no .npz file and no zip archive.")


def open_dataset(source: DataSource) -> Dataset:
    """Open a dataset and check all that its tables of contents and its labels tell.

    Raises:
        DataRejected: with the code of what is wrong; `inspect_dataset` reads the samples too.
    """
    found = detect_format(source.path)
    if source.format is not None and source.format != found:
        raise DataRejected("not_a_dataset", f"The dataset was said to be {source.format}; its bytes are {found}.")
    match found:
        case "safetensors" | "npz":
            return ArrayDataset(source.path, found)
        case "images":
            return ImageDataset(source.path, source.images)
        case _:
            assert_never(found)
