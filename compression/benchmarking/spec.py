"""How a result is measured. No heavy imports."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from compression._spec_base import Spec
from compression.providers import ProviderChoice

Task = Literal["auto", "classification", "regression", "tokens", "ctc", "embedding"]
"""What a model is for."""

_MOST_COMBINATIONS = 16


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
    provider: ProviderChoice = "auto"
    """ONNX Runtime's execution provider that both models run on while they are measured. `auto`: CUDA on the queue
    `gpu` where the runtime can use it, else the CPU. On a GPU, copies from and to the host are part of a call. One that
    is not there is an error that names those that are."""
    evaluation_samples: int = Field(default=10_000, ge=1, le=10_000_000)
    """At most so many samples of the evaluation dataset are used for accuracy and agreement."""
    task: Task = "auto"
    """What the first output is judged by. `classification`: accuracy against `labels`. `regression`: MSE, MAE and R2
    against floats in `targets`. `tokens`: perplexity and accuracy against whole numbers in `targets`, one for each
    position, negative ones left out. `ctc`: error rate of the transcript, token 0 the blank. `embedding`: cosine to
    `targets`, retrieval by `targets` or `labels`, common neighbours. `auto`: one of the first three, by what the
    evaluation data holds."""

    deadline_seconds: float | None = Field(default=None, gt=0, le=3600)
    """When a call must be done, in seconds, such as the period of a control loop: the report then says which share of
    calls missed it, and the longest call."""
    sample_seconds: float | None = Field(default=None, gt=0, le=86_400)
    """How long what a sample holds lasts, in seconds, such as a piece of audio: the report then gives the real-time
    factor, computing time over that."""
    memory_runs: int = Field(default=5, ge=1, le=10_000)
    """Runs in a process of its own after which the memory that it holds is read."""
    batch_sizes: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(default=(), max_length=8)
    """Batch sizes to time both models at, beside `batch_size`; with `thread_counts` every combination."""
    thread_counts: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = Field(default=(), max_length=8)
    """Numbers of intra-operator threads to time both models with, beside `threads`."""
    sweep_seconds: float = Field(default=1.0, gt=0, le=60)
    """Wall time for each of these combinations, in seconds."""
    profile_runs: int = Field(default=0, ge=0, le=1000)
    """Runs of each model under the runtime's profiler, for a table of time by operator and node; 0 for none."""
    energy_seconds: float = Field(default=0.0, ge=0, le=600)
    """Wall time to run both models in turns while the processor's energy counters are read, in seconds; 0 not to. A
    second and more is needed, since the counters move a thousand times a second."""

    @model_validator(mode="after")
    def _few_combinations(self) -> Self:
        for name in ("batch_sizes", "thread_counts"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                msg = f"{name} names a value twice"
                raise ValueError(msg)
        combinations = max(len(self.batch_sizes), 1) * max(len(self.thread_counts), 1)
        if combinations > _MOST_COMBINATIONS:
            msg = f"batch_sizes and thread_counts make {combinations} combinations, more than {_MOST_COMBINATIONS}"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _rounds_in_order(self) -> Self:
        if self.max_rounds < self.min_rounds:
            msg = f"max_rounds ({self.max_rounds}) is below min_rounds ({self.min_rounds})"
            raise ValueError(msg)
        return self
