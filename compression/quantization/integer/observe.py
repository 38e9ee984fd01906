"""Calibration samples run through a float model, and what is kept of its activations: nothing that grows with them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from compression.context import Context
from compression.data import Batch
from compression.data.feed import ModelFeed
from compression.errors import DataRejected
from compression.graph import shapes
from compression.quantization import prepare
from compression.quantization.integer.histogram import Extremes, Histogram

Array = npt.NDArray[Any]

_LARGEST_BATCH = 32
# The activations of one batch that are looked at, all tensors together.
_ACTIVATION_BYTES = 256 << 20


class Channels:
    """The mean and the largest magnitude of each channel over all samples and positions.

    Args:
        axis: Axis of the channels: 1, or -1 for the last.
    """

    def __init__(self, axis: int) -> None:
        self._axis = axis
        self._sums: Array = np.zeros(0)
        self._largest: Array = np.zeros(0)
        self._count = 0

    def add(self, values: Array) -> None:
        """Take in float values, (samples, channels, *positions) or (*positions, channels).

        Raises:
            ValueError: A value is NaN or infinite.
        """
        if not values.size:
            return
        if self._axis == -1:
            rows = values.reshape(-1, values.shape[-1])
            sums, largest = rows.sum(0, dtype=np.float64), np.abs(rows).max(0)
        else:
            # Sums along the last axis are pairwise, and as good as in double precision.
            planes = values.reshape(values.shape[0], values.shape[1], -1)
            sums = planes.sum(2).sum(0, dtype=np.float64)
            largest = np.maximum(planes.max((0, 2)), -planes.min((0, 2)))
        if not np.isfinite(largest).all():
            raise ValueError("values must be finite")
        self._sums = sums if not self._count else self._sums + sums
        self._largest = largest if not self._count else np.maximum(self._largest, largest)
        self._count += values.size // len(sums)

    @property
    def means(self) -> Array:
        """(channels,) float64; empty where nothing was seen."""
        return self._sums / max(self._count, 1)

    @property
    def largest(self) -> Array:
        """(channels,); empty where nothing was seen."""
        return self._largest


@dataclass(frozen=True)
class Statistics:
    """What was seen of activations.

    Attributes:
        values: Extremes, or a histogram, of each value.
        channels: What each channel is like, by value.
    """

    values: Mapping[str, Extremes]
    channels: Mapping[str, Channels]


def batch_size(model: onnx.ModelProto) -> int:
    """Samples to run at a time: 32, or fewer where their activations would take much memory."""
    stored = {tensor.name for tensor in model.graph.initializer}
    known = shapes.infer(model, one_sample=True)
    sample = sum((one.elements or 0) * one.itemsize for name, one in known.items() if name not in stored)
    return max(1, min(_LARGEST_BATCH, _ACTIVATION_BYTES // max(sample, 1)))


def observe(
    model: onnx.ModelProto,
    feed: ModelFeed,
    context: Context,
    *,
    values: Sequence[str],
    channels: Mapping[str, int],
    samples: int,
    histograms: bool,
) -> Statistics:
    """Run samples through a model and note what its activations are like.

    Args:
        model: The float model.
        feed: Samples as the model takes them.
        context: Progress, cancellation, threads.
        values: Names of float values whose extremes are wanted.
        channels: Names of float values whose channels' means are wanted, each with the axis of the channels.
        samples: At most so many samples, taken evenly over the dataset.
        histograms: Note histograms beside the extremes.

    Raises:
        DataRejected: `non_finite_values` when an activation becomes NaN or infinite.
        StepFailed: `unsupported_by_runtime`.
    """
    seen: dict[str, Extremes] = {name: Histogram() if histograms else Extremes() for name in values}
    means = {name: Channels(axis) for name, axis in channels.items()}
    order = _in_order(model, {*values, *channels})
    size = batch_size(model)
    expected = math.ceil(min(samples, feed.summary.samples) / size)
    # Samples are read, and so checked, even where nothing is to be noted.
    parts = memory_groups(model, order) or [[]]
    for number, group in enumerate(parts):
        for done, arrays in enumerate(_run(model, group, feed.batches(size, samples), context)):
            share = (number + min(done / expected, 1.0)) / len(parts)
            context.progress("quantizing", 0.9 * share, "calibrating")
            for name, array in zip(group, arrays, strict=True):
                _take_in(name, array, [part[name] for part in (seen, means) if name in part])
    return Statistics(seen, means)


def _take_in(name: str, array: Array, places: Sequence[Extremes | Channels]) -> None:
    try:
        for place in places:
            place.add(array)
    except ValueError:
        raise DataRejected(
            "non_finite_values",
            f"With the calibration samples the model computes NaN or infinity at '{name}', "
            "which no quantized range can hold.",
        ) from None


def _run(
    model: onnx.ModelProto, names: Sequence[str], batches: Iterator[Batch], context: Context
) -> Iterator[list[Array]]:
    """The named values for one batch after the other; those that are fed come as they are."""
    computed = [name for name in names if all(value.name != name for value in model.graph.input)]
    session = None
    if computed:
        with prepare.runtime_failures("calibrating"):
            session = prepare.session(with_outputs(model, computed).SerializeToString(), context)
    for batch in batches:
        context.check_cancelled()
        arrays = dict(batch.inputs)
        if session is not None:
            with prepare.runtime_failures("calibrating"):
                arrays |= zip(computed, session.run(computed, batch.inputs), strict=True)
        yield [arrays[name] for name in names]


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy that gives out the named values, which it computes, and nothing else."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    known = {value.name: value for value in (*model.graph.value_info, *model.graph.output, *model.graph.input)}
    del result.graph.output[:]
    for name in names:
        value = known.get(name)
        result.graph.output.append(value if value is not None else onnx.ValueInfoProto(name=name))
    return result


def _in_order(model: onnx.ModelProto, wanted: Collection[str]) -> list[str]:
    """Names in the order in which the graph computes them."""
    order = [value.name for value in model.graph.input]
    order += [name for node in model.graph.node for name in node.output]
    return [name for name in order if name in wanted]


def memory_groups(model: onnx.ModelProto, names: Sequence[str]) -> list[list[str]]:
    """Names in groups whose values for one sample together take no more memory than allowed; one as a rule."""
    known = shapes.infer(model, one_sample=True)
    sizes = {name: (known[name].elements or 0) * known[name].itemsize if name in known else 0 for name in names}
    return packed(sizes, _ACTIVATION_BYTES)


def packed(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Names in their order, in groups whose sizes sum up to no more than a limit, or that are alone."""
    groups: list[list[str]] = []
    held = 0
    for name, size in sizes.items():
        if not groups or held + size > limit:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += size
    return groups
