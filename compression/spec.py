"""What a caller can ask for. `Step` is the one list of techniques; everything else is derived from it.

Importing this module never imports torch, onnx, onnxruntime or numpy.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from compression._spec_base import Spec, StepSpec
from compression.clustering.spec import Cluster
from compression.pruning.spec import Prune
from compression.quantization.spec import (
    Quantize,
    QuantizeDynamic,
    QuantizeFloat16,
    QuantizeStatic,
    QuantizeWeightOnly,
)

__all__ = [
    "BenchmarkSpec",
    "Cluster",
    "PipelineSpec",
    "Prune",
    "Quantize",
    "QuantizeDynamic",
    "QuantizeFloat16",
    "QuantizeStatic",
    "QuantizeWeightOnly",
    "Step",
    "StepSpec",
]

Step = Annotated[Prune | Cluster | Quantize, Field(discriminator="type")]
"""One technique. Adding one: a spec class, a function, a member here, a `case` in `pipeline`, a test."""

# A step may follow another only when its rank is not lower: a later step keeps what earlier ones made.
# Pruning after clustering would pull values out of their clusters, and nothing can follow quantization
# because the float weights are gone.
_RANK: dict[str, int] = {"prune": 0, "cluster": 1, "quantize": 2}
_AT_MOST_ONCE = frozenset({"cluster", "quantize"})


class BenchmarkSpec(Spec):
    """How the result is measured against the original."""

    max_seconds: float = Field(default=2.0, gt=0, le=600)
    """Wall time to spend on timing, in seconds, original and result together."""
    min_rounds: int = Field(default=30, ge=5, le=100_000)
    """Timed pairs (original, result) that are measured even when the time is up."""
    max_rounds: int = Field(default=1000, ge=5, le=1_000_000)
    """Timed pairs after which measuring stops."""
    batch_size: int = Field(default=1, ge=1, le=4096)
    """Samples in a timed call, where the model's batch axis is dynamic."""
    threads: int = Field(default=0, ge=0, le=1024)
    """Intra-operator threads of the runtime; 0 lets it choose."""
    evaluation_samples: int = Field(default=10_000, ge=1, le=10_000_000)
    """At most so many samples of the evaluation dataset are used for accuracy and agreement."""

    @model_validator(mode="after")
    def _rounds_in_order(self) -> Self:
        if self.max_rounds < self.min_rounds:
            msg = f"max_rounds ({self.max_rounds}) is below min_rounds ({self.min_rounds})"
            raise ValueError(msg)
        return self


class PipelineSpec(Spec):
    """Steps to apply to one model, in this order, and how to measure what comes out."""

    steps: tuple[Step, ...] = Field(min_length=1, max_length=32)
    """Techniques in the order in which they are applied."""
    benchmark: BenchmarkSpec = BenchmarkSpec()
    """How the result is measured."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of everything random: same input, spec, seed and versions give the same bytes."""

    @model_validator(mode="after")
    def _legal_order(self) -> Self:
        for position, (earlier, later) in enumerate(zip(self.steps, self.steps[1:], strict=False)):
            where = f"steps[{position + 1}]"
            if earlier.type == later.type and later.type in _AT_MOST_ONCE:
                msg = f"{where}: '{later.type}' can be applied once"
                raise ValueError(msg)
            if _RANK[later.type] < _RANK[earlier.type]:
                msg = f"{where}: '{later.type}' cannot follow '{earlier.type}', which it would undo; put it before"
                raise ValueError(msg)
        return self

    @property
    def needs_calibration(self) -> bool:
        """True when a step reads activation ranges from data."""
        return any(isinstance(step, QuantizeStatic) for step in self.steps)
