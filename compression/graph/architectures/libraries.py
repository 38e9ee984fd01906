"""What calls into large libraries have in common: their advice is muted, their errors become one sentence."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LONGEST = 300


@contextmanager
def quiet() -> Iterator[None]:
    """Without the advice that libraries give to the people who call them."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def sentence(error: BaseException) -> str:
    """The first line of what went wrong first: exporters wrap it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0][:_LONGEST]}" if lines else type(error).__name__
    return text if text.endswith(".") else f"{text}."


def reraise_out_of_memory(error: Exception) -> None:
    """Raise `error` again when memory was all that it lacked: that is not the upload's fault, and is told elsewhere."""
    if isinstance(error, MemoryError) or "allocate memory" in str(error):
        raise error
