"""The dashboard, the alert rules and the scaling speak of metrics, labels and values that the service has."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from api.metrics import Metrics
from catalog.blobs import Blobs
from catalog.db import Database
from catalog.jobs.states import AttemptOutcome, JobKind, JobState, Queue
from catalog.settings import Settings
from catalog.storage.collector import Collector
from catalog.totals.metrics import COUNTERS, HISTOGRAMS
from tests.deploy.compose import ROOT
from tests.deploy.tools import run
from workers.failures import of_dead_child, out_of_memory

ALERTS = ROOT / "deploy/prometheus/alerts.yml"
DASHBOARD = ROOT / "deploy/grafana/levity.json"
GROUPS = yaml.safe_load(ALERTS.read_text())["groups"]
RULES = [rule for group in GROUPS for rule in group["rules"]]
PANELS = [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]
# Labels that Prometheus itself adds, and the one metric that it makes.
ADDED = {"instance", "job", "pod"}
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",), "info": ("_info",)}
VALUES = {
    "queue": set(Queue),
    "kind": set(JobKind),
    "outcome": set(AttemptOutcome) | {"delivered"},
    "state": set(JobState),
    "method": {"POST"},
    "route": {"/v1/jobs"},
}


def expressions():
    for rule in RULES:
        yield pytest.param(rule["expr"], id=rule.get("alert") or rule["record"])
    for panel in PANELS:
        for target in panel["targets"]:
            yield pytest.param(target["expr"].replace("$__rate_interval", "5m"), id=panel["title"])
    for path in sorted((ROOT / "deploy/kubernetes").rglob("*.yaml")):
        for query in re.findall(r"^ +query: (.+)$", path.read_text(), re.MULTILINE):
            yield pytest.param(query, id=path.stem)


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """Names of samples with the names of their labels, as the service exposes them, and those that rules record."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("data"))
    database = Database(settings.resolved_database_url)
    database.migrate()
    blobs = Blobs.from_settings(settings)
    Collector(settings, database, blobs).run()  # what the store holds is told once it was looked through
    metrics = Metrics(database, blobs, worker_silence_seconds=60)
    labels = {metric.name.removesuffix("_total"): set(metric.labels) for metric in (*COUNTERS, *HISTOGRAMS)}
    labels |= {counter._name: set(counter._labelnames) for counter in (metrics.requests, metrics.latency)}
    labels |= {counter._name: set(counter._labelnames) for counter in (metrics.received, metrics.sent)}
    labels |= {"levity_jobs": {"kind", "queue", "state"}, "levity_worker_seen_seconds": {"worker", "queue"}}
    found = {"up": set()}
    for family in text_string_to_metric_families(metrics.text().decode()):
        of_family = labels.get(family.name, set()).union(*(sample.labels for sample in family.samples))
        for suffix in SUFFIXES[family.type]:
            found[family.name + suffix] = of_family | ({"le"} if suffix == "_bucket" else set())
    database.dispose()
    for rule in RULES:
        if "record" in rule:
            (source,) = re.findall(r"levity_\w+", rule["expr"])
            found[rule["record"]] = found[source]
    return found


def selectors(expression):
    """All selectors and groupings below a parsed expression."""
    found = []

    def visit(node):
        if isinstance(node, promql_parser.VectorSelector):
            found.append((node.name, node.matchers.matchers, set()))
        elif isinstance(node, promql_parser.MatrixSelector):
            visit(node.vector_selector)
        elif isinstance(node, promql_parser.AggregateExpr):
            visit(node.expr)
            if node.modifier is not None:
                found.append((None, [], set(node.modifier.labels)))
        elif isinstance(node, promql_parser.BinaryExpr):
            visit(node.lhs)
            visit(node.rhs)
        elif isinstance(node, promql_parser.Call):
            for argument in node.args:
                visit(argument)
        elif isinstance(node, promql_parser.ParenExpr | promql_parser.UnaryExpr):
            visit(node.expr)
        else:
            assert isinstance(node, promql_parser.NumberLiteral), node

    visit(promql_parser.parse(expression))
    return found


@pytest.mark.parametrize("expression", list(expressions()))
def test_what_is_asked_for_exists(expression, known):
    found = selectors(expression)
    names = {name for name, _, _ in found if name}
    assert names
    assert names <= set(known)
    labels = set().union(*(known[name] for name in names)) | ADDED
    for name, matchers, grouped in found:
        assert grouped <= labels, expression
        for matcher in matchers:
            assert matcher.name in known[name] | ADDED, (name, matcher.name)
            values = {value for value in matcher.value.split("|") if matcher.name in VALUES}
            assert values <= VALUES.get(matcher.name, set()), (name, matcher.name, values)


def test_codes_that_alerts_name_are_given():
    """By the worker, for what happens to its child and to itself, and by the library."""
    named = {
        code for rule in RULES for codes in re.findall(r'code=~"([^"]+)"', rule["expr"]) for code in codes.split("|")
    }
    given = {of_dead_child(-9, "", None).code, of_dead_child(1, "", None).code, out_of_memory(None).code}
    sources = [*Path(ROOT, "workers").glob("*.py"), ROOT / "compression/pipeline.py", ROOT / "catalog/errors.py"]
    text = "".join(path.read_text() for path in sources)
    assert named
    assert {code for code in named if code not in given and f'"{code}"' not in text} == set()


def test_every_alert_is_explained_and_tested():
    page = (ROOT / "docs/operators.md").read_text()
    section = page.partition("## Alerts: what each means")[2].partition("\n## ")[0]
    tested = (ROOT / "tests/deploy/alerts_test.yml").read_text()
    alerts = {rule["alert"]: rule for rule in RULES if "alert" in rule}
    assert set(re.findall(r"`(Levity[A-Z]\w+)`", section)) == set(alerts)
    for name, rule in alerts.items():
        assert f"`{name}`" in section
        assert tested.count(f"alertname: {name}") >= 1
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"]


def test_the_operators_page_names_metrics_that_exist(known):
    page = (ROOT / "docs/operators.md").read_text()
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in known} | set(known)
    assert set(re.findall(r"`(levity_[a-z_]+)`", page)) <= families


def test_panels_have_titles_of_their_own_and_do_not_overlap():
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
    taken = set()
    for panel in PANELS:
        place = panel["gridPos"]
        cells = {(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])}
        assert cells.isdisjoint(taken), panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool, a part of Prometheus, is absent"
)


@needs_promtool
def test_rules_by_prometheus_own_tool():
    assert "SUCCESS" in run("promtool", "check", "rules", str(ALERTS))
    assert "SUCCESS" in run("promtool", "test", "rules", str(ROOT / "tests/deploy/alerts_test.yml"))
    run("promtool", "check", "config", "--syntax-only", str(ROOT / "deploy/prometheus/prometheus.yml"))


@needs_promtool
def test_exposition_by_prometheus_own_tool(tmp_path):
    settings = Settings(data_dir=tmp_path)
    database = Database(settings.resolved_database_url)
    database.migrate()
    metrics = Metrics(database, Blobs.from_settings(settings), worker_silence_seconds=60)
    metrics.requests.labels("GET", "/x", "200").inc()
    run("promtool", "check", "metrics", stdin=metrics.text().decode())
    database.dispose()
