"""Identifiers: a prefix that says what it names, then a UUIDv7, so that sorting by id is sorting by age."""

from __future__ import annotations

from typing import Literal

import uuid_utils

Prefix = Literal["upl", "mdl", "dts", "job", "wrk", "whk", "dlv", "key", "aud"]


def new_id(prefix: Prefix) -> str:
    """A new identifier such as `job_0193f0c2…`: 4 + 32 characters."""
    return f"{prefix}_{uuid_utils.uuid7().hex}"
