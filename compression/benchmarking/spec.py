"""How a result is measured. No heavy imports."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from compression._spec_base import Spec

Task = Literal["auto", "classification", "regression", "tokens", "ctc", "embedding"]
"""What a model is for."""


class BenchmarkSpec(Spec):
    """How the result is measured against the original."""

    max_seconds: float = Field(default=2.0, gt=0, le=600)
    """Wall time to spend on timing, in seconds, original and result together."""
    min_rounds: int = Field(default=30, ge=5, le=100_000)
    """Pairs (original, result) that are timed even when the time is up; those of warming up are among them."""
    max_rounds: int = Field(default=1000, ge=5, le=1_000_000)
    """Timed pairs after which measuring stops."""
    loads: int = Field(default=5, ge=1, le=100)
    """Times that both models are loaded anew while timing: where its weights happen to lie makes a model up to some
    2 % faster or slower for as long as it stays loaded. Fewer where loading would take more than a quarter of
    `max_seconds`, or timing 20 pairs more than its share."""
    pin_threads: bool = True
    """Keep the threads of timed calls on cores of their own, where the system allows it."""
    batch_size: int = Field(default=1, ge=1, le=4096)
    """Samples in a timed call, where the model's batch axis is dynamic."""
    threads: int = Field(default=0, ge=0, le=1024)
    """Intra-operator threads of the runtime; 0 for one on each physical core."""
    evaluation_samples: int = Field(default=10_000, ge=1, le=10_000_000)
    """At most so many samples of the evaluation dataset are used for accuracy and agreement."""
    task: Task = "auto"
    """What the first output is judged by. `classification`: accuracy against `labels`. `regression`: MSE, MAE and R2
    against floats in `targets`. `tokens`: perplexity and accuracy against whole numbers in `targets`, one for each
    position, negative ones left out. `ctc`: error rate of the transcript, token 0 the blank. `embedding`: cosine to
    `targets`, retrieval by `targets` or `labels`, common neighbours. `auto`: one of the first three, by what the
    evaluation data holds."""

    @model_validator(mode="after")
    def _rounds_in_order(self) -> Self:
        if self.max_rounds < self.min_rounds:
            msg = f"max_rounds ({self.max_rounds}) is below min_rounds ({self.min_rounds})"
            raise ValueError(msg)
        return self
