"""Logs of the service's processes: a line for each event, as JSON for machines or as text for a terminal.

Every line says what it belongs to (request, job, attempt, tenant, trace), because whoever begins a piece of work binds
that once (`bound`). No line holds a secret: what looks like one is struck out on its way to the stream.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

from catalog.settings import Settings

_STRUCK = "***"
# Struck out wherever they stand. A password of the database is known besides, and so are keys of the blob store.
# Every repetition that another try could begin within is bounded: strangers choose some of what is logged, and must not
# choose how long that takes.
_SECRETS = (
    (re.compile(r"\b(lv_[0-9a-f]{12}_)[A-Za-z0-9_-]{20,}"), r"\1" + _STRUCK),
    (re.compile(r"\b(whsec_)[A-Za-z0-9+/=_-]+"), r"\1" + _STRUCK),
    (re.compile(r"\b(eyJ[A-Za-z0-9_-]{4,999}\.)[A-Za-z0-9_-]{1,9999}\.[A-Za-z0-9_-]+"), r"\1" + _STRUCK),
    (re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]{0,31}://[^\s:/@\"']{0,99}:)[^\s/@\"']{1,999}@"), r"\1" + _STRUCK + "@"),
    (re.compile(r"\b(bearer\s{1,9})(?!lv_|eyJ)[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE), r"\1" + _STRUCK),
    (re.compile(r"\b((?:password|secret_access_key|session_token)\s{0,9}[=:]\s{0,9}['\"]?)[^\s'\",;&]+",
                re.IGNORECASE), r"\1" + _STRUCK),
)  # fmt: skip
_SECRET_VARIABLES = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "OTEL_EXPORTER_OTLP_HEADERS", "PGPASSWORD")
# A shorter one is a word that stands in many lines, and no secret.
_SHORTEST_SECRET = 8

# As escapes; tabs are harmless.
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(9), *range(10, 32), 127, *range(128, 160))} | {
    10: "\\n",
    13: "\\r",
}

_context: ContextVar[dict[str, str | int]] = ContextVar("levity_log_context", default={})  # noqa: B039 - never changed
_known_secrets: list[str] = []


def no_trace() -> str:
    """Nothing is traced."""
    return ""


trace_id: Callable[[], str] = no_trace
"""Identifier of the trace that is under way, or an empty string; `catalog.tracing` puts its own here."""


@contextmanager
def bound(**fields: str | int | None) -> Iterator[None]:
    """Have every line that is logged within say these things: `request_id`, `job_id`, `attempt`, `tenant`, …."""
    known = {name: value for name, value in fields.items() if value is not None and value != ""}
    token = _context.set({**_context.get(), **known})
    try:
        yield
    finally:
        _context.reset(token)


def bound_fields() -> dict[str, str | int]:
    """What lines of this moment say beside their message."""
    found = dict(_context.get())
    trace = trace_id()
    return {**found, "trace_id": trace} if trace else found


def redact(text: str) -> str:
    """`text` with what is or looks like a secret struck out."""
    for secret in _known_secrets:
        text = text.replace(secret, _STRUCK)
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def configure(settings: Settings, process: str, *, text: str) -> None:
    """Take over all logging of this process.

    Args:
        settings: Level and format, and the secrets that no line may hold.
        process: What this process is, such as `api` or `worker-cpu`.
        text: Format of a line for a terminal, as of `logging.Formatter`.
    """
    _known_secrets[:] = _secrets_of(settings)
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_add_fields)
    handler.setFormatter(_formatter(settings.resolved_log_format, process, text))
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    for name in ("uvicorn", "uvicorn.access"):
        logger = logging.getLogger(name)
        if logger.handlers:  # an access log that is switched off has none, and stays so
            logger.handlers.clear()
            logger.propagate = True
    # It tells of every plugin and of every step at each start.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # Every wake-up would be a line, and says nothing about jobs.
    logging.getLogger("celery").setLevel(max(logging.WARNING, logging.getLogger().level))
    logging.captureWarnings(capture=True)
    sys.excepthook = _log_uncaught


def _secrets_of(settings: Settings) -> list[str]:
    found = {os.environ.get(name, "") for name in _SECRET_VARIABLES}
    found |= {value.get_secret_value() for _, value in settings if isinstance(value, SecretStr)}
    for url in (settings.database_url, settings.broker_url, settings.store_url):
        password = urlsplit(url).password or ""
        found |= {password, unquote(password)}
    return sorted((secret for secret in found if len(secret) >= _SHORTEST_SECRET), key=len, reverse=True)


def _add_fields(record: logging.LogRecord) -> bool:
    for name, value in bound_fields().items():
        record.__dict__.setdefault(name, value)
    return True


def _formatter(kind: Literal["json", "text"], process: str, text: str) -> logging.Formatter:
    if kind == "text":
        return _TextFormatter(text)
    # Not needed at a terminal.
    from pythonjsonlogger.core import RESERVED_ATTRS  # noqa: PLC0415
    from pythonjsonlogger.json import JsonFormatter  # noqa: PLC0415

    class RedactingJsonFormatter(JsonFormatter):
        def format(self, record: logging.LogRecord) -> str:
            return redact(super().format(record))

    return RedactingJsonFormatter(
        ["levelname", "name", "message"],
        rename_fields={"levelname": "level", "name": "logger", "exc_info": "exception"},
        static_fields={"process": process},
        timestamp="time",
        # uvicorn's messages come with a second form in colour.
        reserved_attrs=[*RESERVED_ATTRS, "color_message"],
        json_ensure_ascii=False,
    )


class _TextFormatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        # What a stranger sent must not look like a line of its own, nor speak to the terminal. Tracebacks follow later.
        return super().formatMessage(record).translate(_CONTROL)

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        request_id = getattr(record, "request_id", None)
        # Messages about jobs name them; a request's number is the one thing that a person cannot guess.
        return redact(f"{line} (request {request_id})" if request_id and request_id not in line else line)


def _log_uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> Any:  # noqa: ANN401
    if issubclass(kind, KeyboardInterrupt):
        return sys.__excepthook__(kind, error, traceback)
    return logging.getLogger("levity").critical("uncaught exception", exc_info=(kind, error, traceback))
