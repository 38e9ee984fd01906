"""What a child says of its spans is taken as data, and within bounds."""

from __future__ import annotations

import json
import time
from contextlib import suppress

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from catalog import logs, tracing
from workers.protocol import ProtocolViolation, SpanBegun, SpanEnded, read_event
from workers.spans import MOST_SPANS, ChildSpans


@pytest.fixture
def exported():
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.use(provider)
    yield lambda: {span.name: span for span in exporter.get_finished_spans()}
    tracing.use(None)


def begun(number, name, at=None, parent=None, **attributes):
    return SpanBegun(id=number, parent=parent, name=name, at=time.time() if at is None else at, attributes=attributes)


def ended(number, at=None, error=None):
    return SpanEnded(id=number, at=time.time() if at is None else at, error=error)


def test_spans_are_nested_as_the_child_says(exported):
    with tracing.span("child") as parent:
        spans = ChildSpans(parent)
        spans.hear(begun(0, "step prune", index=2))
        spans.hear(begun(1, "round", parent=0))
        spans.hear(ended(1))
        spans.hear(ended(0, error="operator_unsupported"))
        spans.close()
    found = exported()
    assert found["round"].parent.span_id == found["step prune"].context.span_id
    assert found["step prune"].parent.span_id == found["child"].context.span_id
    assert dict(found["step prune"].attributes) == {"levity.index": 2, "error.type": "operator_unsupported"}
    assert not found["step prune"].status.is_ok
    assert found["child"].status.is_unset


def test_times_are_kept_within_what_was_possible(exported):
    before = time.time_ns()
    with tracing.span("child") as parent:
        spans = ChildSpans(parent)
        spans.hear(begun(0, "long ago", at=-1e300))
        spans.hear(ended(0, at=-5.0))
        spans.hear(begun(1, "in the future", at=1e300))
        spans.hear(ended(1, at=1e300))
        spans.close()
    for name in ("long ago", "in the future"):
        span = exported()[name]
        assert before - 10**6 <= span.start_time <= span.end_time <= time.time_ns()


def test_what_makes_no_sense_is_left_out(exported):
    with tracing.span("child") as parent:
        spans = ChildSpans(parent)
        spans.hear(ended(7))
        spans.hear(begun(1, "one", parent=99))
        spans.hear(begun(1, "the same number"))
        spans.hear(begun(2, "its own parent", parent=2))
        spans.hear(begun(3, "cut off"))
        spans.hear(ended(1))
        spans.hear(ended(1))
        spans.close()
    found = exported()
    assert set(found) == {"child", "one", "its own parent", "cut off"}
    assert all(found[name].parent.span_id == found["child"].context.span_id for name in ("one", "its own parent"))
    assert found["cut off"].attributes["error.type"] == "cut_off"
    assert found["child"].attributes["levity.dropped_spans"] == 1


def test_a_child_may_have_so_many(exported):
    with tracing.span("child") as parent:
        spans = ChildSpans(parent)
        for number in range(MOST_SPANS + 50):
            spans.hear(begun(number, f"span {number}"))
            spans.hear(ended(number))
        spans.close()
    assert len(exported()) == MOST_SPANS + 1
    assert exported()["child"].attributes["levity.dropped_spans"] == 50


@pytest.mark.parametrize(
    "change",
    [
        {"name": "x" * 65},
        {"name": ""},
        {"name": "two\nlines"},
        {"id": -1},
        {"id": 2**40},
        {"at": "now"},
        {"attributes": {f"a{i}": 1 for i in range(9)}},
        {"attributes": {"x" * 41: 1}},
        {"attributes": {"http.route": "/"}},
        {"attributes": {"a": "x" * 201}},
        {"attributes": {"a": 2**63}},
        {"attributes": {"a": [1]}},
        {"more": 1},
    ],
)
def test_what_is_out_of_bounds_is_no_message(change):
    good = {"type": "span_begun", "id": 0, "parent": None, "name": "load", "at": 1.0, "attributes": {"a": "b"}}
    assert read_event(json.dumps(good).encode()).name == "load"
    with pytest.raises(ProtocolViolation):
        read_event(json.dumps(good | change).encode())


def test_without_tracing_nothing_is_done():
    with tracing.span("child", queue="cpu") as parent:
        spans = ChildSpans(parent)
        spans.hear(begun(0, "load"))
        spans.close()
        assert tracing.traceparent() is None
        assert logs.bound_fields() == {}
    tracing.current().fail("x")
    tracing.note_wait("wait", parent=None, seconds=1)


def test_a_parent_from_elsewhere_is_continued(exported):
    trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    with suppress(KeyError), tracing.span("attempt", parent=f"00-{trace}-{parent}-01", kind="consumer"):
        assert tracing.traceparent().startswith(f"00-{trace}-")
        assert logs.bound_fields() == {"trace_id": trace}
        raise KeyError
    with tracing.span("other", parent="nonsense"):
        pass
    found = exported()
    assert f"{found['attempt'].context.trace_id:032x}" == trace
    assert f"{found['attempt'].parent.span_id:016x}" == parent
    assert found["attempt"].attributes["error.type"] == "KeyError"
    assert found["other"].parent is None
