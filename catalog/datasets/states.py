"""States of a dataset."""

from __future__ import annotations

from enum import StrEnum


class DatasetState(StrEnum):
    INSPECTING = "inspecting"
    READY = "ready"
    REJECTED = "rejected"
