"""How a result was measured, and the tables that a job asks for, below the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from compression.report import details
from compression.report.markup import Markup, element, join
from compression.report.quantities import quantity
from compression.result import Conditions, Measured, Profile, SweepPoint

_TIMES = "\N{MULTIPLICATION SIGN}"


def measured(found: Measured) -> Markup:
    """Everything but the metrics; empty where there is nothing to say."""
    parts = []
    if found.sweep:
        parts.append(_folded("Latency by batch size and threads", details.records([*map(_point, found.sweep)])))
    if found.original_profile is not None and found.result_profile is not None:
        parts.append(_folded("Time by operator", *_profiles(found.original_profile, found.result_profile)))
    if found.conditions is not None:
        parts.append(_folded("How latency was measured", details.definitions(_conditions(found.conditions))))
    return join(*parts)


def _folded(title: str, *content: Markup) -> Markup:
    return element("details", element("summary", title), element("div", *content, class_="inside"))


def _conditions(conditions: Conditions) -> dict[str, object]:
    luck = conditions.between_loads
    return {
        "execution provider": conditions.provider,
        "threads": conditions.threads or "chosen by the runtime",
        "pinned to cores": conditions.pinned,
        "samples in a call": conditions.batch_size,
        "pairs of calls": conditions.pairs,
        "pairs dropped as warm-up": conditions.warm_up_pairs,
        "loads of both models": conditions.loads,
        "deviation between loads beyond chance": "not known from one load" if luck is None else f"{luck:.2%}",
        "pairs in a block of the bootstrap": conditions.block_length,
    }


def _point(point: SweepPoint) -> Mapping[str, object]:
    return {
        "batch size": point.batch_size,
        "threads": point.threads or "chosen by the runtime",
        "original": quantity(point.original_seconds, "seconds"),
        "result": quantity(point.result_seconds, "seconds"),
        "original, samples": quantity(point.original_throughput, "samples/second"),
        "result, samples": quantity(point.result_throughput, "samples/second"),
        "change": point.verdict,
        "pairs": point.pairs,
    }


def _profiles(original: Profile, result: Profile) -> list[Markup]:
    shown = [
        element("h3", "Operators"),
        details.records(_operators(original, result)),
        element("h3", "Slowest nodes of the original"),
        details.records(_nodes(original)),
        element("h3", "Slowest nodes of the result"),
        details.records(_nodes(result)),
    ]
    runs = f"Medians of {original.runs:,} and {result.runs:,} runs under the profiler, which makes them slower: "
    sums = f"{quantity(original.seconds, 'seconds')} and {quantity(result.seconds, 'seconds')} in all nodes."
    return [element("p", runs + sums, class_="soft"), *shown]


def _operators(original: Profile, result: Profile) -> Sequence[Mapping[str, object]]:
    before = {one.operator: one for one in original.operators}
    after = {one.operator: one for one in result.operators}
    slowest = sorted(
        before.keys() | after.keys(),
        key=lambda name: (-max(side[name].seconds for side in (before, after) if name in side), name),
    )
    rows = []
    for name in slowest:
        row: dict[str, object] = {"operator": name}
        for title, side in (("original", before), ("result", after)):
            one = side.get(name)
            row[title] = "" if one is None else f"{one.nodes} {_TIMES}, {quantity(one.seconds, 'seconds')}"
            row[f"share of {title}"] = "" if one is None else f"{one.share:.1%}"
        rows.append(row)
    return rows


def _nodes(profile: Profile) -> Sequence[Mapping[str, object]]:
    return [
        {
            "node": one.node,
            "operator": one.operator,
            "time": quantity(one.seconds, "seconds"),
            "share": f"{one.share:.1%}",
        }
        for one in profile.nodes
    ]
