"""What every step's spec shares."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

DataRole = Literal["calibration", "training", "evaluation"]
"""What a dataset serves for in a run."""

NamePattern = Annotated[str, Field(min_length=1, max_length=512)]


class Spec(BaseModel):
    """A frozen description of something to do. Unknown fields are errors, so a typo never passes silently."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class StepSpec(Spec):
    """One technique, applied to the weights that its patterns select."""

    include: tuple[NamePattern, ...] = Field(default=("*",), min_length=1, max_length=1000)
    """Shell-style patterns over node and weight names; a weight takes part when its own name or the name of a
    node that uses it matches one of them. A pattern that matches nothing is an error."""
    exclude: tuple[NamePattern, ...] = Field(default=(), max_length=1000)
    """Like `include`, and wins over it."""

    @property
    def data_needed(self) -> frozenset[DataRole]:
        """What the step cannot do without; steps that need no data say nothing."""
        return frozenset()

    @property
    def needs_student(self) -> bool:
        """Whether the step works with a second uploaded model."""
        return False

    @property
    def depends_on_machine(self) -> bool:
        """Whether the result rests on times that were measured while the step ran."""
        return False
