"""Datasets of named arrays: safetensors and .npz files."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from compression.data import archive
from compression.data.base import LABELS, TARGETS, Array, Batch, check_dtype, checked_labels, common_length, spread
from compression.errors import DataRejected
from compression.signature import DatasetSummary, TensorSpec

# Column-major arrays cannot be read by rows and are held in memory whole.
_MAX_COLUMN_MAJOR_BYTES = 1 << 30
_MAX_LABEL_BYTES = 1 << 30
_MAX_NPZ_MEMBERS = 1000


class ArrayInfo(NamedTuple):
    dtype: str
    shape: tuple[int, ...]


class ArrayFile(Protocol):
    """A file of named arrays that can be read by rows, in ascending order."""

    @property
    def arrays(self) -> Mapping[str, ArrayInfo]: ...

    def rows(self, name: str, indices: npt.NDArray[np.int64], batch_size: int) -> Iterator[Array]:
        """The rows at ascending `indices` of one array, `batch_size` at a time."""


class ArrayDataset:
    """Named arrays whose first axis is the sample; `labels` is the class of each, `targets` what should come out."""

    def __init__(self, path: Path, kind: Literal["safetensors", "npz"]) -> None:
        self._file: ArrayFile = _Safetensors(path) if kind == "safetensors" else _Npz(path)
        arrays = self._file.arrays
        samples = common_length({name: info.shape for name, info in arrays.items()})
        for name, info in arrays.items():
            check_dtype(name, info.dtype)
        self._labels = self._read_labels(samples) if LABELS in arrays else None
        self._summary = DatasetSummary(
            format=kind,
            samples=samples,
            arrays=tuple(
                _described(name, info) for name, info in sorted(arrays.items()) if name not in (LABELS, TARGETS)
            ),
            has_labels=self._labels is not None,
            classes=int(self._labels.max()) + 1 if self._labels is not None else None,
            targets=_described(TARGETS, arrays[TARGETS]) if TARGETS in arrays else None,
            bytes=path.stat().st_size,
        )

    @property
    def summary(self) -> DatasetSummary:
        return self._summary

    def batches(self, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        indices = spread(self._summary.samples, limit)
        names = [array.name for array in self._summary.arrays]
        if self._summary.targets is not None:
            names.append(TARGETS)
        columns = [self._file.rows(name, indices, batch_size) for name in names]
        start = 0
        for arrays in zip(*columns, strict=True):
            inputs = dict(zip(names, arrays, strict=True))
            targets = inputs.pop(TARGETS, None)
            if targets is not None:
                targets = targets.astype(np.float32 if targets.dtype.kind == "f" else np.int64, copy=False)
            taken = indices[start : start + len(arrays[0])]
            start += len(taken)
            yield Batch(inputs, self._labels[taken] if self._labels is not None else None, targets)

    def _read_labels(self, samples: int) -> npt.NDArray[np.int64]:
        info = self._file.arrays[LABELS]
        if len(info.shape) == 1 and samples * 8 > _MAX_LABEL_BYTES:
            raise DataRejected("labels_invalid", f"'{LABELS}' has {samples} entries, which is too many.")
        if len(info.shape) != 1 or np.dtype(info.dtype).kind not in "iu":
            return checked_labels(np.empty((0,) * len(info.shape), info.dtype))
        return checked_labels(next(self._file.rows(LABELS, spread(samples, None), samples)))


def _described(name: str, info: ArrayInfo) -> TensorSpec:
    return TensorSpec(name=name, dtype=info.dtype, shape=info.shape)


_SAFETENSORS_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
}


class _Safetensors:
    """The safetensors library maps the file and checks its header (100 MB at most) and offsets."""

    def __init__(self, path: Path) -> None:
        try:
            handle: Any = safe_open(path, framework="numpy")
        except (SafetensorError, OSError) as error:
            raise DataRejected("not_a_dataset", f"The file is no valid safetensors file: {error}") from None
        self._slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118 - no dict
        self.arrays: dict[str, ArrayInfo] = {
            name: ArrayInfo(_SAFETENSORS_DTYPES.get(part.get_dtype(), part.get_dtype()), tuple(part.get_shape()))
            for name, part in self._slices.items()
        }

    def rows(self, name: str, indices: npt.NDArray[np.int64], batch_size: int) -> Iterator[Array]:
        part = self._slices[name]
        for begin in range(0, len(indices), batch_size):
            wanted = indices[begin : begin + batch_size]
            if wanted[-1] - wanted[0] + 1 == len(wanted):
                yield part[int(wanted[0]) : int(wanted[-1]) + 1]
            else:
                yield np.concatenate([part[int(row) : int(row) + 1] for row in wanted])


class _Npz:
    """A zip archive of .npy members, decompressed as it is read. Pickled objects are refused by their header."""

    def __init__(self, path: Path) -> None:
        self._zip = archive.open_zip(path, max_members=_MAX_NPZ_MEMBERS)
        self._members: dict[str, zipfile.ZipInfo] = {}
        self.arrays: dict[str, ArrayInfo] = {}
        for member in self._zip.infolist():
            name = member.filename.removesuffix(".npy")
            if name == member.filename or name in self._members:
                raise DataRejected("not_a_dataset", f"'{member.filename[:100]}' in the archive is no .npy array.")
            self._members[name] = member
            with archive.reading(member.filename), self._zip.open(member) as stream:
                header = _read_header(stream, member.filename)
                held = member.file_size - stream.tell()
            expected = math.prod(header.shape) * header.dtype.itemsize
            if held != expected:
                raise DataRejected(
                    "not_a_dataset", f"Array '{name}' declares {expected} bytes of data and holds {held}."
                )
            self.arrays[name] = ArrayInfo(header.dtype.name, header.shape)

    def rows(self, name: str, indices: npt.NDArray[np.int64], batch_size: int) -> Iterator[Array]:
        member = self._members[name]
        with archive.reading(member.filename), self._zip.open(member) as stream:
            header = _read_header(stream, member.filename)
            source = _whole(stream, header, name) if header.column_major else _Rows(stream, header)
            for begin in range(0, len(indices), batch_size):
                yield source[indices[begin : begin + batch_size]]


class _Header(NamedTuple):
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    column_major: bool


class _Rows:
    """Ascending rows of a stream; those between them are read and dropped, since a stream has no way back."""

    def __init__(self, stream: IO[bytes], header: _Header) -> None:
        self._stream = stream
        self._header = header
        self._row_bytes = math.prod(header.shape[1:]) * header.dtype.itemsize
        self._next = 0

    def __getitem__(self, wanted: npt.NDArray[np.int64]) -> Array:
        shape = self._header.shape[1:]
        rows = np.empty((len(wanted), *shape), self._header.dtype)
        target = rows.reshape(-1).view(np.uint8)
        position = 0
        while position < len(wanted):
            self._skip(int(wanted[position]) - self._next)
            run = _run_length(wanted, position)
            self._fill(target[position * self._row_bytes : (position + run) * self._row_bytes])
            self._next = int(wanted[position]) + run
            position += run
        return rows.astype(self._header.dtype.newbyteorder("="), copy=False)

    def _skip(self, rows: int) -> None:
        remaining = rows * self._row_bytes
        while remaining:
            dropped = len(self._stream.read(min(remaining, 1 << 20)))
            if dropped == 0:
                raise EOFError
            remaining -= dropped

    def _fill(self, target: npt.NDArray[np.uint8]) -> None:
        filled = 0
        while filled < len(target):
            part = self._stream.read(len(target) - filled)
            if not part:
                raise EOFError
            target[filled : filled + len(part)] = np.frombuffer(part, np.uint8)
            filled += len(part)


def _run_length(indices: npt.NDArray[np.int64], start: int) -> int:
    """How many indices from `start` on follow each other without a gap."""
    gaps = np.flatnonzero(np.diff(indices[start:]) != 1)
    return int(gaps[0]) + 1 if gaps.size else len(indices) - start


def _whole(stream: IO[bytes], header: _Header, name: str) -> Array:
    size = math.prod(header.shape) * header.dtype.itemsize
    if size > _MAX_COLUMN_MAJOR_BYTES:
        raise DataRejected(
            "array_layout_not_supported",
            f"Array '{name}' is stored column by column; save it row by row (numpy.ascontiguousarray) to stream it.",
        )
    flat = np.frombuffer(stream.read(size), header.dtype)
    if flat.nbytes != size:
        raise EOFError
    return flat.reshape(header.shape, order="F").astype(header.dtype.newbyteorder("="), copy=False)


def _read_header(stream: IO[bytes], name: str) -> _Header:
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, column_major, dtype = read(stream)
    except (ValueError, TypeError, SyntaxError, TokenError, RecursionError) as error:
        # NumPy parses the header as Python text, and for some versions of the format tokenizes it before.
        raise DataRejected("not_a_dataset", f"'{name[:100]}' is no .npy array: {str(error)[:200]}") from None
    if dtype.hasobject:
        raise DataRejected("dtype_not_supported", f"'{name[:100]}' holds pickled Python objects, which are never read.")
    check_dtype(name.removesuffix(".npy"), dtype.name)
    return _Header(tuple(shape), dtype, column_major and len(shape) > 1)
