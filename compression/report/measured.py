"""How a result was measured, below the numbers."""

from __future__ import annotations

from compression.report import details
from compression.report.markup import Markup, element
from compression.result import Conditions, Measured


def measured(found: Measured) -> Markup | None:
    """Everything but the metrics; None where there is nothing to say."""
    if found.conditions is None:
        return None
    return element(
        "details",
        element("summary", "How latency was measured"),
        element("div", details.definitions(_conditions(found.conditions)), class_="inside"),
    )


def _conditions(conditions: Conditions) -> dict[str, object]:
    luck = conditions.between_loads
    return {
        "threads": conditions.threads or "chosen by the runtime",
        "pinned to cores": conditions.pinned,
        "samples in a call": conditions.batch_size,
        "pairs of calls": conditions.pairs,
        "pairs dropped as warm-up": conditions.warm_up_pairs,
        "loads of both models": conditions.loads,
        "deviation between loads beyond chance": "not known from one load" if luck is None else f"{luck:.2%}",
        "pairs in a block of the bootstrap": conditions.block_length,
    }
