"""Magnitude pruning of an ONNX graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from compression.context import Context
from compression.graph.weights import Array, Weight, find_weights, read, replace, select
from compression.pruning import magnitude
from compression.pruning.spec import Prune


def prune(model: onnx.ModelProto, spec: Prune, context: Context) -> tuple[onnx.ModelProto, dict[str, object]]:
    """Zero the least important weights of layers that multiply; biases, norms and embeddings keep theirs.

    Returns:
        The pruned model (the argument is not changed), and per weight its sparsity before and after, or why it was
        skipped.

    Raises:
        StepFailed: `unknown_name`, `no_weights` or `non_finite_weights`.
    """
    candidates = [weight for weight in find_weights(model) if not weight.is_embedding]
    chosen = select(candidates, spec.include, spec.exclude)
    masks, skipped = _masks(model, chosen, spec, context)
    pruned = onnx.ModelProto()
    pruned.CopyFrom(model)
    report: list[dict[str, object]] = []
    total = zeros = 0
    for weight, values in read(model, chosen):
        context.check_cancelled()
        before = values.size - int(np.count_nonzero(values))
        after = before
        entry: dict[str, object] = {"name": weight.name, "shape": list(weight.shape)}
        if weight.name in skipped:
            entry["skipped"] = skipped[weight.name]
        else:
            changed = np.where(masks[weight.name], np.zeros((), values.dtype), values)
            replace(pruned, {weight.name: changed})
            after = values.size - int(np.count_nonzero(changed))
        entry |= {"sparsity_before": before / values.size, "sparsity": after / values.size}
        report.append(entry)
        total, zeros = total + values.size, zeros + after
    return pruned, {"sparsity": zeros / total, "weights": report}


def _masks(
    model: onnx.ModelProto, chosen: Sequence[Weight], spec: Prune, context: Context
) -> tuple[dict[str, magnitude.Mask], dict[str, str]]:
    """Masks of what becomes zero, and reasons for weights that have none, by name."""
    if spec.amount is not None and spec.scope == "global":
        arrays = [values for _, values in read(model, chosen)]
        found = magnitude.smallest(arrays, spec.amount)
        return {weight.name: mask for weight, mask in zip(chosen, found, strict=True)}, {}
    masks: dict[str, magnitude.Mask] = {}
    skipped: dict[str, str] = {}
    for done, (weight, values) in enumerate(read(model, chosen)):
        context.check_cancelled()
        context.progress("pruning", done / len(chosen), weight.name)
        mask = _mask(weight, values, spec)
        if isinstance(mask, str):
            skipped[weight.name] = mask
        else:
            masks[weight.name] = mask
    return masks, skipped


def _mask(weight: Weight, values: Array, spec: Prune) -> magnitude.Mask | str:
    """The mask within one layer, or in words why the layer cannot have one."""
    if spec.amount is not None:
        return magnitude.smallest([values], spec.amount)[0]
    if spec.threshold is not None:
        return magnitude.below(values, spec.threshold)
    kept, group = spec.kept_of_group or (0, 0)
    axis = weight.input_axis or 0
    if weight.shape[axis] % group:
        return f"its input axis has {weight.shape[axis]} entries, which {group} does not divide"
    return magnitude.n_of_m(values, kept, group, axis)
