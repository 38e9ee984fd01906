"""Small pictures as inline SVG: a pair of bars, and an interval beside the line of no change."""

from __future__ import annotations

import math

from compression.report.markup import Markup, element, join
from compression.report.quantities import quantity
from compression.result import Metric

_WIDTH, _HEIGHT = 180, 20
_MARGIN = 8
_EXACT = frozenset({"file_bytes", "gzip_bytes", "coded_bytes", "parameters", "nonzero_parameters", "macs"})


def bars(original: float, result: float, unit: str) -> Markup:
    """Two bars on one scale that begins at zero, the original above the result, each with its number."""
    longest = max(original, result, 0.0)
    rows = (
        join(
            element("span", name, class_="bar-name"),
            element("svg", element("rect", width=f"{_share(value, longest):.2%}", height="100%", rx=3), class_=name),
            element("span", quantity(value, unit), class_="bar-value"),
        )
        for name, value in (("original", original), ("result", result))
    )
    return element("div", *rows, class_="bars")


def _share(value: float, longest: float) -> float:
    return max(value, 0.0) / longest if longest > 0 else 0.0


def interval(metric: Metric) -> Markup | None:
    """The 95 % interval of a ratio (logarithmic axis) or of a difference, with a line where nothing has changed.

    None where the metric has no interval of a change, or one that no axis can hold.
    """
    if metric.interval is None or metric.original is None:
        return None
    low, high = metric.interval
    if metric.interval_of == "difference":
        at = metric.result - metric.original
        if metric.direction == "lower_is_better":
            at, low, high = -at, -high, -low
    elif metric.interval_of == "ratio" and metric.ratio is not None and metric.ratio > 0 and low > 0:
        at, low, high = math.log(metric.ratio), math.log(low), math.log(high)
    else:
        return None
    if not all(map(math.isfinite, (at, low, high))):
        return None
    reach = max(abs(low), abs(high), abs(at)) or 1.0

    def x(value: float) -> str:
        return f"{_MARGIN + (value / reach + 1) / 2 * (_WIDTH - 2 * _MARGIN):.1f}"

    middle = _HEIGHT / 2
    return element(
        "svg",
        element("line", x1=x(0), x2=x(0), y1=1, y2=_HEIGHT - 1, class_="neutral"),
        element("line", x1=x(low), x2=x(high), y1=middle, y2=middle, class_="whisker"),
        element("circle", cx=x(at), cy=middle, r=4, class_="estimate"),
        class_=f"interval {tone(metric)}",
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        width=_WIDTH,
        height=_HEIGHT,
        role="img",
        aria_label="95 % interval of the change; left of the line is worse, right is better",
    )


def tone(metric: Metric) -> str:
    """`better`, `worse` or `same`: what the result is, as far as the interval shows it.

    Without an interval only what is counted tells anything; one measured number may be chance.
    """
    low = high = metric.ratio if metric.name in _EXACT else None
    neutral = 1.0
    if metric.interval is not None and metric.interval_of != "result":
        low, high = metric.interval
        if metric.interval_of == "difference":
            neutral = 0.0
            if metric.direction == "lower_is_better":
                low, high = -high, -low
    if low is None or high is None:
        return "same"
    if low > neutral:
        return "better"
    return "worse" if high < neutral else "same"
