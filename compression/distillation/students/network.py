"""A student: a network that reads what the teacher reads, and heads that give what it gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from compression.distillation.students.plain import Encoded

Ending = Literal["none", "softmax", "log_softmax", "sigmoid"]
"""What a network applies to its scores before it gives them out."""

# Probabilities closer to 0 or 1 than this have no logarithm worth following in float32.
_SMALLEST_PROBABILITY = 1e-12
_SMALLEST_DOUBT = 1e-6


@dataclass(frozen=True)
class Form:
    """What an output is.

    Attributes:
        shape: Without the batch axis; with `each_position`, without the positions either.
        each_position: One for each position of a sequence instead of one for the sample.
        ending: What its scores go through, along the last axis.
    """

    shape: tuple[int, ...]
    each_position: bool = False
    ending: Ending = "none"

    def finish(self, scores: torch.Tensor) -> torch.Tensor:
        """The output for these scores."""
        match self.ending:
            case "softmax":
                return scores.softmax(-1)
            case "log_softmax":
                return scores.log_softmax(-1)
            case "sigmoid":
                return scores.sigmoid()
            case "none":
                return scores

    def scores(self, output: torch.Tensor) -> torch.Tensor:
        """What an output was before `finish`; for a softmax up to a constant, which changes nothing."""
        match self.ending:
            case "softmax":
                return output.clamp_min(_SMALLEST_PROBABILITY).log()
            case "sigmoid":
                return torch.logit(output, _SMALLEST_DOUBT)
            case "log_softmax" | "none":
                return output


class Head(nn.Module):
    """A dense layer to one output of the teacher.

    Args:
        features: Length of the vector that comes in.
        form: What the output is.
    """

    def __init__(self, features: int, form: Form) -> None:
        super().__init__()
        self.linear = nn.Linear(features, math.prod(form.shape))
        self.form = form
        self.unit: torch.Tensor | None = None
        self.offset: torch.Tensor | None = None

    def forward(self, value: torch.Tensor | Encoded) -> torch.Tensor:
        if isinstance(value, Encoded):
            value = value.sequence if self.form.each_position else value.pooled
        found: torch.Tensor = self.linear(value)
        if self.unit is not None and self.offset is not None:
            found = found * self.unit + self.offset
        shape = self.form.shape
        return found if len(shape) == 1 else found.reshape(*found.shape[:-1], *shape)

    def measure_in(self, outputs: torch.Tensor) -> None:
        """Let the layer work in units of the teacher's outputs: what it says is multiplied and shifted afterwards.

        Args:
            outputs: Some of the teacher's, (n, …).
        """
        flat = outputs.float().reshape(-1, self.linear.out_features)
        spread = flat.std(0, correction=0)
        # An output that never changes has no unit; its offset says it all.
        self.unit = torch.where(spread > 0, spread, torch.ones_like(spread))
        self.offset = flat.mean(0)

    @torch.no_grad()
    def fold(self) -> None:
        """Move units and offset into the layer, which then does the same by itself."""
        if self.unit is not None and self.offset is not None:
            self.linear.weight.mul_(self.unit[:, None])
            self.linear.bias.mul_(self.unit).add_(self.offset)
            self.unit = self.offset = None


class Student(nn.Module):
    """Gives what the teacher gives, for what the teacher takes.

    Args:
        backbone: Takes the teacher's inputs in order; gives (n, features), or `Encoded`.
        heads: One for each output of the teacher.
        dtypes: Of those outputs.
        reads: How the backbone wants a single input: as it is, as floats, or as floats whose last axis, the channels,
            comes first.
    """

    def __init__(
        self,
        backbone: nn.Module,
        heads: Sequence[Head],
        dtypes: Sequence[torch.dtype],
        reads: Literal["as_given", "floats", "channels_last"] = "as_given",
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleList(heads)
        self._dtypes = tuple(dtypes)
        self._reads = reads

    def scores(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """All outputs before their softmax or sigmoid."""
        if self._reads != "as_given":
            inputs = (inputs[0].float(),)
        if self._reads == "channels_last":
            inputs = (inputs[0].movedim(-1, 1),)
        value = self.backbone(*inputs)
        return tuple(head(value) for head in self.heads)

    # Named one by one: the exporter does not take a variable number of inputs.
    def forward(
        self,
        first: torch.Tensor,
        second: torch.Tensor | None = None,
        third: torch.Tensor | None = None,
        fourth: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        inputs = [value for value in (first, second, third, fourth) if value is not None]
        outputs = tuple(
            head.form.finish(score).to(dtype)
            for head, score, dtype in zip(self.all_heads, self.scores(*inputs), self._dtypes, strict=True)
        )
        return outputs[0] if len(outputs) == 1 else outputs

    def fold(self) -> None:
        """Bring the heads into the form in which they are exported."""
        for head in self.all_heads:
            head.fold()

    @property
    def all_heads(self) -> list[Head]:
        return [head for head in self.heads if isinstance(head, Head)]
