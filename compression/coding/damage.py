"""What is wrong with a `.levity` file, and where."""

from __future__ import annotations

from compression.errors import ModelRejected


class Damage(ModelRejected):
    """Bytes that no encoder writes.

    Args:
        place: The part of the file: `header`, `graph`, `tables` or `stream N`.
        offset: Byte of the file at which it was noticed.
        what: What is wrong there.
    """

    def __init__(self, place: str, offset: int, what: str, code: str = "levity_corrupted") -> None:
        super().__init__(code, f"The .levity file is damaged in its {place}, at byte {offset}: {what}.")
