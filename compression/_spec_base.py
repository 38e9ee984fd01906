"""What every step's spec shares."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

DataRole = Literal["calibration", "training", "evaluation"]
"""What a dataset serves for in a run."""

NamePattern = Annotated[str, Field(min_length=1, max_length=512)]


class Exact(BaseModel):
    """Takes what its JSON Schema says: pydantic alone would read `true` as 1, `"5"` as 5 and `"no"` as false."""

    @model_validator(mode="before")
    @classmethod
    def _as_it_is(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        other = {name: _OTHER for name, kinds in _plain_fields(cls).items() if _is_other(data.get(name), kinds)}
        return {**data, **other} if other else data


# Stands for a value of another type, so that the field's own validator refuses it in its own words and place.
_OTHER = object()


@cache
def _plain_fields(model: type[BaseModel]) -> dict[str, frozenset[object]]:
    """Fields that hold a number or a truth value alone, with the types that they take."""
    kinds = {
        name: frozenset(get_args(field.annotation) or (field.annotation,)) - {type(None)}
        for name, field in model.model_fields.items()
    }
    return {name: kind for name, kind in kinds.items() if kind and kind <= {bool, int, float}}


def _is_other(value: object, kinds: frozenset[object]) -> bool:
    if isinstance(value, bool):
        return bool not in kinds
    return isinstance(value, str) or (value is not None and kinds == {bool})


class Spec(Exact):
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
