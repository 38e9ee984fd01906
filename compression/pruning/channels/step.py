"""Channel pruning of an ONNX graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import onnx

from compression.context import Context
from compression.errors import StepFailed
from compression.graph import walk
from compression.graph.load import FLOAT_TYPES
from compression.graph.macs import macs_of
from compression.graph.parameters import QUANTIZED_OPERATORS, count_parameters
from compression.graph.shapes import KnownShape
from compression.graph.weights import Array, find_weights, select
from compression.pruning.channel_spec import PruneChannels
from compression.pruning.channels import (
    latency_target,
    rules_elementwise,
    rules_layers,
    rules_norms,
    rules_shape,
)
from compression.pruning.channels.engine import Engine, analyse
from compression.pruning.channels.groups import Plan, plan
from compression.pruning.channels.identities import Labels
from compression.pruning.channels.importance import Scorer
from compression.pruning.channels.rewrite import Rewriter, Stuck
from compression.pruning.channels.selection import Ranking
from compression.pruning.channels.sharing import joined, told_apart
from compression.pruning.channels.strides import without_strides

RULES = rules_elementwise.RULES | rules_layers.RULES | rules_norms.RULES | rules_shape.RULES


def prune_channels(
    model: onnx.ModelProto,
    spec: PruneChannels,
    context: Context,
    seed: int,
    gates: Mapping[tuple[str, int], Array] | None = None,
) -> tuple[onnx.ModelProto, dict[str, object]]:
    """Remove channels together with everything that depends on them.

    Args:
        model: A canonical float model.
        spec: What to remove.
        context: Progress, cancellation; for a target of latency its folder and threads.
        seed: Of chance.
        gates: For importance `taylor`, what `compression.pruning.channels.sensitivity` has measured.

    Returns:
        The smaller model (the argument is not changed); parameters and MACs before and after, for each group of
        layers that share channels how many are left, and for a target of latency the amount found and the candidates
        that were timed.

    Raises:
        StepFailed: `quantized_model`, `unknown_name`, `no_weights`, `non_finite_weights`, `nothing_prunable`,
            `target_unreachable`, `macs_unknown` or `latency_unknown`.
    """
    _check_float(model)
    weights = find_weights(model)
    chosen = {weight.name for weight in select(weights, spec.include, spec.exclude)}
    context.progress("pruning", 0.0, "finding channels that belong together")
    apart, first_names = told_apart(without_strides(model))
    engine = analyse(apart, RULES)
    kept_whole: list[str] = []
    while True:
        context.check_cancelled()
        layout = plan(engine, {weight.name: weight.name in chosen for weight in weights})

        def build(removed: Labels, layout: Plan = layout) -> onnx.ModelProto:
            smaller = Rewriter(engine, layout, removed).run()
            joined(smaller, first_names)
            return smaller

        scorer = Scorer(engine, spec.importance, seed, gates)
        found: dict[str, object] = {}
        try:
            if spec.target_latency is None:
                removed = _choose(model, engine, layout, spec, scorer)
            else:
                ranking = _ranking(layout, spec, scorer)
                cost = _share(model, engine, layout)
                removed, found = latency_target.fit(model, ranking, spec, context, build=build, cost=cost, seed=seed)
            context.progress("pruning", 0.5, "cutting weights")
            pruned = build(removed)
        except Stuck as stuck:
            kept_whole.append(walk.display_name(stuck.node))
            _keep(engine, stuck.node)
            continue
        details = _sizes(model, pruned, engine, layout, removed) | found
        details["groups"] = _groups(engine, layout, removed)
        return pruned, details | ({"kept_whole": kept_whole} if kept_whole else {})


def _check_float(model: onnx.ModelProto) -> None:
    for node in walk.nodes(model):
        if node.op_type in QUANTIZED_OPERATORS:
            raise StepFailed(
                "quantized_model",
                f"Node '{walk.display_name(node)}' ({node.op_type}) shows that the model is quantized already; "
                "prune the float model, then quantize.",
            )


def _ranking(layout: Plan, spec: PruneChannels, scorer: Scorer) -> Ranking:
    if not layout.groups:
        raise StepFailed(
            "nothing_prunable",
            "No channel of the selected layers can be removed: they all reach the model's inputs or outputs, or "
            "operators that need their shapes. Include other layers, or use 'prune', which keeps shapes.",
        )
    scores = [scorer.scores(group) for group in layout.groups]
    return Ranking(layout, scores, spec.scope, spec.round_to, spec.max_amount)


def _choose(model: onnx.ModelProto, engine: Engine, layout: Plan, spec: PruneChannels, scorer: Scorer) -> Labels:
    """The units to remove where that follows from shapes."""
    ranking = _ranking(layout, spec, scorer)
    if spec.amount is not None:
        removed = ranking.remove(spec.amount)
        if not len(removed):
            raise StepFailed(
                "nothing_prunable",
                f"An amount of {spec.amount} is less than one unit in every layer (round_to {spec.round_to}, "
                f"max_amount {spec.max_amount}); give a larger amount or a smaller round_to.",
            )
        return removed
    cost, unit = _cost(model, engine, layout, spec)
    share = spec.target_macs or spec.target_parameters or 0.0
    before = cost(np.zeros(0, np.int64))
    found = ranking.smallest_sufficient(lambda units: cost(units) <= share * before)
    if found is None:
        reachable = cost(ranking.remove(spec.max_amount)) / before
        raise StepFailed(
            "target_unreachable",
            f"A share of {share} of the {unit} cannot be reached: with max_amount {spec.max_amount} and round_to "
            f"{spec.round_to} the smallest is {math.ceil(reachable * 1000) / 1000}.",
        )
    return found


def _cost(
    model: onnx.ModelProto, engine: Engine, layout: Plan, spec: PruneChannels
) -> tuple[Callable[[Labels], int], str]:
    """What a choice of units costs, and what of."""
    if spec.target_parameters is not None:
        total = count_parameters(model).elements
        return lambda units: total - _parameters_gone(engine, layout, units), "parameters"
    if macs_of(engine.model.graph.node, _shapes(engine, layout, np.zeros(0, np.int64))) is None:
        raise StepFailed(
            "macs_unknown",
            "The model's multiply-accumulates cannot be counted, so there is no target for them; "
            "use 'amount' or 'target_parameters'.",
        )
    return lambda units: macs_of(engine.model.graph.node, _shapes(engine, layout, units)) or 0, "multiply-accumulates"


def _share(model: onnx.ModelProto, engine: Engine, layout: Plan) -> Callable[[Labels], float]:
    """What a choice of units leaves of the multiply-accumulates, or of the parameters where those are not known."""
    whole = macs_of(engine.model.graph.node, _shapes(engine, layout, np.zeros(0, np.int64)))
    if whole:
        return lambda units: (macs_of(engine.model.graph.node, _shapes(engine, layout, units)) or 0) / whole
    total = count_parameters(model).elements
    return lambda units: 1 - _parameters_gone(engine, layout, units) / total


def _parameters_gone(engine: Engine, layout: Plan, units: Labels) -> int:
    masks = layout.kept(units)
    gone = 0
    for name, lines in layout.weights.items():
        tensor = engine.constants[name]
        if tensor.data_type in FLOAT_TYPES:
            kept = [
                int(np.count_nonzero(masks[lines[axis]])) if axis in lines else int(length)
                for axis, length in enumerate(tensor.dims)
            ]
            gone += math.prod(tensor.dims) - math.prod(kept)
    return gone


def _shapes(engine: Engine, layout: Plan, units: Labels) -> dict[str, KnownShape]:
    masks = layout.kept(units)
    lengths = [int(np.count_nonzero(mask)) for mask in masks]
    found = {}
    for name in engine.folding.names():
        shape = engine.folding.shape(name)
        if shape is None:
            continue
        axes: list[int | None] = list(shape)
        if name in layout.along:
            axis, line = layout.along[name]
            axes[axis] = lengths[line]
        for axis, line in layout.weights.get(name, {}).items():
            axes[axis] = lengths[line]
        found[name] = KnownShape(1, tuple(axes))
    return found


def _keep(engine: Engine, node: onnx.NodeProto) -> None:
    """Let all channels at a node stay, and those whose number its shape inputs are computed from."""
    for name in (*node.input, *node.output):
        engine.freeze(name)
    pending, seen = list(node.input), set()
    while pending:
        name = pending.pop()
        maker = engine.made_by.get(name)
        if maker is None or name in seen or name not in engine.folding.values:
            continue
        seen.add(name)
        if maker.op_type == "Shape":
            engine.freeze(maker.input[0])
        pending += maker.input


def _sizes(
    model: onnx.ModelProto, pruned: onnx.ModelProto, engine: Engine, layout: Plan, removed: Labels
) -> dict[str, object]:
    nothing = np.zeros(0, np.int64)
    return {
        "parameters_before": count_parameters(model).elements,
        "parameters": count_parameters(pruned).elements,
        "macs_before": _macs(model, engine, layout, nothing),
        "macs": _macs(model, engine, layout, removed),
    }


def _macs(model: onnx.ModelProto, engine: Engine, layout: Plan, removed: Labels) -> int | None:
    """Multiply-accumulates of one sample, by the shapes of the analysis, which knows more than ONNX's inference."""
    total = macs_of(engine.model.graph.node, _shapes(engine, layout, removed))
    return None if total is None else total // engine.folding.samples(model)


def _groups(engine: Engine, layout: Plan, removed: Labels) -> list[dict[str, object]]:
    """For each group its layers and the channels of the first one."""
    report: list[dict[str, object]] = []
    for group in layout.groups:
        row = engine.ids.find(group.producers[0].labels)
        report.append(
            {
                "layers": list(dict.fromkeys(producer.node for producer in group.producers)),
                "channels_before": len(row),
                "channels": int(np.count_nonzero(~np.isin(row, removed))),
            }
        )
    return report
