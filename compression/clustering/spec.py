"""Spec of weight sharing."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from compression._spec_base import DataRole, StepSpec
from compression.training.spec import Training


class Cluster(StepSpec):
    """Let weights share a few values found by k-means (Deep Compression, Han et al. 2015, section 3)."""

    type: Literal["cluster"] = "cluster"
    clusters: int = Field(default=32, ge=2, le=65536)
    """Distinct values per scope, zero included where zeros are kept. 32 is 5 bits a weight."""
    scope: Literal["tensor", "channel"] = "tensor"
    """One set of values for the whole tensor, or one for each output channel."""
    init: Literal["linear", "density", "random"] = "linear"
    """Where the centroids start: evenly over the range, evenly over the distribution, or on random weights.
    Linear keeps the few large weights that matter most (section 3.2)."""
    keep_zeros: bool = True
    """Weights that are zero stay exactly zero, so a pruned model stays pruned."""
    max_iterations: int = Field(default=100, ge=1, le=10_000)
    """Upper bound on k-means iterations; it stops sooner once no weight changes its cluster."""
    training: Training | None = None
    """How to tune the shared values afterwards (section 3.3): weights keep their clusters, and every shared value
    follows the sum of its weights' gradients. None leaves them where k-means put them."""

    @property
    def data_needed(self) -> frozenset[DataRole]:
        return frozenset() if self.training is None else frozenset({"training"})
