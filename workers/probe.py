"""What a child can really reach, tried by a process that is confined like one.

    python -P -s -m workers.probe <port> <file> <namespace>

The level of a sandbox says what should hold. This says what does, on this machine, at this moment.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

if TYPE_CHECKING:
    from workers.sandbox import Command

_SECONDS = 30
_CONNECT_SECONDS = 2
_NAMESPACE = "/proc/self/ns/pid"


class Reach(BaseModel):
    """What lies open to a child."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    network: bool
    """It can connect to a port of this machine."""
    files: bool
    """It can read or change files of the worker's user outside its own folder."""
    processes: bool
    """It sees the machine's other processes."""

    def __str__(self) -> str:
        return ", ".join(name for name, open_ in self if open_) or "nothing"


EVERYTHING = Reach(network=True, files=True, processes=True)


class ProbeFailed(Exception):
    """No confined process could be started."""


def measure(wrap: Callable[[Sequence[str], Path], Command], place: Path) -> Reach:
    """Try it.

    Args:
        wrap: Confines a command that works in a folder.
        place: A folder for this, always the same: a worker that is killed meanwhile leaves nothing new behind.

    Raises:
        ProbeFailed: With the reason.
    """
    folder, outside = place / "job", place / "outside"
    folder.mkdir(exist_ok=True)
    outside.touch()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        program = [sys.executable, "-P", "-s", "-m", "workers.probe", port, str(outside)]
        program.append(str(Path(_NAMESPACE).readlink()))
        try:
            done = wrap(program, folder).run(seconds=_SECONDS)
        except (OSError, RuntimeError, ImportError, subprocess.SubprocessError) as error:
            raise ProbeFailed(f"{error}.") from error
    if done.returncode:
        raise ProbeFailed(done.stderr.strip()[-500:] or f"exit status {done.returncode}.")
    try:
        return Reach.model_validate_json(done.stdout)
    except ValidationError as error:
        raise ProbeFailed(f"it said {done.stdout[:100]!r}.") from error


def main(port: str, outside: str, namespace: str) -> None:
    """Try, inside, and say what worked."""
    network = files = False
    with suppress(OSError), socket.create_connection(("127.0.0.1", int(port)), _CONNECT_SECONDS):
        network = True
    for flags in (os.O_RDONLY, os.O_WRONLY):
        with suppress(OSError):
            os.close(os.open(outside, flags))
            files = True
    processes = str(Path(_NAMESPACE).readlink()) == namespace
    sys.stdout.write(Reach(network=network, files=files, processes=processes).model_dump_json())


if __name__ == "__main__":
    main(*sys.argv[1:])
