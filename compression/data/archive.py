"""Zip archives of unknown origin."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from compression.errors import DataRejected

_MAX_TOTAL_BYTES = 1 << 40
# Deflate reaches 1032 to 1 on zeros alone. Real arrays and pictures stay far below, and small archives do no harm.
_MAX_RATIO = 200
_RATIO_MATTERS_ABOVE = 100 << 20
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def open_zip(path: Path, *, max_members: int) -> zipfile.ZipFile:
    """Open an archive whose table of contents is harmless. Nothing is extracted, members are only ever streamed.

    Raises:
        DataRejected: `not_a_dataset` or `archive_unsafe`.
    """
    try:
        opened = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DataRejected("not_a_dataset", f"The file is no complete zip archive: {error}") from None
    members = opened.infolist()
    if len(members) > max_members:
        raise DataRejected("archive_unsafe", f"The archive has {len(members)} members; at most {max_members} are read.")
    total = sum(member.file_size for member in members)
    packed = sum(member.compress_size for member in members)
    if total > _MAX_TOTAL_BYTES or (total > _RATIO_MATTERS_ABOVE and total > _MAX_RATIO * max(packed, 1)):
        raise DataRejected("archive_unsafe", f"The archive would unpack from {packed} to {total} bytes.")
    if packed > path.stat().st_size:
        raise DataRejected("archive_unsafe", "The archive's members overlap.")
    for member in members:
        _check_member(member)
    return opened


def _check_member(member: zipfile.ZipInfo) -> None:
    name = member.filename
    if not name:
        raise DataRejected("archive_unsafe", "The archive holds a member without a name.")
    if name.startswith("/") or "\\" in name or ".." in PurePosixPath(name).parts:
        raise DataRejected("archive_unsafe", f"The archive holds the path '{name[:100]}', which leaves its folder.")
    if member.flag_bits & 1:
        raise DataRejected("archive_unsafe", f"'{name[:100]}' in the archive is encrypted.")
    if member.compress_type not in _METHODS:
        raise DataRejected("archive_unsafe", f"'{name[:100]}' is compressed by a method other than deflate.")


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn what a damaged member can raise into `DataRejected` `not_a_dataset` with its name."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
        reason = str(error) or "it ends early"
        raise DataRejected("not_a_dataset", f"'{name[:100]}' in the archive cannot be read: {reason}") from None
