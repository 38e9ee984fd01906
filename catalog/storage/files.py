"""Files that survive a crash of the machine: what an object store does by itself."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from catalog.errors import StoreFull


def store_error(error: OSError) -> Exception:
    """What to raise for an error of the file system: `StoreFull` when the disk is, else the error itself."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull("There is no room left on the server's disk.")
    return error


def put_durably(path: Path, target: Path) -> None:
    """Give a file a second name, whole and on disk when this returns; `path` stays.

    A file that has the name already is left alone: names tell the content here.

    Raises:
        StoreFull: There is no room.
    """
    try:
        _sync(path, os.O_RDONLY)
        _make_durable_folder(target.parent)
        _link(path, target)
        _sync_folder(target.parent)
    except OSError as error:
        raise store_error(error) from error


def _link(path: Path, target: Path) -> None:
    try:
        target.hardlink_to(path)
    except FileExistsError:
        return
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
            raise
        # A file system without links.
        copy = path.with_name(f"{path.name}-copy")
        try:
            shutil.copyfile(path, copy)
            copy.chmod(path.stat().st_mode)
            _sync(copy, os.O_RDONLY)
            copy.replace(target)
        finally:
            copy.unlink(missing_ok=True)


def _make_durable_folder(folder: Path) -> None:
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        path.mkdir(exist_ok=True, mode=0o700)
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
