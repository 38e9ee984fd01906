"""Reads docker-compose.yml as far as tests need it, where no engine and no plugin of Docker is installed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
SECRETS = "/run/secrets"
_VARIABLE = re.compile(r"\$\$|\$\{(?P<name>\w+)(?::-(?P<default>.*?))?\}(?!\})")


def services() -> dict[str, dict[str, Any]]:
    """All services, anchors merged, variables at their defaults."""
    document = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return {name: _interpolate(service) for name, service in document["services"].items()}


def _interpolate(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _interpolate(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_interpolate(inner) for inner in value]
    if isinstance(value, str):
        return _VARIABLE.sub(lambda found: "$" if found[0] == "$$" else found["default"] or "", value)
    return value
