"""What the same file computes on x86 CPUs without VNNI, whose kernels add two products in 16 bits.

VPMADDUBSW multiplies unsigned activations with signed weights and adds neighbouring products, at most
255 * (127 + 127), in 16 bits, where larger sums become 32,767 (Intel's manual; ONNX Runtime's documentation recommends
7-bit weights therefore). VNNI and Arm add in 32 bits. The sums of both kinds are computed here from the whole numbers
of a model, on any machine, at places drawn from its activations.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from compression.context import Context
from compression.data.feed import ModelFeed
from compression.quantization import prepare
from compression.quantization.integer.observe import with_outputs
from compression.quantization.integer.plan import Layer, Plan
from compression.quantization.weight_only.moments import window_of, window_padding

Array = npt.NDArray[Any]

_LOW, _HIGH = -(1 << 15), (1 << 15) - 1
_LARGEST = 255
_SAMPLES = 4
_PLACES = 64
# Products that are held at a time.
_PRODUCTS = 1 << 22


@dataclass(frozen=True)
class Saturation:
    """A layer whose sums can saturate.

    Attributes:
        node: Its name.
        pairs: Share of its neighbouring weights that can exceed 16 bits together.
        changed: Share of the sums looked at that came out different.
        sqnr_db: Energy of the exact sums over that of the differences, dB; None where none differed.
    """

    node: str
    pairs: float
    changed: float
    sqnr_db: float | None

    def details(self) -> dict[str, object]:
        return {"node": self.node, "pairs": self.pairs, "changed": self.changed, "sqnr_db": self.sqnr_db}


def exceeding_pairs(rows: Array) -> npt.NDArray[np.bool_]:
    """(channels, pairs) which neighbouring weights can exceed 16 bits for some activations.

    Args:
        rows: (channels, summed) int8, in the order in which kernels sum.
    """
    pairs = _paired(rows.astype(np.int32))
    upper, lower = np.maximum(pairs, 0).sum(2), np.minimum(pairs, 0).sum(2)
    result: npt.NDArray[np.bool_] = (_LARGEST * upper > _HIGH) | (_LARGEST * lower < _LOW)
    return result


def differences(activations: Array, rows: Array) -> npt.NDArray[np.int64]:
    """(places, channels) what saturation takes off the sums of products.

    Args:
        activations: (places, summed) uint8.
        rows: (channels, summed) int8.
    """
    found = np.zeros((len(rows), len(activations)), np.int64)
    channels, positions = np.nonzero(exceeding_pairs(rows))
    left, right = np.moveaxis(_paired(activations.astype(np.int32)), 2, 0)
    first, second = np.moveaxis(_paired(rows.astype(np.int32)), 2, 0)
    step = max(1, _PRODUCTS // max(1, len(activations)))
    for start in range(0, len(channels), step):
        where = channels[start : start + step], positions[start : start + step]
        sums = left[:, where[1]] * first[where] + right[:, where[1]] * second[where]
        excess = sums - np.clip(sums, _LOW, _HIGH)
        np.add.at(found, where[0], excess.T)
    return found.T


def _paired(rows: Array) -> Array:
    """(n, pairs, 2): neighbours side by side; an odd one out is beside zero."""
    return np.pad(rows, ((0, 0), (0, rows.shape[1] % 2))).reshape(len(rows), -1, 2)


def saturations(
    model: onnx.ModelProto, plan: Plan, feed: ModelFeed, context: Context, seed: int = 0
) -> list[Saturation]:
    """Every layer of a quantized model whose sums can saturate, and how far they do on samples.

    Args:
        model: What `write` made of the plan: 8-bit activations and signed weights.
        plan: What computes in integers.
        feed: Samples under the names of the model's inputs.
        context: Threads and cancellation.
        seed: Of the places that are looked at.

    Raises:
        StepFailed: `unsupported_by_runtime`.
        DataRejected: As reading the samples may.
    """
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = {node.name: node for node in model.graph.node}
    risky: dict[str, tuple[Layer, Array, float]] = {}
    for name, layer in plan.layers.items():
        zero = stored[f"{plan.owners[layer.activation]}_zero_point"]
        weight = stored[f"{layer.weight}_quantized"]
        if zero.data_type != onnx.TensorProto.UINT8 or weight.data_type != onnx.TensorProto.INT8:
            continue
        if layer.is_depthwise or layer.operator == "ConvTranspose":  # these add in 32 bits, or in float
            continue
        rows = layer.layout.rows(numpy_helper.to_array(weight))
        share = float(exceeding_pairs(rows).mean())
        if share:
            risky[name] = layer, rows, share
    if not risky:
        return []
    names = list(dict.fromkeys(f"{layer.activation}_QuantizeLinear_Output" for layer, _, _ in risky.values()))
    batch = next(feed.batches(_SAMPLES, _SAMPLES))
    with prepare.runtime_failures("looking for sums that saturate"):
        session = prepare.session(with_outputs(model, names).SerializeToString(), context)
        numbers = dict(zip(names, session.run(names, dict(batch.inputs)), strict=True))
    rng = np.random.default_rng(seed)
    found = []
    for name, (layer, rows, share) in risky.items():
        context.check_cancelled()
        zero_point = int(numpy_helper.to_array(stored[f"{plan.owners[layer.activation]}_zero_point"]))
        codes = numbers[f"{layer.activation}_QuantizeLinear_Output"]
        reads = _read(codes, zero_point, layer, nodes[name], rng)
        found.append(Saturation(name, share, *_compared(reads, zero_point, rows, layer.groups)))
    return found


def _compared(reads: Iterable[Array], zero_point: int, rows: Array, groups: int) -> tuple[float, float | None]:
    """Share of sums that change, and the exact ones' energy over that of the differences, dB."""
    changed = looked_at = 0
    signal = noise = 0.0
    for activations, own in zip(reads, np.split(rows, groups), strict=True):
        off = differences(activations, own)
        exact = (activations.astype(np.float64) - zero_point) @ own.T.astype(np.float64)
        changed += int(np.count_nonzero(off))
        looked_at += off.size
        signal += float(np.square(exact).sum())
        noise += float(np.square(off.astype(np.float64)).sum())
    ratio = 10 * math.log10(max(signal, 1e-30) / noise) if noise else None
    return changed / max(looked_at, 1), ratio


def _read(
    codes: Array, zero_point: int, layer: Layer, node: onnx.NodeProto, rng: np.random.Generator
) -> Iterator[Array]:
    """For each group (places, summed) what a layer reads at places of its output, in the order of `Layout.rows`."""
    if layer.operator != "Conv":
        every = codes.reshape(-1, codes.shape[-1])
        yield every[rng.choice(len(every), min(_PLACES, len(every)), replace=False)]
        return
    window = window_of(node, layer.shape[2:])
    # What is padded is zero, which is this number.
    around = [(0, 0), (0, 0), *window_padding(window, codes.shape[2:])]
    padded = np.pad(codes, around, constant_values=zero_point)
    starts = [
        np.arange(0, length - (size - 1) * dilation, stride)
        for length, size, stride, dilation in zip(
            padded.shape[2:], window.kernel, window.strides, window.dilations, strict=True
        )
    ]
    counts = [len(axis) for axis in starts]
    total = len(codes) * math.prod(counts)
    chosen = rng.choice(total, min(_PLACES, total), replace=False)
    sample, *places = np.unravel_index(chosen, (len(codes), *counts))
    inputs = layer.shape[1]
    offsets = list(itertools.product(*(range(size) for size in window.kernel)))
    read = []
    for position in offsets:
        where: tuple[Any, ...] = tuple(
            axis[place] + offset * dilation
            for axis, place, offset, dilation in zip(starts, places, position, window.dilations, strict=True)
        )
        read.append(padded[(sample, slice(None), *where)])
    taken = np.stack(read, axis=1)  # (places, positions of the kernel, channels)
    for group in range(layer.groups):
        part = taken[:, :, group * inputs : (group + 1) * inputs]
        yield part.reshape(len(part), -1)


def summary(found: Sequence[Saturation]) -> dict[str, object]:
    """Whether a file computes the same on x86 CPUs without VNNI as on others, and which layers do not."""
    return {
        "same_sums": not found,
        "lowest_sqnr_db": min((one.sqnr_db for one in found if one.sqnr_db is not None), default=None),
        "layers": [one.details() for one in found],
    }


def notes(found: Sequence[Saturation]) -> list[str]:
    """A sentence for the report where sums were seen to differ."""
    worst = min((one for one in found if one.sqnr_db is not None), key=lambda one: one.sqnr_db or 0.0, default=None)
    if worst is None:
        return []
    sentence = (
        f"On x86 CPUs without VNNI {len(found)} layers add in 16 bits, which their sums exceed; most so those of "
        f"'{worst.node}', with noise {worst.sqnr_db:.0f} dB below the sums. Accuracy was measured on this CPU alone; "
        "reduce_range: true makes files that compute the same on all."
    )
    return [sentence]
