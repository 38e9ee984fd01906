"""What the commands of `python -m catalog` say to whoever runs them."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """A line on standard output."""
    sys.stdout.write(f"{text}\n")
