"""What a run gives back: metrics with unit, direction and interval, files with their hashes."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, model_validator

from compression.signature import DatasetSummary, ModelSummary


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Metric(_Record):
    """One measured quantity, of the original and of the result."""

    name: str
    """Stable identifier. Size: `file_bytes`, `gzip_bytes`, `coded_bytes`, `parameters`, `nonzero_parameters`, `macs`.
    Time, memory, energy: `latency_p50`, `latency_p90`, `latency_p99`, `latency_max`, `deadline_misses`, `throughput`,
    `real_time_factor`, `peak_memory_bytes`, `steady_memory_bytes`, `load_seconds`, `energy_per_call`. Against labels or
    targets: `accuracy`, `accuracy_top5`, `mse`, `mae`, `r2`, `perplexity`, `token_accuracy`, `token_error_rate`,
    `target_cosine`, `retrieval_at_1`. Result against original: `top1_agreement`, `neighbor_agreement`,
    `cosine_similarity`, `sqnr`."""
    unit: str
    """`bytes`, `count`, `seconds`, `samples/second`, `joules`, `fraction`, `dB`, `ratio`, `tokens`; of errors the unit
    of the output: `output units`, `squared output units`."""
    direction: Literal["lower_is_better", "higher_is_better"]
    original: float | None
    """Value of the original; None for metrics that compare the two."""
    result: float
    ratio: float | None = None
    """original/result where lower is better, result/original where higher is better: above 1 is an improvement. Of
    `latency_p50` the median over pairs of calls next to each other, which is surer than the ratio of the two values."""
    interval: tuple[float, float] | None = None
    """The 95 % interval of what `interval_of` names."""
    interval_of: Literal["ratio", "difference", "result"] | None = None
    """`ratio` for timings, `difference` (result - original) for what is measured against labels or targets, `result`
    for agreement; null without an interval."""
    p_value: float | None = None
    """Two-sided, of McNemar's exact test, for shares of samples that are right or wrong; null for all else."""
    samples: int | None = None
    """Timed pairs or evaluated samples behind the number."""
    verdict: str = ""
    """The comparison in words, such as `faster, 1.82x [1.74, 1.90]` or `no difference shown`."""

    @model_validator(mode="after")
    def _interval_of_something(self) -> Self:
        if (self.interval is None) != (self.interval_of is None):
            msg = "interval and interval_of go together"
            raise ValueError(msg)
        return self


class Conditions(_Record):
    """How the calls were timed that latency and throughput are of."""

    provider: str
    """ONNX Runtime's execution provider: `cpu`, `cuda` or `tensorrt`."""
    threads: int
    """Intra-operator threads of the runtime; 0 where it chose."""
    pinned: bool
    """Whether threads were kept on cores of their own."""
    batch_size: int
    """Samples in a call."""
    loads: int
    """Times that both models were loaded anew."""
    pairs: int
    """Timed pairs (original, result) that count."""
    warm_up_pairs: int
    """Timed pairs that do not, because calls had not settled yet."""
    block_length: int
    """Neighbouring pairs that resemble each other, as the bootstrap takes them."""
    between_loads: float | None
    """Standard deviation of the speed-up between loads beyond chance, as a fraction; null with a single load."""


class SweepPoint(_Record):
    """Latency and throughput at one batch size and one number of threads, the two models timed in turns."""

    batch_size: int
    """Samples in a call."""
    threads: int
    """Intra-operator threads; 0 where the runtime chose."""
    pairs: int
    """Timed pairs (original, result)."""
    original_seconds: float
    """Median of a call."""
    result_seconds: float
    original_throughput: float
    """Samples per second."""
    result_throughput: float
    ratio: float
    """How many times faster the result is: the median over neighbouring calls."""
    interval: tuple[float, float]
    """95 % interval of `ratio`."""
    verdict: str


class OperatorTime(_Record):
    """What all nodes of one operator take."""

    operator: str
    nodes: int
    seconds: float
    """Of one run, the median over runs."""
    share: float
    """Of all operators' time, as a fraction."""


class NodeTime(_Record):
    """What one node takes, as the runtime has fused and named it."""

    node: str
    operator: str
    seconds: float
    share: float


class Profile(_Record):
    """Where the time of one model goes, as the runtime's own profiler writes it down, node by node."""

    runs: int
    seconds: float
    """All nodes of one run, the median over runs; profiling itself makes a run slower."""
    operators: tuple[OperatorTime, ...]
    """The slowest first."""
    nodes: tuple[NodeTime, ...]
    """The slowest 20."""


class Measured(_Record):
    """What else is known of the measurement."""

    conditions: Conditions | None = None
    """Of timing; null where only sizes could be measured."""
    sweep: tuple[SweepPoint, ...] = ()
    """A row for each combination of `batch_sizes` and `thread_counts`, where the job names any."""
    original_profile: Profile | None = None
    """Of the original, where the job asks for `profile_runs`."""
    result_profile: Profile | None = None
    """Of the result, likewise."""


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
    measured: Measured = Measured()
    notes: tuple[str, ...]
    """What a reader must know in words: slower than the original, accuracy not measured, untuned, layers skipped."""
    artifacts: tuple[ArtifactFile, ...]
    seconds: float
    """Wall time of the whole run."""
