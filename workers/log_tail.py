"""The end of a child's log, as a job's owner may see it: bounded, without this machine's paths, without secrets."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from catalog.logs import redact

LOG_TAIL_BYTES = 4096

PathNames = Sequence[tuple[str, str]]
"""Paths and what is shown in their place, longer paths first."""


def path_names(data: Path, sources: Iterable[Path]) -> PathNames:
    """What of this machine's paths may stand in a child's log, and what is shown instead.

    Args:
        data: The data folder.
        sources: Folders that hold our packages.
    """
    names = {str(Path.home()): "~", sys.base_prefix: "<python>", sys.prefix: "<python>"}
    names |= dict.fromkeys(map(str, sources), "<levity>")
    names[str(data)] = "<data>"
    return sorted(((path, name) for path, name in names.items() if path != "/"), key=lambda pair: -len(pair[0]))


def tidied(text: str, names: PathNames) -> str:
    """`text` without those paths, without secrets, and without the character that PostgreSQL's text cannot hold."""
    for path, name in names:
        text = text.replace(path, name)
    return redact(text.replace("\0", "\N{REPLACEMENT CHARACTER}"))


def end_of(log: bytes, names: PathNames, *, whole: bool) -> str:
    """The last lines of a log, at most `LOG_TAIL_BYTES` of UTF-8.

    Args:
        log: Its end.
        names: See `path_names`.
        whole: Whether nothing is missing before it. Otherwise the first line may be cut, and a path within it.
    """
    if not whole:
        log = re.split(rb"\n" if b"\n" in log else rb"\s", log, maxsplit=1)[-1]
    text = tidied(log.decode(errors="replace"), names)
    # What is shown instead may be longer than what stood there.
    return text.encode()[-LOG_TAIL_BYTES:].decode(errors="ignore")
