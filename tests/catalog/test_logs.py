"""What lines of the log look like, and what they never hold."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from contextvars import copy_context
from datetime import UTC, datetime, timedelta

import pytest

from catalog import logs
from catalog.keys.secrets import new_key
from catalog.settings import Settings
from catalog.webhooks.signatures import new_secret

DATABASE = "postgresql+psycopg://levity:s3cr%40t-of-the-db@127.0.0.1/levity"


def run(script: str, **environment: str) -> list[str]:
    """Lines that a process with these logs writes."""
    head = "import logging\nfrom catalog import logs\nfrom catalog.settings import Settings\n"
    head += "logs.configure(Settings(), 'api', text='%(levelname)s %(name)s: %(message)s')\n"
    done = subprocess.run(
        [sys.executable, "-c", head + script], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    return done.stderr.splitlines()


def test_lines_for_machines():
    script = """
log = logging.getLogger("api.jobs")
with logs.bound(request_id="req-1", tenant="acme", job_id=None):
    log.warning("two\\nlines, %s", "ünïcode")
    with logs.bound(job_id="job_1", attempt=2):
        try:
            raise ValueError("wrong")
        except ValueError:
            log.exception("it failed")
log.info("outside")
log.debug("not shown")
logging.getLogger("celery.worker").info("not shown")
raise KeyError("uncaught")
"""
    first, second, third, last = map(json.loads, run(script))
    assert datetime.now(UTC) - datetime.fromisoformat(first.pop("time")) < timedelta(seconds=60)
    assert first == {
        "level": "WARNING",
        "logger": "api.jobs",
        "message": "two\nlines, ünïcode",
        "process": "api",
        "request_id": "req-1",
        "tenant": "acme",
    }
    assert (second["request_id"], second["job_id"], second["attempt"]) == ("req-1", "job_1", 2)
    assert second["exception"].endswith("ValueError: wrong")
    assert {"request_id", "job_id", "tenant"}.isdisjoint(third)
    assert (last["level"], last["message"]) == ("CRITICAL", "uncaught exception")
    assert "KeyError" in last["exception"]


def test_lines_for_people():
    script = """
with logs.bound(request_id="req-1"):
    logging.getLogger("api").info("hello")
    logging.getLogger("api").info("hello req-1")
logging.getLogger("api").info("hello")
"""
    expected = ["INFO api: hello (request req-1)", "INFO api: hello req-1", "INFO api: hello"]
    script += 'logging.getLogger("api").info("forged\\nINFO api: \\x1b[31mred\\x1b[0m")'
    expected += [r"INFO api: forged\nINFO api: \x1b[31mred\x1b[0m"]
    assert run(script, LEVITY_LOG_FORMAT="text") == expected


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_no_line_holds_a_secret(log_format):
    key, secret = new_key().text, new_secret()
    token = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJtZSJ9.c2lnbmF0dXJlLW9mLXRoZS10b2tlbg"
    hidden = [
        key.rpartition("_")[2] if key.count("_") == 2 else key[16:],
        secret.removeprefix("whsec_"),
        "s3cr%40t-of-the-db",
        "s3cr@t-of-the-db",
        "pass-of-redis",
        "aws-secret-value",
        "password-of-a-setting",
        "another-dbs-password",
        token.partition(".")[2],
        "opaque-token-1234",
        "hunter2",
    ]
    script = f"""
log = logging.getLogger("x")
log.info("key %s, secret %s", {key!r}, {secret!r})
log.info("database %s and s3cr@t-of-the-db", {DATABASE!r})
log.info("broker redis://:pass-of-redis@host:6379/0, store aws-secret-value")
log.info("password-of-a-setting")
log.info("Authorization: Bearer {token}")
log.info("authorization: bearer opaque-token-1234")
log.info("elsewhere: postgresql://u:another-dbs-password@h/d?sslmode=require; password=hunter2;")
try:
    raise RuntimeError({key!r})
except RuntimeError:
    log.exception("failed with %s", {secret!r})
raise RuntimeError({DATABASE!r})
"""
    environment = {
        "LEVITY_DATABASE_URL": DATABASE,
        "LEVITY_BROKER_URL": "redis://:pass-of-redis@host:6379/0",
        "LEVITY_STORE_SECRET_ACCESS_KEY": "password-of-a-setting",
        "AWS_SECRET_ACCESS_KEY": "aws-secret-value",
        "LEVITY_LOG_FORMAT": log_format,
    }
    text = "\n".join(run(script, **environment))
    assert [value for value in hidden if value in text] == []
    # Enough is left to know which key it was, and which host.
    assert key[:16] in text
    assert "whsec_***" in text
    assert "postgresql+psycopg://levity:***@127.0.0.1/levity" in text
    if log_format == "json":
        assert all(json.loads(line)["process"] == "api" for line in text.splitlines())


@pytest.mark.parametrize(
    "unit",
    ["a.", "-eyJaaaa", "eyJaaaa.", "a://b:", "a:// ", "bearer ", "password= ", "password ", "whsec_", "lv_", "\t"],
)
def test_a_hostile_line_takes_no_longer_than_others(unit):
    line = unit * (200_000 // len(unit))
    started = time.process_time()
    logs.redact(line)
    assert time.process_time() - started < 5


def test_what_is_bound_stays_with_its_thread_unless_it_is_carried():
    seen = {}
    with logs.bound(job_id="job_1"):
        carried = copy_context()
        threads = [
            threading.Thread(target=lambda: seen.update(bare=logs.bound_fields())),
            threading.Thread(target=carried.run, args=(lambda: seen.update(carried=logs.bound_fields()),)),
        ]
        for thread in threads:
            thread.start()
            thread.join()
    assert seen == {"bare": {}, "carried": {"job_id": "job_1"}}
    assert logs.bound_fields() == {}


def test_form_of_lines_by_default(monkeypatch):
    class Terminal:
        def __init__(self, *, real):
            self.isatty = lambda: real

    for real, form in ((True, "text"), (False, "json")):
        monkeypatch.setattr(sys, "stderr", Terminal(real=real))
        assert Settings().resolved_log_format == form
        assert Settings(log_format="json").resolved_log_format == "json"
