"""What a run gives back: metrics with unit, direction and interval, files with their hashes."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from compression.signature import DatasetSummary, ModelSummary


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Metric(_Record):
    """One measured quantity, of the original and of the result."""

    name: str
    """Stable identifier: `file_bytes`, `gzip_bytes`, `parameters`, `nonzero_parameters`, `macs`, `latency_p50`,
    `latency_p90`, `latency_p99`, `throughput`, `peak_memory_bytes`, `load_seconds`, `accuracy`, `top1_agreement`,
    `cosine_similarity`, `sqnr`."""
    unit: str
    """`bytes`, `count`, `seconds`, `samples/second`, `fraction`, `dB`, `ratio`."""
    direction: Literal["lower_is_better", "higher_is_better"]
    original: float | None
    """Value of the original; None for metrics that compare the two."""
    result: float
    ratio: float | None = None
    """original/result where lower is better, result/original where higher is better: above 1 is an improvement."""
    interval: tuple[float, float] | None = None
    """95 % interval: of `ratio` for timings, of `result - original` for accuracy, of `result` for agreement."""
    samples: int | None = None
    """Timed pairs or evaluated samples behind the number."""
    verdict: str = ""
    """The comparison in words, such as `faster, 1.82x [1.74, 1.90]` or `no difference shown`."""


class StepResult(_Record):
    """What one step did."""

    index: int
    type: str
    seconds: float
    cached: bool
    """True when an earlier run had finished the same step on the same input."""
    details: dict[str, object]
    """Step-specific facts for the report: per-weight sparsity, centroids, skipped layers and why, …"""


class ArtifactFile(_Record):
    """A file in the run's `out` folder."""

    name: str
    sha256: str
    size: int
    media_type: str


class PipelineResult(_Record):
    """The outcome of a run. Its JSON is `report.json`."""

    model: ModelSummary
    """The original."""
    compressed: ModelSummary
    data: dict[str, DatasetSummary]
    """Datasets by role: `calibration`, `evaluation`."""
    steps: tuple[StepResult, ...]
    metrics: tuple[Metric, ...]
    notes: tuple[str, ...]
    """What a reader must know in words: slower than the original, accuracy not measured, untuned, layers skipped."""
    artifacts: tuple[ArtifactFile, ...]
    seconds: float
    """Wall time of the whole run."""
