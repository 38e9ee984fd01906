"""States of a model."""

from __future__ import annotations

from enum import StrEnum


class ModelState(StrEnum):
    INSPECTING = "inspecting"
    READY = "ready"
    REJECTED = "rejected"
