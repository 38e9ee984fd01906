"""When a process is traced, and that it costs nothing otherwise."""

from __future__ import annotations

import subprocess
import sys

import pytest

HTTP = "http://127.0.0.1:1"


def run(script: str, **environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    return (done.stdout + done.stderr).splitlines()


@pytest.mark.parametrize(
    ("environment", "traced"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "mine"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": HTTP}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": HTTP}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": HTTP, "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": HTTP, "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
    ],
)
def test_the_standard_variables_decide(environment, traced):
    script = """
import sys
from catalog import tracing
tracing.start("levity-api")
print(tracing.active(), any(name.startswith("opentelemetry.sdk") for name in sys.modules))
sys.stdout.flush()
import os; os._exit(0)
"""
    assert run(script, **environment) == [f"{traced} {traced}"]


@pytest.mark.parametrize(
    ("environment", "service"),
    [
        ({}, "levity-api"),
        ({"OTEL_SERVICE_NAME": "mine"}, "mine"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=ours,deployment.environment.name=test"}, "ours"),
    ],
)
def test_the_service_has_a_name(environment, service):
    script = """
from catalog import tracing
tracing.start("levity-api")
print(tracing.provider().resource.attributes["service.name"])
"""
    assert run(script, OTEL_TRACES_EXPORTER="console", **environment) == [service]


def test_spans_go_to_the_console():
    script = """
from catalog import tracing
tracing.start("levity-api")
with tracing.span("attempt compress", queue="cpu"):
    pass
tracing.stop()
print(tracing.active())
"""
    lines = run(script, OTEL_TRACES_EXPORTER="console")
    assert any('"name": "attempt compress"' in line for line in lines)
    assert any('"levity.queue": "cpu"' in line for line in lines)
    assert lines[-1] == "False"


@pytest.mark.parametrize(
    ("prepare", "environment", "words"),
    [
        ("sys.modules['opentelemetry.sdk'] = None", {"OTEL_EXPORTER_OTLP_ENDPOINT": HTTP}, "levity[tracing]"),
        ("", {"OTEL_TRACES_EXPORTER": "zipkin"}, "zipkin is not known"),
    ],
)
def test_what_cannot_be_had_is_said_and_stops_nothing(prepare, environment, words):
    script = f"""
import logging, sys
{prepare}
logging.basicConfig(stream=sys.stdout)
from catalog import tracing
tracing.start("levity-api")
with tracing.span("x"):
    print(tracing.active())
"""
    warning, last = run(script, **environment)
    assert words in warning
    assert last == "False"


@pytest.mark.parametrize("module", ["api.app", "workers.service"])
def test_nothing_of_it_is_imported_without_need(module):
    script = f"""
import sys, {module}
print(sorted(name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter", "requests",
    "pythonjsonlogger")) or ({module!r} != "api.app" and name.startswith("opentelemetry"))))
"""
    # FastAPI and redis look for OpenTelemetry's API themselves.
    found = run(script)
    assert found == ["[]"]
