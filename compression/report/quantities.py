"""Numbers as a person reads them."""

from __future__ import annotations

from collections.abc import Callable

from compression.result import Metric

_LABELS = {
    "file_bytes": "File size",
    "gzip_bytes": "File size, gzipped",
    "coded_bytes": "File size, coded",
    "parameters": "Parameters",
    "nonzero_parameters": "Non-zero parameters",
    "macs": "Multiply-accumulates",
    "latency_p50": "Latency, median",
    "latency_p90": "Latency, 90th percentile",
    "latency_p99": "Latency, 99th percentile",
    "latency_max": "Latency, longest",
    "deadline_misses": "Calls that missed the deadline",
    "throughput": "Throughput",
    "real_time_factor": "Real-time factor",
    "peak_memory_bytes": "Peak memory",
    "steady_memory_bytes": "Memory after the runs",
    "energy_per_call": "Energy of a call",
    "load_seconds": "Load time",
    "accuracy": "Accuracy, top-1",
    "accuracy_top5": "Accuracy, top-5",
    "mse": "Mean squared error",
    "mae": "Mean absolute error",
    "r2": "R\N{SUPERSCRIPT TWO}",
    "perplexity": "Perplexity",
    "token_accuracy": "Tokens that are right",
    "token_error_rate": "Token error rate",
    "target_cosine": "Cosine similarity to targets",
    "retrieval_at_1": "Retrieval, nearest is right",
    "neighbor_agreement": "Same nearest neighbours",
    "top1_agreement": "Same top class",
    "cosine_similarity": "Cosine similarity",
    "sqnr": "Signal to quantization noise",
}


def label(name: str) -> str:
    """What a metric is called in the report."""
    return _LABELS.get(name, name.replace("_", " ").capitalize())


def quantity(value: float, unit: str) -> str:
    """A number with its unit.

    >>> quantity(1_234_567, "bytes"), quantity(0.00042, "seconds"), quantity(0.9744, "fraction")
    ('1.23 MB', '420 µs', '97.44 %')
    """
    form = _FORMS.get(unit)
    return form(value) if form is not None else f"{value:.4g} {unit}"


def scaled(value: float, units: tuple[str, ...]) -> str:
    """Three digits and the decimal unit that fits them; the units are each 1000 times the one before.

    >>> scaled(999.9, ("B", "kB")), scaled(580_063, ("B", "kB")), scaled(3, ("B", "kB"))
    ('1.00 kB', '580 kB', '3 B')
    """
    position = 0
    while position < len(units) - 1 and abs(value) >= 999.5:
        value, position = value / 1000, position + 1
    return f"{three_digits(value) if position else format(value, '.4g')} {units[position]}"


def three_digits(value: float) -> str:
    """A number below 1000 with three digits that count.

    >>> three_digits(1.234), three_digits(12.34), three_digits(123.4)
    ('1.23', '12.3', '123')
    """
    size = abs(value)
    if size >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 9.995 else f"{value:.2f}"


def _seconds(value: float) -> str:
    for factor, unit in ((1e6, "\N{MICRO SIGN}s"), (1e3, "ms")):
        if abs(value) * factor < 999.5:
            return f"{three_digits(value * factor)} {unit}"
    return f"{three_digits(value)} s"


_FORMS: dict[str, Callable[[float], str]] = {
    "bytes": lambda value: scaled(value, ("B", "kB", "MB", "GB", "TB")),
    "count": lambda value: f"{value:,.0f}",
    "seconds": _seconds,
    "fraction": lambda value: f"{value * 100:.2f} %",
    "samples/second": lambda value: f"{value:,.0f}/s" if value >= 100 else f"{value:.3g}/s",
    "ratio": lambda value: f"{value:.4f}",
}


def change(metric: Metric) -> str:
    """The comparison in words; the measurement's own where it has any."""
    if metric.verdict:
        return metric.verdict
    if metric.ratio is not None:
        return "unchanged" if metric.ratio == 1 else f"{metric.ratio:.2f}x"
    if metric.interval is None:
        return ""
    low, high = (quantity(bound, metric.unit) for bound in metric.interval)
    return f"[{low}, {high}]"
