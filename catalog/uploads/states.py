"""States of an upload."""

from __future__ import annotations

from enum import StrEnum


class UploadState(StrEnum):
    OPEN = "open"
    COMPLETE = "complete"
