"""What the command line shows: a progress bar and the before/after table."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TextIO

from levity.resources import Event, Job, Metric

_BAR_WIDTH = 28
_LABELS = {
    "file_bytes": "file size",
    "gzip_bytes": "file size, gzipped",
    "coded_bytes": "file size, coded",
    "nonzero_parameters": "non-zero parameters",
    "macs": "multiply-accumulates",
    "latency_p50": "latency, median",
    "latency_p90": "latency, 90 %",
    "latency_p99": "latency, 99 %",
    "peak_memory_bytes": "peak memory",
    "steady_memory_bytes": "memory after the runs",
    "load_seconds": "load time",
    "top1_agreement": "same top class",
    "sqnr": "signal to noise",
}


class ProgressBar:
    """Shows a job's events: a bar that is redrawn on a terminal, a line for each new phase elsewhere."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._redraws = self._stream.isatty()
        self._phase = ""

    def __call__(self, event: Event) -> None:
        fraction = float(event.data.get("progress") or 0)
        phase = str(event.data.get("phase") or event.type)
        message = str(event.data.get("message") or "")
        if event.type == "queued" and event.data.get("after"):
            message = f"attempt {event.attempt} was {event.data['after']}"
        elif event.type == "succeeded":
            fraction = 1.0
        elif event.type == "step":
            return
        if self._redraws:
            filled = round(fraction * _BAR_WIDTH)
            text = f"[{'#' * filled}{'.' * (_BAR_WIDTH - filled)}] {fraction:4.0%}  {phase:<13} {message}"
            self._stream.write(f"\r\x1b[2K{text[:100]}")
        elif phase != self._phase:
            self._stream.write(f"  {fraction:4.0%}  {phase}{': ' if message else ''}{message}\n")
        self._phase = phase
        self._stream.flush()

    def close(self) -> None:
        """Leave the bar's line."""
        if self._redraws:
            self._stream.write("\n")
            self._stream.flush()


def summary(job: Job) -> str:
    """The before/after table of a job that succeeded, and its notes."""
    rows = [("", "original", "compressed", "change")]
    rows += [
        (_LABELS.get(metric.name, metric.name.replace("_", " ")), *_values(metric), _change(metric))
        for metric in job.metrics
    ]
    return "\n".join([*table(rows), *(f"- {note}" for note in job.notes)])


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with aligned columns; the first row is the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def _values(metric: Metric) -> tuple[str, str]:
    original = "" if metric.original is None else _quantity(metric.original, metric.unit)
    return original, _quantity(metric.result, metric.unit)


def _change(metric: Metric) -> str:
    if metric.verdict:
        return metric.verdict
    text = "" if metric.ratio is None else f"{metric.ratio:.2f}x"
    if metric.interval is not None:
        text += f" [{metric.interval[0]:.4g}, {metric.interval[1]:.4g}]"
    return text.strip()


def _quantity(value: float, unit: str) -> str:
    """A number with its unit, in the size that a person reads it in.

    >>> _quantity(1_234_567, "bytes"), _quantity(0.00042, "seconds"), _quantity(0.9744, "fraction")
    ('1.23 MB', '0.42 ms', '97.44 %')
    """
    formats: dict[str, Callable[[float], str]] = {
        "bytes": _bytes,
        "count": lambda number: f"{number:,.0f}",
        "seconds": _seconds,
        "fraction": lambda number: f"{number:.2%}".replace("%", " %"),
        "samples/second": lambda number: f"{number:,.0f}/s",
        "ratio": lambda number: f"{number:.4g}",
    }
    return formats[unit](value) if unit in formats else f"{value:.4g} {unit}"


def _bytes(value: float) -> str:
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.4g} {unit}" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.3g} GB"


def _seconds(value: float) -> str:
    if value < 1e-3:
        return f"{value * 1e6:.3g} \N{MICRO SIGN}s"
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"
