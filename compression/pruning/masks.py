"""From a spec and saliencies to masks of what becomes zero."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from compression.graph.weights import Array, Weight
from compression.pruning import selection
from compression.pruning.selection import Mask
from compression.pruning.spec import Prune


def masks(
    saliencies: Iterable[tuple[Weight, Array]],
    spec: Prune,
    share: float = 1.0,
    on_weight: Callable[[Weight], None] = lambda _: None,
) -> tuple[dict[str, Mask], dict[str, str]]:
    """Masks of what becomes zero, and reasons for weights that have none, by name.

    Args:
        saliencies: For each weight its saliency, of its shape; the sign does not matter. Read once, in order.
        spec: How to choose.
        share: How much of the spec's amount or threshold to apply, above 0 to 1. A pattern applies as a whole.
        on_weight: Called before each weight is looked at.
    """
    found: dict[str, Mask] = {}
    skipped: dict[str, str] = {}
    ranked: list[tuple[Weight, Array]] = []
    weights: list[Weight] = []
    for weight, saliency in saliencies:
        on_weight(weight)
        weights.append(weight)
        reason = _misfit(weight, spec)
        if reason is not None:
            skipped[weight.name] = reason
            continue
        if spec.block is not None:
            # Blocks are ranked as wholes: all have the same size.
            saliency = selection.block_means(saliency, spec.block, *_axes(weight))  # noqa: PLW2901
        if spec.amount is not None and spec.scope == "global":
            ranked.append((weight, saliency))
        else:
            found[weight.name] = _mask(weight, saliency, spec, share)
    if ranked and spec.amount is not None:
        chosen = selection.smallest([saliency for _, saliency in ranked], spec.amount * share)
        found |= {weight.name: mask for (weight, _), mask in zip(ranked, chosen, strict=True)}
    if spec.block is not None:
        for weight in (weight for weight in weights if weight.name in found):
            found[weight.name] = selection.of_blocks(found[weight.name], spec.block, *_axes(weight))
    return found, skipped


def _axes(weight: Weight) -> tuple[int, int]:
    return weight.output_axis, weight.input_axis or 0


def _mask(weight: Weight, saliency: Array, spec: Prune, share: float) -> Mask:
    """The mask within one layer."""
    if spec.amount is not None and spec.scope == "output":
        return selection.smallest_of_each_output(saliency, spec.amount * share, weight.output_axis)
    if spec.amount is not None:
        return selection.smallest([saliency], spec.amount * share)[0]
    if spec.threshold is not None:
        return selection.below(saliency, spec.threshold * share)
    kept, group = spec.kept_of_group or (0, 0)
    return selection.n_of_m(saliency, kept, group, weight.input_axis or 0)


def _misfit(weight: Weight, spec: Prune) -> str | None:
    """Why the spec cannot act on a weight, in words."""
    outputs, inputs = weight.shape[weight.output_axis], weight.shape[weight.input_axis or 0]
    if spec.kept_of_group is not None and inputs % spec.kept_of_group[1]:
        return f"its input axis has {inputs} entries, which {spec.kept_of_group[1]} does not divide"
    if spec.block is not None and (outputs % spec.block[0] or inputs % spec.block[1]):
        return (
            f"it has {outputs} outputs and {inputs} inputs, which blocks of {spec.block[0]} by {spec.block[1]} "
            "do not divide"
        )
    return None
