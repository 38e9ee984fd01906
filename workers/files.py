"""Opening files that a child made, without being led elsewhere.

A child may put links where files are expected. So every component of a path is opened relative to the one before it
and never followed when it is a link, and only regular files with a single name are read.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+@-]{0,254}")


class UnsafeFile(Exception):
    """What a child left is not a plain file under a plain name."""


def check_plain_name(name: str) -> str:
    """`name`, when it is fit to be a file's name in any folder.

    Raises:
        UnsafeFile: It has separators, begins with a dot or holds unusual characters.
    """
    if _PLAIN_NAME.fullmatch(name) is None:
        raise UnsafeFile(f"{name[:100]!r} is no plain file name.")
    return name


@contextmanager
def open_folder(root: Path, relative: str) -> Iterator[int]:
    """A descriptor of a folder below `root`.

    Raises:
        UnsafeFile: `relative` leads out of `root`, over a link, or to no folder.
    """
    parts = [part for part in relative.split("/") if part not in ("", ".")]
    if relative.startswith("/") or ".." in parts:
        raise UnsafeFile(f"{relative[:100]!r} leads out of the job's folder.")
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    descriptor = os.open(root, flags)
    try:
        for part in parts:
            try:
                inner = os.open(part, flags, dir_fd=descriptor)
            except (OSError, ValueError) as error:
                raise UnsafeFile(f"{relative[:100]!r} is no folder of the job.") from error
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


def list_folder(folder: int) -> list[str]:
    """Names in an open folder, sorted."""
    return sorted(os.listdir(folder))


@contextmanager
def open_regular(folder: int, name: str) -> Iterator[BinaryIO]:
    """The file `name` of an open folder, for reading.

    Raises:
        UnsafeFile: It is missing, a link, not a regular file, or has further names elsewhere.
    """
    check_plain_name(name)
    try:
        # Without O_NONBLOCK, opening a named pipe would wait for a writer.
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except OSError as error:
        raise UnsafeFile(f"File {name} is missing or a link.") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise UnsafeFile(f"File {name} is not a regular file of its own.")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


def remove_tree(path: Path) -> None:
    """Delete a folder and all in it, also folders that their maker closed."""
    shutil.rmtree(path, ignore_errors=True)
    if not path.exists():
        return
    for folder, names, _ in os.walk(path):
        for name in names:
            inner = Path(folder, name)
            if not inner.is_symlink():
                inner.chmod(0o700)
    shutil.rmtree(path, ignore_errors=True)
