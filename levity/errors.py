"""The one error that the client raises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class LevityError(Exception):
    """The service refused, could not be reached, or a job did not do what was asked.

    Attributes:
        code: Stable machine-readable identifier: one of the service's, or of the client's own: `unreachable`,
            `bad_response`, `digest_mismatch`, `wait_timeout`, `file_changed`.
        message: One or two sentences for a person.
        status: HTTP status of the answer; None where there was none.
        problem: The whole problem document (RFC 9457); empty where there was none.
    """

    def __init__(
        self, code: str, message: str, *, status: int | None = None, problem: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status
        self.problem = dict(problem or {})

    def __str__(self) -> str:
        details = [
            f"{entry.get('pointer', '')}: {entry.get('message', '')}"
            for entry in self.problem.get("errors") or ()
            if isinstance(entry, dict) and str(entry.get("message")) not in self.message
        ]
        return "; ".join([f"{self.message} ({self.code})", *details])
