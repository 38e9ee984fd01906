"""The first byte of a stream, and how its planes are stored."""

from __future__ import annotations

from enum import Flag

CONSTANT, RAW, CODED = range(3)
"""Modes of a plane: one symbol everywhere, bytes as they are, entropy coded."""


class Form(Flag):
    """What a stream has."""

    SPARSE = 1
    """Places of the elements that differ from most, and these."""
    TRANSPOSED = 2
    """Places go along rows."""
    CODEBOOK = 4
    """Symbols stand for stored numbers."""
    ROWS = 8
    """A level of each row."""
    COLUMNS = 16
    """A level of each column."""
    LINES = 64
    """With CODEBOOK one book for each row, alone one for each column."""
    SIGNS = 32
    """Symbols have a table for each context of signs."""
    STORED = 128
    """Nothing else: the bytes as they are."""

    @property
    def words(self) -> str:
        """For a report.

        >>> (Form.SPARSE | Form.CODEBOOK).words
        'sparse, codebook'
        """
        names = [str(flag.name).lower() for flag in (Form.STORED, Form.SPARSE) if flag in self]
        if self & (Form.CODEBOOK | Form.LINES):
            names.append("codebooks" if Form.LINES in self else "codebook")
        return ", ".join(names) or "planes"
