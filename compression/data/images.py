"""Datasets of pictures: a zip archive with one folder for each class."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from compression.data import archive
from compression.data.base import Array, Batch, spread
from compression.data_spec import ImagePreprocessing
from compression.errors import DataRejected
from compression.signature import DatasetSummary, TensorSpec

ARRAY_NAME = "image"
_MAX_MEMBERS = 5_000_000
_MAX_PIXELS = 100_000_000
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
_LITTER = ("Thumbs.db", "desktop.ini")
_INTERPOLATION = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
_EIGHT_BIT_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"})


class _Picture(NamedTuple):
    member: zipfile.ZipInfo
    label: int


class ImageDataset:
    """Pictures in folders named for their classes, decoded and preprocessed as they are asked for.

    Classes are numbered in the order of their sorted names. One folder around all class folders is allowed.
    """

    def __init__(self, path: Path, preprocessing: ImagePreprocessing | None) -> None:
        if preprocessing is None:
            raise DataRejected(
                "preprocessing_missing", "A dataset of pictures needs 'images': size, scale, mean, std and layout."
            )
        self._preprocessing = preprocessing
        self._zip = archive.open_zip(path, max_members=_MAX_MEMBERS)
        self._pictures, class_names = _by_class(self._zip)
        self._summary = DatasetSummary(
            format="images",
            samples=len(self._pictures),
            arrays=(TensorSpec(name=ARRAY_NAME, dtype=preprocessing.dtype, shape=self._shape()),),
            has_labels=True,
            classes=len(class_names),
            class_names=class_names,
            bytes=path.stat().st_size,
        )

    @property
    def summary(self) -> DatasetSummary:
        return self._summary

    def batches(self, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        indices = spread(len(self._pictures), limit)
        for begin in range(0, len(indices), batch_size):
            pictures = [self._pictures[index] for index in indices[begin : begin + batch_size]]
            labels = np.array([picture.label for picture in pictures], np.int64)
            yield Batch({ARRAY_NAME: np.stack([self._read(picture.member) for picture in pictures])}, labels)

    def _shape(self) -> tuple[int, ...]:
        wanted = self._preprocessing
        channels = 1 if wanted.channels == "grey" else 3
        if wanted.layout == "nchw":
            return len(self._pictures), channels, wanted.height, wanted.width
        return len(self._pictures), wanted.height, wanted.width, channels

    def _read(self, member: zipfile.ZipInfo) -> Array:
        with archive.reading(member.filename), self._zip.open(member) as stream:
            try:
                # Pillow warns of bombs from 89 million pixels on; here the limit is stated and final.
                with warnings.catch_warnings(action="ignore"), Image.open(stream, formats=_FORMATS) as picture:
                    _check_size(picture, member.filename)
                    return preprocess(picture, self._preprocessing)
            except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                if isinstance(error, zipfile.BadZipFile):
                    raise
                raise DataRejected(
                    "image_unreadable", f"'{member.filename[:200]}' cannot be read as a picture: {str(error)[:200]}"
                ) from None


def preprocess(picture: Image.Image, wanted: ImagePreprocessing) -> Array:
    """One sample from a decoded picture.

    Resizing antialiases like torchvision's, and the shorter side and the centre crop round as its do. With dtype
    `uint8` the pixels are left as they are: scale, mean and std apply to floats.

    Returns:
        (channels, height, width), or (height, width, channels) with layout `nhwc`.
    """
    picture = picture.convert("L" if wanted.channels == "grey" else "RGB")
    method = _INTERPOLATION[wanted.interpolation]
    if wanted.resize_shorter_to is None:
        picture = picture.resize((wanted.width, wanted.height), method)
    else:
        size = _shorter_side(picture.size, wanted.resize_shorter_to)
        if size[0] * size[1] > _MAX_PIXELS:
            raise DataRejected(
                "archive_unsafe",
                f"A picture of {picture.width}x{picture.height} would be enlarged to {size[0]}x{size[1]} pixels; "
                f"{_MAX_PIXELS} are the limit.",
            )
        picture = picture.resize(size, method)
        left = round((picture.width - wanted.width) / 2)
        top = round((picture.height - wanted.height) / 2)
        picture = picture.crop((left, top, left + wanted.width, top + wanted.height))
    pixels: npt.NDArray[np.generic] = np.asarray(picture).reshape(wanted.height, wanted.width, -1)
    if wanted.channels == "bgr":
        pixels = pixels[..., ::-1]
    if wanted.dtype == "float32":
        scaled = pixels.astype(np.float32) * np.float32(wanted.scale)
        pixels = (scaled - np.array(wanted.mean, np.float32)) / np.array(wanted.std, np.float32)
    if wanted.layout == "nchw":
        pixels = pixels.transpose(2, 0, 1)
    return np.ascontiguousarray(pixels)


def _shorter_side(size: tuple[int, int], length: int) -> tuple[int, int]:
    width, height = size
    if width <= height:
        return length, int(length * height / width)
    return int(length * width / height), length


def _check_size(picture: Image.Image, name: str) -> None:
    if picture.width * picture.height > _MAX_PIXELS:
        raise DataRejected(
            "archive_unsafe",
            f"'{name[:200]}' would decode to {picture.width}x{picture.height} pixels; {_MAX_PIXELS} are the limit.",
        )
    if picture.mode not in _EIGHT_BIT_MODES:
        raise DataRejected(
            "image_unreadable",
            f"'{name[:200]}' has more than 8 bits a channel (mode {picture.mode}).",
        )


def _by_class(archive_file: zipfile.ZipFile) -> tuple[list[_Picture], tuple[str, ...]]:
    """All pictures in the order of class and name, and the sorted names of the classes."""
    members = {
        PurePosixPath(member.filename).parts: member
        for member in archive_file.infolist()
        if not member.is_dir() and not _is_litter(member.filename)
    }
    if not members:
        raise DataRejected("empty_dataset", "The archive holds no pictures.")
    depths = {len(parts) for parts in members}
    tops = {parts[0] for parts in members}
    if depths not in ({2}, {3}) or (depths == {3} and len(tops) > 1):
        odd = min(members, key=len) if depths != {3} else min(members)
        raise DataRejected(
            "not_a_dataset",
            "Pictures must lie in class folders, such as 'cat/1.png', with at most one folder around them; "
            f"'{'/'.join(odd)[:200]}' does not fit.",
        )
    class_names = tuple(sorted({parts[-2] for parts in members}))
    number = {name: index for index, name in enumerate(class_names)}
    return [_Picture(members[parts], number[parts[-2]]) for parts in sorted(members)], class_names


def _is_litter(name: str) -> bool:
    """What desktop systems leave in archives."""
    parts = PurePosixPath(name).parts
    return any(part.startswith(".") or part == "__MACOSX" for part in parts) or parts[-1] in _LITTER
