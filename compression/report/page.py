"""The report as one HTML page that needs nothing else: no network, no scripts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from compression.report import charts, details
from compression.report.environment import environment
from compression.report.markup import Markup, element, join
from compression.report.measured import measured
from compression.report.quantities import change, label, quantity
from compression.report.style import STYLE
from compression.result import Metric, PipelineResult, StepResult
from compression.signature import DatasetSummary, ModelSummary, TensorSpec
from compression.spec import PipelineSpec, Step

_HEADLINES = (
    "file_bytes",
    "latency_p50",
    "accuracy",
    "mse",
    "perplexity",
    "token_error_rate",
    "target_cosine",
    "top1_agreement",
    "peak_memory_bytes",
)
_CARDS = 4
# Model names are chosen by strangers. Everything is escaped; should that ever fail, still nothing runs or loads.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def page(result: PipelineResult, spec: PipelineSpec) -> str:
    """The whole document."""
    chain = " \N{RIGHTWARDS ARROW} ".join(step_name(step) for step in spec.steps)
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"Levity: {chain}"),
        element("style", Markup(STYLE)),
    )
    body = element(
        "main",
        element("p", "Levity compression report", class_="eyebrow"),
        element("h1", chain),
        element("p", _subtitle(result), class_="soft"),
        _notes(result.notes),
        _cards(result.metrics),
        element("h2", "Before and after"),
        element("p", "Factors above 1x are improvements.", class_="soft"),
        _metrics(result.metrics),
        measured(result.measured),
        element("h2", "Steps"),
        *(_step(step, asked) for step, asked in zip(result.steps, spec.steps, strict=True)),
        element("h2", "Model"),
        _model(result.model, result.compressed),
        element("h2", "Data"),
        _data(result.data),
        element("h2", "Run"),
        _run(result, spec),
    )
    return f"<!doctype html>\n{element('html', head, element('body', body), lang='en')}\n"


def step_name(step: Step) -> str:
    """What a step is called in a title: its type and, where it has one, its mode.

    >>> from compression.spec import QuantizeStatic
    >>> step_name(QuantizeStatic())
    'quantize (static)'
    """
    mode = getattr(step, "mode", None)
    return f"{step.type} ({mode})" if mode else step.type


def _subtitle(result: PipelineResult) -> str:
    producer = f"made by {result.model.producer}, " if result.model.producer else ""
    return (
        f"ONNX model {producer}{result.model.parameters:,} parameters, {quantity(result.model.file_bytes, 'bytes')}. "
        f"The run took {quantity(result.seconds, 'seconds')}."
    )


def _notes(notes: Sequence[str]) -> Markup | None:
    if not notes:
        return None
    return element(
        "section",
        element("strong", "What to know first"),
        element("ul", *(element("li", note) for note in notes)),
        class_="notes",
    )


def _cards(metrics: Sequence[Metric]) -> Markup:
    by_name = {metric.name: metric for metric in metrics}
    chosen = [by_name[name] for name in _HEADLINES if name in by_name][:_CARDS]
    return element("div", *map(_card, chosen), class_="cards")


def _card(metric: Metric) -> Markup:
    # Only what compares with the original has a change to show; agreement is its own number.
    if metric.original is None:
        headline, interval = quantity(metric.result, metric.unit), change(metric)
        picture = None
    else:
        words, bracket, bounds = change(metric).partition(" [")
        headline, interval = words, bracket.lstrip() + bounds
        picture = charts.bars(metric.original, metric.result, metric.unit)
    return element(
        "section",
        element("h3", label(metric.name)),
        element(
            "div",
            headline,
            element("span", interval, class_="range") if interval else None,
            class_=f"headline {charts.tone(metric)}",
        ),
        picture,
        class_="card",
    )


def _metrics(metrics: Sequence[Metric]) -> Markup:
    titles = (("", None), ("Original", "number"), ("Result", "number"), ("Change", None), ("95 % interval", None))
    head = element("thead", element("tr", *(element("th", title, class_=kind) for title, kind in titles)))
    rows = (
        element(
            "tr",
            element("th", label(metric.name), scope="row", title=_samples(metric)),
            element("td", "" if metric.original is None else quantity(metric.original, metric.unit), class_="number"),
            element("td", quantity(metric.result, metric.unit), class_="number"),
            element("td", change(metric), _p_value(metric), class_=charts.tone(metric)),
            element("td", charts.interval(metric)),
        )
        for metric in metrics
    )
    return element("div", element("table", head, element("tbody", *rows), class_="wide"), class_="card scroll")


def _p_value(metric: Metric) -> Markup | None:
    if metric.p_value is None:
        return None
    shown = f"p = {metric.p_value:.2g}" if metric.p_value >= 0.001 else "p < 0.001"
    return element("span", f" {shown}", class_="soft", title="McNemar's exact test")


def _samples(metric: Metric) -> str | None:
    return None if metric.samples is None else f"from {metric.samples:,} samples"


def _step(step: StepResult, asked: Step) -> Markup:
    came = "from an earlier run" if step.cached else quantity(step.seconds, "seconds")
    options = asked.model_dump(mode="json", exclude={"type", "mode"}, exclude_none=True)
    return element(
        "details",
        element("summary", f"{step.index + 1}. {step_name(asked)} ", element("span", came, class_="soft")),
        element(
            "div",
            element("h3", "Asked for"),
            details.definitions(options),
            element("h3", "Done"),
            details.definitions(step.details),
            class_="inside",
        ),
    )


def _model(original: ModelSummary, compressed: ModelSummary) -> Markup:
    names = sorted(
        original.operators.keys() | compressed.operators.keys(),
        key=lambda name: (-max(original.operators.get(name, 0), compressed.operators.get(name, 0)), name),
    )
    operators = [
        {"operator": name, "original": original.operators.get(name, 0), "result": compressed.operators.get(name, 0)}
        for name in names
    ]
    return join(
        element(
            "details",
            element("summary", f"Inputs and outputs, {len(original.inputs)} and {len(original.outputs)}"),
            element("div", details.records([*_tensors(original)]), class_="inside"),
        ),
        element(
            "details",
            element("summary", f"Operators, {original.nodes:,} before and {compressed.nodes:,} after"),
            element("div", details.records(operators), class_="inside"),
        ),
    )


def _tensors(model: ModelSummary) -> Iterator[dict[str, object]]:
    for role, tensors in (("input", model.inputs), ("output", model.outputs)):
        for tensor in tensors:
            yield _tensor(role, tensor)


def _tensor(role: str, tensor: TensorSpec) -> dict[str, object]:
    return {"role": role, "name": tensor.name, "type": tensor.dtype, "shape": tensor.shape}


def _data(data: Mapping[str, DatasetSummary]) -> Markup:
    rows: list[Mapping[str, object]] = [
        {
            "data": role,
            "format": summary.format,
            "samples": summary.samples,
            "classes": "no labels" if summary.classes is None else f"{summary.classes:,}",
            "size": quantity(summary.bytes, "bytes"),
        }
        for role, summary in data.items()
    ]
    if not rows:
        return element("p", "No datasets were given.", class_="soft")
    return element("div", details.records(rows), class_="card")


def _run(result: PipelineResult, spec: PipelineSpec) -> Markup:
    files: list[Mapping[str, object]] = [
        {"file": one.name, "size": quantity(one.size, "bytes"), "sha256": one.sha256} for one in result.artifacts
    ]
    facts = environment()
    libraries = facts.pop("libraries")
    pretty = json.dumps(spec.model_dump(mode="json"), indent=2)
    return join(
        element(
            "details",
            element("summary", "Machine and libraries"),
            element("div", details.definitions({**facts, "libraries": libraries}), class_="inside"),
        ),
        element(
            "details",
            element("summary", "Files"),
            element("div", details.records(files), class_="inside"),
        ),
        element(
            "details",
            element("summary", "The spec of this run"),
            element("div", element("pre", pretty), class_="inside"),
        ),
    )
