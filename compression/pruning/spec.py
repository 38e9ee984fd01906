"""Spec of weight pruning."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from compression._spec_base import DataRole, StepSpec
from compression.training.spec import Training

BlockSide = Annotated[int, Field(ge=1, le=64)]

_PATTERN = re.compile(r"^(\d{1,2}):(\d{1,2})$")


class Prune(StepSpec):
    """Set the least important weights to zero (Han et al. 2015, "Learning both Weights and Connections").

    Give exactly one of `amount`, `threshold` and `pattern`. Shapes do not change. With `training` the network learns
    to do without the weights while they go, and zeros stay zero.
    """

    type: Literal["prune"] = "prune"
    criterion: Literal["magnitude", "wanda", "taylor", "movement"] = "magnitude"
    """Saliency of a weight: its absolute value; that times the norm of what it is multiplied by, over the calibration
    dataset (Sun et al. 2023, "A Simple and Effective Pruning Approach"; with scope `output` as published); or, in
    training, the loss that its removal would cost to first order (Molchanov et al. 2019), or how far training moves
    it away from zero (Sanh et al. 2020)."""
    scope: Literal["layer", "global", "output"] = "layer"
    """Rank the weights within each layer, all of them together, or those of each output channel. Only `amount` ranks;
    `threshold` and `pattern` act within a layer."""
    amount: float | None = Field(default=None, gt=0, lt=1, examples=[0.5])
    """Share of weights to set to zero (sparsity), above 0 and below 1. Weights that are zero already count."""
    threshold: float | None = Field(default=None, gt=0, allow_inf_nan=False, examples=[0.01])
    """Weights whose absolute value is below this become zero, in the weights' own unit."""
    pattern: str | None = Field(default=None, examples=["2:4"])
    """`n:m` keeps the n largest of every m consecutive weights along the input axis (2:4: Mishra et al. 2021).
    A layer whose input axis is not divisible by m is left as it is, and the report says so."""
    block: tuple[BlockSide, BlockSide] | None = Field(default=None, examples=[[4, 1]])
    """With `amount`: weights go in whole blocks of so many outputs by so many inputs, ranked by their mean saliency.
    A layer whose sides they do not divide is left as it is."""
    schedule: Literal["one_shot", "iterative", "gradual"] = "one_shot"
    """How weights go during training: all at `begin`; in `rounds` equal parts from `begin` to `end`; or more and more
    along a cubic curve (Zhu and Gupta 2017, "To prune, or not to prune", section 3)."""
    rounds: int = Field(default=5, ge=1, le=1000)
    """Parts of schedule `iterative`."""
    begin: float = Field(default=0.0, ge=0, lt=1)
    """Share of the training after which the first weights go."""
    end: float = Field(default=0.7, gt=0, le=1)
    """Share of the training after which no more weights go; the rest recovers. Not used by `one_shot`."""
    training: Training | None = None
    """How to train while pruning, and afterwards; None prunes the network as it is."""

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
        if self.scope != "layer" and self.amount is None:
            msg = f"scope '{self.scope}' ranks by amount; {given[0]} acts within a layer"
            raise ValueError(msg)
        if self.block is not None and (self.amount is None or self.scope == "output"):
            msg = "block goes with amount, and with scope 'layer' or 'global'"
            raise ValueError(msg)
        if self.threshold is not None and self.criterion != "magnitude":
            msg = "threshold compares absolute values: use criterion 'magnitude'"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _training_where_it_is_needed(self) -> Self:
        if self.training is None and self.criterion in ("taylor", "movement"):
            msg = f"criterion '{self.criterion}' is measured in training: give 'training'"
            raise ValueError(msg)
        if self.training is None and self.schedule != "one_shot":
            msg = f"schedule '{self.schedule}' prunes in training: give 'training'"
            raise ValueError(msg)
        if self.training is not None and self.criterion == "wanda" and self.schedule != "one_shot":
            msg = "criterion 'wanda' looks at the network once: use schedule 'one_shot'"
            raise ValueError(msg)
        if self.schedule != "one_shot" and self.end <= self.begin:
            msg = f"end ({self.end}) must lie after begin ({self.begin})"
            raise ValueError(msg)
        return self

    @property
    def data_needed(self) -> frozenset[DataRole]:
        roles: set[DataRole] = set()
        if self.training is not None:
            roles.add("training")
        if self.criterion == "wanda":
            roles.add("calibration")
        return frozenset(roles)

    @property
    def kept_of_group(self) -> tuple[int, int] | None:
        """The two numbers of `pattern`: weights kept, weights in a group."""
        if self.pattern is None:
            return None
        kept, _, group = self.pattern.partition(":")
        return int(kept), int(group)
