"""Bits of each layer by how much its quantization shows in the model's outputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx

from compression.context import Context
from compression.errors import StepFailed
from compression.quantization.agreement import Agreement
from compression.quantization.choice import budget
from compression.quantization.choice.budget import Choice, Item, Option
from compression.quantization.choice.spec import SelectBySensitivity
from compression.quantization.integer.fill import Bits
from compression.quantization.static import Calibrated, insert

# Layers beyond are decided about together with their neighbours: each decision costs a model per option.
_MOST_GROUPS = 96
_MOST_ROUNDS = 24
_FLOAT_BITS = 32
# What a layer can be, from the fewest bits to the most; None is float.
_LEVELS: Mapping[str, Bits | None] = {
    "4-bit weights": Bits(4, 8),
    "8-bit": Bits(8, 8),
    "8-bit weights, 16-bit activations": Bits(8, 16),
    "float": None,
}
# Beside bits: with 16-bit activations a layer computes as slowly as in float, but its weights stay small.
_COSTS = {"4-bit weights": 4, "8-bit": 8, "8-bit weights, 16-bit activations": 16, "float": 32}


@dataclass(frozen=True)
class Mixture:
    """A choice of bits for all layers.

    Attributes:
        model: The model with pairs, or None where all layers stay float.
        left: Names of the nodes that were kept in float.
        details: `decisions`, a row for each group of layers, and how the goals were met.
    """

    model: onnx.ModelProto | None
    left: tuple[str, ...]
    details: dict[str, object]


def choose_by_sensitivity(calibrated: Calibrated, selection: SelectBySensitivity, context: Context) -> Mixture:
    """The fewest bits with which the model agrees with the float one as wanted, within the mean of bits allowed.

    Raises:
        StepFailed: `goal_out_of_reach`, naming what can be reached, or `unsupported_by_runtime`.
        Cancelled: The caller asked to stop.
    """
    search = _Search(calibrated, selection, context)
    search.measure()
    choice = search.start()
    ratio = search.sqnr(choice)
    goal = selection.min_sqnr_db
    for _ in range(_MOST_ROUNDS):
        if goal is None or ratio >= goal:
            break
        # What single layers do adds up only nearly: the estimate is corrected by how far it was off.
        estimate = budget.noise(search.items, choice)
        off = 10 ** (-ratio / 10) / max(estimate, 1e-30)
        better = budget.raised(search.items, choice, min(10 ** (-goal / 10) / off, 0.9 * estimate), search.limit)
        if better == choice:
            break
        choice, ratio = better, search.sqnr(better)
    if goal is not None and ratio < goal:
        if search.limit is not None:
            raise StepFailed(
                "goal_out_of_reach",
                f"With {search.limit:g} bits a weight on average, the quantized model agrees with the float one by "
                f"{ratio:.1f} dB at best, and {goal:g} dB are wanted; lower min_sqnr_db or raise max_mean_weight_bits.",
            )
        choice, ratio = search.in_float(), math.inf
    return search.mixture(choice, ratio)


class _Search:
    def __init__(self, calibrated: Calibrated, selection: SelectBySensitivity, context: Context) -> None:
        self._calibrated = calibrated
        self._context = context
        self.limit = selection.max_mean_weight_bits
        self._agreement = Agreement(calibrated.graph, calibrated.feed, context, selection.samples)
        self._layers = calibrated.plan().layers
        self._groups = dict(_groups(calibrated))
        lowest = "4-bit weights" if self.limit is not None or calibrated.spec.weight_bits == 4 else "8-bit"
        self._levels = list(_LEVELS)[list(_LEVELS).index(lowest) :]
        self.items: list[Item] = []

    def measure(self) -> None:
        """What each group does to the outputs at each level, all else in float."""
        everything = {node.name for node in self._calibrated.graph.graph.node}
        for number, (name, nodes) in enumerate(self._groups.items()):
            self._context.progress("quantizing", 0.9 * number / len(self._groups), f"sensitivity of '{name}'")
            options: list[Option] = []
            for level in self._levels:
                bits = _LEVELS[level]
                if bits is None:
                    options.append(Option(_FLOAT_BITS, 0.0, _COSTS[level]))
                    continue
                model = insert(self._calibrated, everything.difference(nodes), dict.fromkeys(nodes, bits))
                ratio = self._agreement.sqnr(model)
                # More bits never count as worse: where they seem so, the difference is chance.
                own = min([10 ** (-ratio / 10), *(option.noise for option in options)])
                options.append(Option(bits.weights, own, _COSTS[level]))
            parameters = sum(math.prod(self._layers[node].shape) for node in nodes)
            self.items.append(Item(name, max(parameters, 1), tuple(options)))

    def start(self) -> dict[str, int]:
        """What to begin with: everything at the spec's bits, fewer where their mean is limited."""
        base = self._levels.index("4-bit weights" if self._calibrated.spec.weight_bits == 4 else "8-bit")
        choice = dict.fromkeys(self._groups, base)
        if self.limit is None:
            return choice
        choice = budget.lowered(self.items, choice, self.limit)
        found = budget.mean_bits(self.items, choice)
        if found > self.limit:
            raise StepFailed(
                "goal_out_of_reach", f"The fewest bits a weight on average are {found:g}; {self.limit:g} are wanted."
            )
        return choice

    def in_float(self) -> dict[str, int]:
        """The choice of nothing."""
        return dict.fromkeys(self._groups, self._levels.index("float"))

    def sqnr(self, choice: Choice) -> float:
        """How far the model with that choice agrees with the float one, dB."""
        return self._agreement.sqnr(self._insert(choice))

    def _insert(self, choice: Choice) -> onnx.ModelProto:
        return insert(self._calibrated, self._left(choice), self._bits(choice))

    def _bits(self, choice: Choice) -> dict[str, Bits]:
        found = {}
        for name, nodes in self._groups.items():
            bits = _LEVELS[self._levels[choice[name]]]
            if bits is not None:
                found.update(dict.fromkeys(nodes, bits))
        return found

    def _left(self, choice: Choice) -> tuple[str, ...]:
        return tuple(
            node
            for name, nodes in self._groups.items()
            if _LEVELS[self._levels[choice[name]]] is None
            for node in nodes
        )

    def mixture(self, choice: Choice, ratio: float) -> Mixture:
        """The choice as a model, with the table that explains it."""
        all_float = all(self._levels[choice[name]] == "float" for name in self._groups)
        return Mixture(
            None if all_float else self._insert(choice),
            self._left(choice),
            {
                "sqnr_db": ratio if math.isfinite(ratio) else None,
                "mean_weight_bits": budget.mean_bits(self.items, choice),
                "decisions": [self._row(item, choice[item.name]) for item in self.items],
            },
        )

    def _row(self, item: Item, chosen: int) -> dict[str, object]:
        alone = {
            level: None if option.noise == 0 else -10 * math.log10(option.noise)
            for level, option in zip(self._levels, item.options, strict=True)
        }
        return {
            "nodes": list(self._groups[item.name]),
            "parameters": item.parameters,
            "decision": self._levels[chosen],
            "sqnr_alone_db": alone,
        }


def _groups(calibrated: Calibrated) -> Iterator[tuple[str, Sequence[str]]]:
    """Layers that share a decision, by the first one's name: those that share a weight, and neighbours of many."""
    layers = calibrated.plan().layers
    by_weight: dict[str, list[str]] = {}
    for node in (node.name for node in calibrated.graph.graph.node if node.name in layers):
        by_weight.setdefault(layers[node].weight, []).append(node)
    sets = list(by_weight.values())
    size = math.ceil(len(sets) / _MOST_GROUPS)
    for start in range(0, len(sets), size or 1):
        nodes = [node for part in sets[start : start + size] for node in part]
        yield nodes[0], nodes
