"""Pruning of an ONNX graph as it is, without training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx

from compression.context import Context
from compression.data.feed import ModelFeed
from compression.graph.weights import Array, Weight, find_weights, read, replace, select
from compression.pruning.activations import input_norms, with_norms
from compression.pruning.masks import masks
from compression.pruning.spec import Prune


def prune(
    model: onnx.ModelProto, spec: Prune, context: Context, calibration: ModelFeed | None = None
) -> tuple[onnx.ModelProto, dict[str, object]]:
    """Zero the least important weights of layers that multiply; biases, norms and embeddings keep theirs.

    Args:
        model: Not changed.
        spec: Which weights go; its `training` is not looked at.
        context: Progress and cancellation.
        calibration: Samples for criterion `wanda`.

    Returns:
        The pruned model, and per weight its sparsity before and after, or why it was skipped.

    Raises:
        StepFailed: `unknown_name`, `no_weights` or `non_finite_weights`.
    """
    candidates = [weight for weight in find_weights(model) if not weight.is_embedding]
    chosen = select(candidates, spec.include, spec.exclude)
    norms: Mapping[str, Array] = {}
    if spec.criterion == "wanda" and calibration is not None:
        norms = input_norms(model, chosen, calibration, context)
    done = 0

    def on_weight(weight: Weight) -> None:
        nonlocal done
        context.check_cancelled()
        context.progress("pruning", done / len(chosen), weight.name)
        done += 1

    found, skipped = masks(with_norms(read(model, chosen), norms), spec, on_weight=on_weight)
    pruned = onnx.ModelProto()
    pruned.CopyFrom(model)
    before: list[int] = []
    after: list[int] = []
    for weight, values in read(model, chosen):
        context.check_cancelled()
        before.append(_zeros_in(values))
        if weight.name in found:
            kept = np.where(found[weight.name], np.zeros((), values.dtype), values)
            replace(pruned, {weight.name: kept})
            after.append(_zeros_in(kept))
        else:
            after.append(before[-1])
    return pruned, sparsity_report(chosen, before, after, skipped)


def sparsity_report(
    weights: Sequence[Weight], before: Iterable[int], after: Iterable[int], skipped: Mapping[str, str]
) -> dict[str, object]:
    """Shares of zeros, for each weight and for all together.

    Args:
        weights: What was to be pruned.
        before: Zeros in each of them before.
        after: Zeros in each of them now.
        skipped: Why some were left as they are, by name.
    """
    entries: list[dict[str, object]] = []
    total = zeros = 0
    for weight, was, now in zip(weights, before, after, strict=True):
        entry: dict[str, object] = {"name": weight.name, "shape": list(weight.shape)}
        if weight.name in skipped:
            entry["skipped"] = skipped[weight.name]
        entries.append(entry | {"sparsity_before": was / weight.size, "sparsity": now / weight.size})
        total, zeros = total + weight.size, zeros + now
    return {"sparsity": zeros / total, "weights": entries}


def zeros(model: onnx.ModelProto, weights: Sequence[Weight]) -> Iterator[int]:
    """Zeros in each of some weights.

    Raises:
        StepFailed: `non_finite_weights`.
    """
    return (_zeros_in(values) for _, values in read(model, weights))


def _zeros_in(values: Array) -> int:
    return values.size - int(np.count_nonzero(values))
