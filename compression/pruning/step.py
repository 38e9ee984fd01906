"""Pruning of an ONNX graph as it is, without training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

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
    for weight, values in read(model, chosen):
        context.check_cancelled()
        if weight.name in found:
            replace(pruned, {weight.name: np.where(found[weight.name], np.zeros((), values.dtype), values)})
    return pruned, sparsity_report(model, pruned, chosen, skipped)


def sparsity_report(
    before: onnx.ModelProto, after: onnx.ModelProto, weights: Sequence[Weight], skipped: Mapping[str, str]
) -> dict[str, object]:
    """Shares of zeros before and after, for each weight and for all together."""
    entries: list[dict[str, object]] = []
    total = zeros = 0
    for weight, was, now in zip(weights, _zeros(before, weights), _zeros(after, weights), strict=True):
        entry: dict[str, object] = {"name": weight.name, "shape": list(weight.shape)}
        if weight.name in skipped:
            entry["skipped"] = skipped[weight.name]
        entries.append(entry | {"sparsity_before": was / weight.size, "sparsity": now / weight.size})
        total, zeros = total + weight.size, zeros + now
    return {"sparsity": zeros / total, "weights": entries}


def _zeros(model: onnx.ModelProto, weights: Sequence[Weight]) -> Iterator[int]:
    for weight, values in read(model, weights):
        yield weight.size - int(np.count_nonzero(values))
