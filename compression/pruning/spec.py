"""Spec of weight pruning."""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from compression._spec_base import StepSpec

_PATTERN = re.compile(r"^(\d{1,2}):(\d{1,2})$")


class Prune(StepSpec):
    """Set the least important weights to zero (Han et al. 2015, "Learning both Weights and Connections").

    Give exactly one of `amount`, `threshold` and `pattern`. Shapes do not change.
    """

    type: Literal["prune"] = "prune"
    criterion: Literal["magnitude"] = "magnitude"
    """Saliency of a weight: its absolute value."""
    scope: Literal["layer", "global"] = "layer"
    """Rank the weights within each layer, or all of them together. Only `amount` ranks; `threshold` and `pattern`
    act within a layer."""
    amount: float | None = Field(default=None, gt=0, lt=1, examples=[0.5])
    """Share of weights to set to zero (sparsity), above 0 and below 1. Weights that are zero already count."""
    threshold: float | None = Field(default=None, gt=0, allow_inf_nan=False, examples=[0.01])
    """Weights whose absolute value is below this become zero, in the weights' own unit."""
    pattern: str | None = Field(default=None, examples=["2:4"])
    """`n:m` keeps the n largest of every m consecutive weights along the input axis (2:4: Mishra et al. 2021).
    A layer whose input axis is not divisible by m is left as it is, and the report says so."""

    @field_validator("pattern")
    @classmethod
    def _n_below_m(cls, pattern: str | None) -> str | None:
        if pattern is None:
            return None
        match = _PATTERN.match(pattern)
        if match is None:
            msg = "must look like n:m, for example 2:4"
            raise ValueError(msg)
        kept, group = (int(part) for part in match.groups())
        if not 1 <= kept < group <= 64:
            msg = "needs 1 <= n < m <= 64"
            raise ValueError(msg)
        return pattern

    @model_validator(mode="after")
    def _one_criterion(self) -> Self:
        given = [name for name in ("amount", "threshold", "pattern") if getattr(self, name) is not None]
        if len(given) != 1:
            msg = f"give exactly one of amount, threshold and pattern, not {' and '.join(given) or 'none'}"
            raise ValueError(msg)
        if self.scope == "global" and self.amount is None:
            msg = f"scope 'global' ranks by amount; {given[0]} acts within a layer"
            raise ValueError(msg)
        return self

    @property
    def kept_of_group(self) -> tuple[int, int] | None:
        """The two numbers of `pattern`: weights kept, weights in a group."""
        if self.pattern is None:
            return None
        kept, _, group = self.pattern.partition(":")
        return int(kept), int(group)
