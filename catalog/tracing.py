"""Traces (OpenTelemetry), from a request over its job's attempts to the steps in the child.

Off unless a standard variable says where spans go: `OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`
or `OTEL_TRACES_EXPORTER`. While it is off, nothing of OpenTelemetry is imported here, and the functions of this module
do nothing. Sampling, resource and batches are set by the SDK's own variables.

Spans hold ids, codes and sizes, and never messages: those may quote what a caller sent.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Literal

from catalog import logs

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span as OtelSpan
    from opentelemetry.trace import Tracer

logger = logging.getLogger(__name__)

Value = str | bool | int | float
Kind = Literal["internal", "consumer", "client"]

_NANOSECONDS = 10**9
_tracer: Tracer | None = None
_provider: TracerProvider | None = None


class Span:
    """A piece of work in a trace; without tracing it is nobody's."""

    def __init__(self, span: OtelSpan | None = None) -> None:
        self._span = span

    def note(self, **attributes: Value | None) -> None:
        """Add attributes, each under `levity.` and its name; None is left out."""
        if self._span is not None:
            self._span.set_attributes(
                {f"levity.{name}": value for name, value in attributes.items() if value is not None}
            )

    def fail(self, code: str) -> None:
        """Mark it as failed with this code."""
        if self._span is not None:
            from opentelemetry.trace import StatusCode  # noqa: PLC0415 - imported already where there is a span

            self._span.set_status(StatusCode.ERROR, code)
            self._span.set_attribute("error.type", code)

    def child(self, name: str, *, at: float, attributes: Mapping[str, Value]) -> Span:
        """A span below this one that began at `at` (seconds since 1970). End it with `end`."""
        if self._span is None or _tracer is None:
            return Span()
        from opentelemetry.trace import set_span_in_context  # noqa: PLC0415

        context = set_span_in_context(self._span)
        named = {f"levity.{key}": value for key, value in attributes.items()}
        return Span(_tracer.start_span(name, context, start_time=_nanoseconds(at), attributes=named))

    def end(self, *, at: float) -> None:
        """It ended at `at`, in seconds since 1970."""
        if self._span is not None:
            self._span.end(_nanoseconds(at))


def start(service: str) -> None:
    """Trace this process where the environment says so.

    Args:
        service: `service.name` of its spans where the environment gives none.
    """
    if not _wanted():
        return
    try:
        exporter = _exporter()
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider as Provider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        logger.warning("OTEL_* variables ask for traces, but %s is missing: pip install 'levity[tracing]'", error.name)
        return
    if exporter is None:
        return
    named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    chosen = Provider(resource=Resource.create({} if named else {"service.name": service}))
    chosen.add_span_processor(BatchSpanProcessor(exporter))
    use(chosen)


def use(chosen: TracerProvider | None) -> None:
    """Trace with this provider from now on; with None not at all."""
    global _tracer, _provider  # noqa: PLW0603 - one for the process, as of logging
    _provider = chosen
    _tracer = None if chosen is None else chosen.get_tracer("levity")
    logs.trace_id = logs.no_trace if chosen is None else _trace_id


def stop() -> None:
    """Send what has not been sent yet."""
    if _provider is not None:
        _provider.shutdown()
    use(None)


def provider() -> TracerProvider | None:
    """What this process's spans are made with; None without tracing."""
    return _provider


def active() -> bool:
    """Whether this process is traced."""
    return _tracer is not None


def traceparent() -> str | None:
    """The span under way, in the form of W3C Trace Context; None without one."""
    if _tracer is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent")


def current() -> Span:
    """The span under way."""
    if _tracer is None:
        return Span()
    from opentelemetry.trace import get_current_span  # noqa: PLC0415

    return Span(get_current_span())


@contextmanager
def span(
    name: str, *, parent: str | None = None, kind: Kind = "internal", **attributes: Value | None
) -> Iterator[Span]:
    """Do a piece of work in a span of its own.

    An exception that leaves the block marks it as failed: with its `code` where it has one, else with its type.

    Args:
        name: What is done; one of few.
        parent: `traceparent` of the span that caused it, where that is of another process.
        kind: Its role.
        attributes: See `Span.note`.
    """
    if _tracer is None:
        yield Span()
        return
    from opentelemetry.trace import SpanKind  # noqa: PLC0415

    with _tracer.start_as_current_span(
        name, _context_of(parent), SpanKind[kind.upper()], record_exception=False, set_status_on_exception=False
    ) as started:
        work = Span(started)
        work.note(**attributes)
        try:
            yield work
        except Exception as error:
            work.fail(str(getattr(error, "code", type(error).__name__)))
            raise


def note_wait(name: str, *, parent: str | None, seconds: float, **attributes: Value | None) -> None:
    """A span for time that has passed just now while nothing was done."""
    if _tracer is None:
        return
    now = time.time()
    waited = Span(_tracer.start_span(name, _context_of(parent), start_time=_nanoseconds(now - seconds)))
    waited.note(**attributes)
    waited.end(at=now)


def _context_of(parent: str | None) -> Context | None:
    """The context that a `traceparent` names; None for that of this process."""
    if not parent:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

    return TraceContextTextMapPropagator().extract({"traceparent": parent})


def _wanted() -> bool:
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if exporter:
        return exporter != "none"
    return any(os.environ.get(name) for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"))


def _exporter() -> SpanExporter | None:
    wanted = os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() or "otlp"
    if wanted == "otlp":
        # By name: a type checker need not have the extra.
        module = import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        exporter: SpanExporter = module.OTLPSpanExporter()
        return exporter
    if wanted == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter  # noqa: PLC0415

        return ConsoleSpanExporter()
    logger.warning("OTEL_TRACES_EXPORTER=%s is not known here; otlp (over HTTP), console and none are", wanted)
    return None


def _trace_id() -> str:
    from opentelemetry.trace import format_trace_id, get_current_span  # noqa: PLC0415

    context = get_current_span().get_span_context()
    return format_trace_id(context.trace_id) if context.is_valid else ""


def _nanoseconds(seconds: float) -> int:
    return int(seconds * _NANOSECONDS)
