"""How many bits each layer gets: least noise within a mean of bits, or fewest bits within a noise. Pure functions.

Noise of layers adds up nearly, as long as it is small (Zhou et al. 2018, section 3), so each layer's own noise,
measured alone, ranks what to change; what a choice really does is for the caller to measure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Option:
    """One way to store and compute a layer.

    Attributes:
        bits: Of a weight.
        noise: Energy of the outputs' noise over that of the signal when this layer alone is like that.
        cost: What computing a weight costs beside others, in the same unit as bits.
    """

    bits: int
    noise: float
    cost: int


@dataclass(frozen=True)
class Item:
    """A layer, or layers that share a decision.

    Attributes:
        name: Its name.
        parameters: Weights in it, at least 1.
        options: From the fewest bits to the most; each has less noise than the one before, or as much.
    """

    name: str
    parameters: int
    options: tuple[Option, ...]


Choice = Mapping[str, int]
"""For each item the index of its option."""


def mean_bits(items: Sequence[Item], choice: Choice) -> float:
    """Bits of a weight, averaged over all weights."""
    total = sum(item.parameters * item.options[choice[item.name]].bits for item in items)
    return total / sum(item.parameters for item in items)


def noise(items: Sequence[Item], choice: Choice) -> float:
    """The sum of what each item does alone."""
    return sum(item.options[choice[item.name]].noise for item in items)


def lowered(items: Sequence[Item], choice: Choice, limit: float) -> dict[str, int]:
    """Take bits from where that adds the least noise per bit saved, until their mean is within a limit.

    The result exceeds the limit only where every item has its fewest bits.
    """
    found = dict(choice)
    while mean_bits(items, found) > limit:
        steps = [
            ((now.noise, less.noise), item)
            for item in items
            if found[item.name] > 0
            and (now := item.options[found[item.name]])
            and (less := item.options[found[item.name] - 1])
        ]
        if not steps:
            break

        def price(step: tuple[tuple[float, float], Item]) -> float:
            (now, less), item = step
            own = item.options[found[item.name]].bits - item.options[found[item.name] - 1].bits
            return (less - now) / max(own * item.parameters, 1)

        _, cheapest = min(steps, key=price)
        found[cheapest.name] -= 1
    return found


def raised(items: Sequence[Item], choice: Choice, target: float, limit: float | None) -> dict[str, int]:
    """Give bits to where they take away the most noise, until its sum is within a target.

    The most noise for its cost goes first, and nothing is raised beyond the limit of bits on average; the result misses
    the target where nothing can be raised any more.
    """
    found = dict(choice)
    total = sum(item.parameters for item in items)
    while noise(items, found) > target:
        room = None if limit is None else limit * total - mean_bits(items, found) * total
        best: tuple[float, Item] | None = None
        for item in items:
            at = found[item.name]
            if at + 1 == len(item.options):
                continue
            extra = (item.options[at + 1].bits - item.options[at].bits) * item.parameters
            if room is not None and extra > room + 1e-9:
                continue
            gain = item.options[at].noise - item.options[at + 1].noise
            worth = gain / ((item.options[at + 1].cost - item.options[at].cost) * item.parameters)
            if gain > 0 and (best is None or worth > best[0]):
                best = worth, item
        if best is None:
            break
        found[best[1].name] += 1
    return found
