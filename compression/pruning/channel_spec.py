"""Spec of channel pruning."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from compression._spec_base import DataRole, StepSpec

_TARGETS = ("amount", "target_macs", "target_parameters", "target_latency")


class PruneChannels(StepSpec):
    """Remove the least important neurons, filters and attention heads, with all connections in and out of them.

    Shapes really shrink: layers that share channels (residuals, concatenations, depthwise convolutions) lose the same
    ones (Fang et al. 2023, "DepGraph", section 3). Give exactly one of `amount`, `target_macs`, `target_parameters` and
    `target_latency`. A channel can be removed when one of the layers that make it is included and none is excluded.
    """

    type: Literal["prune_channels"] = "prune_channels"
    amount: float | None = Field(default=None, gt=0, lt=1, examples=[0.3])
    """Share of the channels to remove, above 0 and below 1: of each group of layers that share channels, or of all."""
    target_macs: float | None = Field(default=None, gt=0, lt=1, examples=[0.5])
    """Multiply-accumulates of the result as a share of those before the step; the smallest sufficient amount is
    taken."""
    target_parameters: float | None = Field(default=None, gt=0, lt=1, examples=[0.5])
    """Parameters of the result as a share of those before the step; the smallest sufficient amount is taken."""
    target_latency: float | None = Field(default=None, gt=0, lt=1, examples=[0.5])
    """Median time of a call of the result as a share of that before the step, both measured on the machine that runs
    the step, in turns, on one made-up sample, or a batch where the model fixes that. Of at most eight candidates the
    smallest sufficient amount is taken. Of all targets this one depends on the machine and its load, and two runs may
    differ; the amount found is reported, and given as `amount` it repeats the result."""
    latency_seconds: float = Field(default=60.0, gt=0, le=3600)
    """Seconds after which `target_latency` takes the best candidate so far."""
    scope: Literal["layer", "global"] = "layer"
    """Rank channels within each group of layers that share them, or all together."""
    importance: Literal["l1", "l2", "bn_scale", "lamp", "fpgm", "taylor", "random"] = "l2"
    """What makes a channel matter: the norm of its weights (l1, l2: Li et al. 2017), the scale of its norm layer
    (bn_scale: Liu et al. 2017, "Network Slimming"; layers without one go by l1), its share of what is left in its
    layer (lamp: Lee et al. 2021), its distance to the other channels (fpgm: He et al. 2019), or chance. Scores of
    a tensor are divided by their mean, and those of all tensors in which a channel lies are averaged. `taylor` needs
    a training dataset with labels or targets: the square of what the loss changes by, to first order, when all that
    reads the channel does without it, averaged over batches (Molchanov et al. 2019, "Importance Estimation for Neural
    Network Pruning", section 3.1)."""
    importance_samples: int = Field(default=512, ge=1, le=100_000_000)
    """Training samples that importance `taylor` looks at, taken evenly over the dataset."""
    round_to: int = Field(default=1, ge=1, le=256, examples=[8])
    """Layers keep a multiple of so many channels, rounded up; runtimes are fastest at multiples of 8 or 16."""
    max_amount: float = Field(default=0.9, gt=0, lt=1)
    """At most this share of a group's channels is removed, whatever its rank; one, or `round_to`, always stay."""

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        given = [name for name in _TARGETS if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            msg = f"give exactly one of {', '.join(_TARGETS[:-1])} and {_TARGETS[-1]}, not {found}"
            raise ValueError(msg)
        if self.amount is not None and self.amount > self.max_amount:
            msg = f"amount ({self.amount}) is above max_amount ({self.max_amount})"
            raise ValueError(msg)
        return self

    @property
    def depends_on_machine(self) -> bool:
        return self.target_latency is not None

    @property
    def data_needed(self) -> frozenset[DataRole]:
        return frozenset({"training"}) if self.importance == "taylor" else frozenset()
