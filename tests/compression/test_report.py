"""The report and the manifest, on a made-up result with a hostile model."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest

from compression.context import Context
from compression.report.charts import interval, tone
from compression.report.details import records, text
from compression.report.markup import Markup, element
from compression.report.page import page
from compression.report.quantities import change, quantity
from compression.report.write import write_manifest, write_report
from compression.result import (
    ArtifactFile,
    Conditions,
    Measured,
    Metric,
    NodeTime,
    OperatorTime,
    PipelineResult,
    Profile,
    StepResult,
    SweepPoint,
)
from compression.signature import DatasetSummary, ModelSummary, TensorSpec
from compression.spec import PipelineSpec, Prune, QuantizeStatic

HOSTILE = "<script>alert('x')</script>\"><img src=https://example.org/x onerror=alert(1)>"


def metric(name="latency_p50", unit="seconds", direction="lower_is_better", **fields):
    return Metric(name=name, unit=unit, direction=direction, **({"original": None} | fields))


METRICS = (
    metric("file_bytes", "bytes", original=580_063, result=165_432, ratio=3.506, verdict="3.51x smaller"),
    metric(original=2.0e-4, result=1.1e-4, ratio=1.82, interval=(1.74, 1.9), interval_of="ratio", samples=500,
           verdict="faster, 1.82x [1.74, 1.90]"),
    metric("latency_p99", original=3.0e-4, result=2.0e-4, ratio=1.5),
    metric("throughput", "samples/second", "higher_is_better", original=5000, result=9100, ratio=1.82),
    metric("peak_memory_bytes", "bytes", original=81e6, result=84e6, ratio=0.964),
    metric("accuracy", "fraction", "higher_is_better", original=0.9912, result=0.9841, interval=(-0.012, -0.001),
           interval_of="difference", p_value=0.0123,
           samples=450, verdict="worse, -0.71 points [-1.20, -0.10]"),
    metric("top1_agreement", "fraction", "higher_is_better", result=0.99, interval=(0.975, 0.996),
           interval_of="result"),
    metric("sqnr", "dB", "higher_is_better", result=31.234),
)  # fmt: skip


CONDITIONS = Conditions(
    provider="cpu",
    threads=2,
    pinned=True,
    batch_size=1,
    loads=5,
    pairs=480,
    warm_up_pairs=20,
    block_length=3,
    between_loads=0.0123,
)


def summary(**changes):
    fields = {
        "format": "onnx",
        "ir_version": 10,
        "opsets": {"ai.onnx": 21},
        "producer": HOSTILE,
        "inputs": (TensorSpec(name=HOSTILE, dtype="float32", shape=("batch", 1, None, 8)),),
        "outputs": (TensorSpec(name="logits", dtype="float32", shape=None),),
        "operators": {"Conv": 3, "Relu": 2},
        "nodes": 5,
        "parameters": 144_650,
        "nonzero_parameters": 144_650,
        "parameter_bytes": 578_600,
        "macs": 1_000_000,
        "file_bytes": 580_063,
        "external_data_bytes": 0,
        "quantized": False,
    }
    return ModelSummary(**(fields | changes))


@pytest.fixture
def spec():
    return PipelineSpec(steps=(Prune(amount=0.5), QuantizeStatic()), seed=7)


@pytest.fixture
def result():
    data = DatasetSummary(
        format="npz",
        samples=450,
        arrays=(TensorSpec(name="image", dtype="float32", shape=(450, 1, 8, 8)),),
        has_labels=True,
        classes=10,
        bytes=18_010,
    )
    weights = [{"name": HOSTILE, "shape": [32, 1, 3, 3], "sparsity": 0.5}, {"name": "fc", "skipped": "too small"}]
    return PipelineResult(
        model=summary(),
        compressed=summary(operators={"Conv": 3, "QuantizeLinear": 4}, quantized=True, file_bytes=165_432),
        data={"evaluation": data},
        steps=(
            StepResult(index=0, type="prune", seconds=0.01, cached=True, details={"sparsity": 0.5, "weights": weights}),
            StepResult(index=1, type="quantize", seconds=0.4, cached=False, details={"reason": HOSTILE, "seen": None}),
        ),
        metrics=METRICS,
        measured=Measured(conditions=CONDITIONS),
        notes=("Slower than the original.", HOSTILE),
        artifacts=(ArtifactFile(name="model.onnx", sha256="ab" * 32, size=165_432, media_type="x/y"),),
        seconds=1.25,
    )


class Page(HTMLParser):
    """Collects elements with their attributes, and the text of each table row; fails where tags do not pair."""

    def __init__(self, document):
        super().__init__()
        self.elements, self.rows, self.open = [], [], []
        self.feed(document)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag != "meta":
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open) and "svg" not in self.open:
            self.rows[-1][-1] += data


def test_hostile_names_stay_text(result, spec):
    document = page(result, spec)
    parsed = Page(document)
    tags = {tag for tag, _ in parsed.elements}
    assert not tags & {"script", "img", "link", "iframe", "object", "form", "a"}
    names = {name for _, attributes in parsed.elements for name in attributes}
    assert not any(name.startswith("on") or name in ("src", "href", "style") for name in names)
    assert document.count("&lt;script&gt;") >= 4
    assert not any(twice in document for twice in ("&lt;dt", "&lt;td", "&lt;svg", "&lt;span", "&amp;lt;"))
    assert any(attributes.get("http-equiv") == "Content-Security-Policy" for _, attributes in parsed.elements)


def test_page_needs_nothing_from_elsewhere(result, spec):
    document = page(result, spec)
    shown = document.replace("https://example.org/x", "")
    assert "http://" not in shown
    assert "https://" not in shown
    assert "url(" not in shown
    assert "@import" not in shown


def test_before_and_after_table(result, spec):
    rows = Page(page(result, spec)).rows
    assert ["File size", "580 kB", "165 kB", "3.51x smaller", ""] in rows
    assert ["Latency, median", "200 µs", "110 µs", "faster, 1.82x [1.74, 1.90]", ""] in rows
    assert ["Accuracy, top-1", "99.12 %", "98.41 %", "worse, -0.71 points [-1.20, -0.10] p = 0.012", ""] in rows
    assert ["Same top class", "", "99.00 %", "[97.50 %, 99.60 %]", ""] in rows
    assert ["Signal to quantization noise", "", "31.23 dB", "", ""] in rows
    assert ["QuantizeLinear", "0", "4"] in rows
    assert [
        "input",
        HOSTILE,
        "float32",
        "batch \N{MULTIPLICATION SIGN} 1 \N{MULTIPLICATION SIGN} ? \N{MULTIPLICATION SIGN} 8",
    ] in rows


def test_conditions_of_timing_are_said(result, spec):
    document = page(result, spec)
    assert "<dt>pairs dropped as warm-up</dt><dd>20</dd>" in document
    assert "<dt>deviation between loads beyond chance</dt><dd>1.23%</dd>" in document
    changed = CONDITIONS.model_copy(update={"threads": 0, "between_loads": None})
    document = page(result.model_copy(update={"measured": Measured(conditions=changed)}), spec)
    assert "<dd>chosen by the runtime</dd>" in document
    assert "<dd>not known from one load</dd>" in document
    assert "How latency was measured" not in page(result.model_copy(update={"measured": Measured()}), spec)


def profile(*operators, runs=10):
    total = sum(seconds for _, _, seconds in operators)
    return Profile(
        runs=runs,
        seconds=total,
        operators=tuple(
            OperatorTime(operator=operator, nodes=nodes, seconds=seconds, share=seconds / total)
            for operator, nodes, seconds in operators
        ),
        nodes=(NodeTime(node=HOSTILE, operator="Conv", seconds=0.0003, share=0.3),),
    )


def test_tables_that_a_job_asked_for(result, spec):
    point = SweepPoint(
        batch_size=8,
        threads=2,
        pairs=40,
        original_seconds=0.004,
        result_seconds=0.002,
        original_throughput=1990,
        result_throughput=3980,
        ratio=2.0,
        interval=(1.9, 2.1),
        verdict="faster, 2.00x [1.90, 2.10]",
    )
    tables = Measured(
        sweep=(point, point.model_copy(update={"threads": 0})),
        original_profile=profile(("Conv", 3, 0.001), ("Relu", 2, 0.0005)),
        result_profile=profile(("QLinearConv", 3, 0.0004), ("Relu", 1, 0.0006)),
    )
    document = page(result.model_copy(update={"measured": tables}), spec)
    rows = Page(document).rows
    assert ["8", "2", "4.00 ms", "2.00 ms", "1,990/s", "3,980/s", "faster, 2.00x [1.90, 2.10]", "40"] in rows
    assert any(row[1] == "chosen by the runtime" for row in rows if len(row) == 8)
    assert [row for row in rows if row[0] in ("Conv", "Relu", "QLinearConv") and len(row) == 5] == [
        ["Conv", "3 \N{MULTIPLICATION SIGN}, 1.00 ms", "66.7%", "", ""],
        [
            "Relu",
            "2 \N{MULTIPLICATION SIGN}, 500 \N{MICRO SIGN}s",
            "33.3%",
            "1 \N{MULTIPLICATION SIGN}, 600 \N{MICRO SIGN}s",
            "60.0%",
        ],
        ["QLinearConv", "", "", "3 \N{MULTIPLICATION SIGN}, 400 \N{MICRO SIGN}s", "40.0%"],
    ]
    assert [HOSTILE, "Conv", "300 \N{MICRO SIGN}s", "30.0%"] in rows
    assert "<script" not in document
    assert "10 and 10 runs under the profiler" in document
    assert "Time by operator" not in page(result, spec)


def test_notes_come_before_numbers(result, spec):
    document = page(result, spec)
    assert document.index("Slower than the original.") < document.index("Before and after")
    assert "What to know first" not in page(result.model_copy(update={"notes": ()}), spec)


def test_only_measured_metrics_are_shown(result, spec):
    document = page(result.model_copy(update={"metrics": METRICS[:1], "data": {}}), spec)
    assert "Accuracy" not in document
    assert "No datasets were given." in document


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (0, "bytes", "0 B"),
        (999, "bytes", "999 B"),
        (999_499, "bytes", "999 kB"),
        (999_500, "bytes", "1.00 MB"),
        (1_234_567, "count", "1,234,567"),
        (4.2e-7, "seconds", "0.42 µs"),
        (9.996e-3, "seconds", "10.0 ms"),
        (1.5, "seconds", "1.50 s"),
        (75.0, "seconds", "75.0 s"),
        (0.98413, "fraction", "98.41 %"),
        (5000.4, "samples/second", "5,000/s"),
        (2.5, "samples/second", "2.5/s"),
        (0.99971, "ratio", "0.9997"),
        (31.234, "dB", "31.23 dB"),
    ],
)
def test_quantities(value, unit, expected):
    assert quantity(value, unit) == expected


def test_changes_without_a_verdict():
    assert change(metric(original=3.0, result=2.0, ratio=1.5)) == "1.50x"
    assert change(metric(original=2.0, result=2.0, ratio=1.0)) == "unchanged"
    assert change(metric(result=2.0)) == ""


def changed(of, low, high, **fields):
    """A metric whose interval of `of` is known."""
    defaults = {"original": 2.0, "result": 1.0, "ratio": 2.0, "interval": (low, high), "interval_of": of}
    return metric(**(defaults | fields))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (changed("ratio", 1.8, 2.2), "better"),
        (changed("ratio", 0.6, 0.8), "worse"),
        (changed("ratio", 0.8, 1.02), "same"),
        (metric("file_bytes", original=1.0, result=2.0, ratio=0.5), "worse"),
        (metric("gzip_bytes", original=2.0, result=1.0, ratio=2.0), "better"),
        # A single measured number may be chance.
        (metric("latency_p99", original=1.0, result=2.0, ratio=0.5), "same"),
        (metric(original=1.0, result=1.0), "same"),
        (changed("difference", 0.01, 0.09, direction="higher_is_better"), "better"),
        (changed("difference", -0.09, -0.01, direction="higher_is_better"), "worse"),
        # Of an error less is better.
        (changed("difference", -0.09, -0.01), "better"),
        (changed("difference", 0.01, 0.09), "worse"),
        (changed("result", 0.98, 1.0, original=None), "same"),
    ],
)
def test_tone_follows_the_interval(found, expected):
    assert tone(found) == expected


def x_of(picture, tag, key):
    return next(float(attributes[key]) for found, attributes in Page(picture).elements if found == tag)


def test_interval_of_a_ratio_is_drawn_on_a_logarithmic_axis():
    # The farthest bound, 4, reaches the right margin (172 of 180); 2 = 4 ** 0.5 lies half way from the middle (90).
    picture = interval(changed("ratio", 1.0, 4.0))
    assert x_of(picture, "line", "x1") == 90
    assert x_of(picture, "circle", "cx") == 131
    assert 'x1="90.0" x2="172.0"' in picture


def test_interval_of_a_difference_is_drawn_on_a_linear_axis():
    worse = {"original": 0.9, "result": 0.88, "direction": "higher_is_better"}
    picture = interval(changed("difference", -0.04, 0.0, **worse))
    assert x_of(picture, "circle", "cx") == 49
    assert 'x1="8.0" x2="90.0"' in picture
    # An error that falls is drawn to the right, where better is.
    picture = interval(changed("difference", -0.04, 0.0, original=0.9, result=0.88))
    assert x_of(picture, "circle", "cx") == 131
    assert 'x1="90.0" x2="172.0"' in picture


@pytest.mark.parametrize("bounds", [(0.0, 2.0), (0.5, float("inf")), (float("nan"), 2.0)])
def test_interval_that_no_axis_can_hold(bounds):
    assert interval(changed("ratio", *bounds, ratio=1.0)) is None


def test_elements_escape_everything_but_markup():
    assert element("td", "<", Markup("<b>"), None, 3, title="'\"&") == ('<td title="&#x27;&quot;&amp;">&lt;<b>3</td>')


def test_long_details_are_cut_and_say_so():
    assert text(list(range(42))).endswith("38, 39 and 2 more")
    table = records([{"name": f"w{index}"} for index in range(502)])
    assert "w499" in table
    assert "w500" not in table
    assert "and 2 more" in table


def test_manifest_names_origin_and_files(result, spec, tmp_path):
    context = Context(workdir=tmp_path, threads=2)
    write_manifest(
        tmp_path,
        result,
        spec,
        context,
        model_sha256="cd" * 32,
        data_sha256={"evaluation": "ef" * 32},
        step_keys=("k0", "k1"),
    )
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    lineage = manifest["lineage"]
    assert lineage["original"]["sha256"] == "cd" * 32
    assert lineage["data"]["evaluation"] == {"sha256": "ef" * 32, "bytes": 18_010, "samples": 450}
    assert [(step["type"], step["cached"], step["key"]) for step in lineage["steps"]] == [
        ("prune", True, "k0"),
        ("quantize", False, "k1"),
    ]
    assert lineage["result"]["sha256"] == manifest["artifacts"][0]["sha256"] == "ab" * 32
    assert PipelineSpec.model_validate(manifest["spec"]) == spec
    assert manifest["seed"] == 7
    assert (manifest["environment"]["device"], manifest["environment"]["threads"]) == ("cpu", 2)
    assert {"numpy", "onnx", "onnxruntime"} <= manifest["environment"]["libraries"].keys()
    assert manifest["started"] < manifest["finished"]


def test_report_is_written_as_one_file(result, spec, tmp_path):
    write_report(tmp_path, result, spec)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page(result, spec)
