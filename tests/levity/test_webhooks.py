from __future__ import annotations

import pytest

from levity import LevityError
from levity.cli import main
from tests.levity.stub import Answer, problem, reply

WEBHOOK = {
    "id": "whk_1",
    "job_id": None,
    "url": "https://example.com/",
    "events": ["job.failed"],
    "description": "",
    "enabled": True,
    "disabled_reason": None,
    "failing_since": None,
    "previous_secret_expires_at": None,
    "created_at": "2026-11-26T10:00:00.000Z",
}
GONE = {**WEBHOOK, "enabled": False, "disabled_reason": {"code": "gone", "message": "It is gone.", "at": "now"}}
ATTEMPT = {"number": 1, "status": 503, "error": {"code": "bad_status", "message": "It answered 503."}}
DELIVERY = {
    "id": "dlv_1",
    "webhook_id": "whk_1",
    "job_id": "job_1",
    "type": "job.failed",
    "state": "waiting",
    "payload": {"type": "job.failed"},
    "attempts": [ATTEMPT],
    "next_attempt_at": "2026-11-26T10:05:00.000Z",
    "created_at": "2026-11-26T10:00:00.000Z",
    "finished_at": None,
}


def test_registering_gives_the_secret_and_does_not_show_it(stub, levity):
    stub.on("POST /v1/webhooks", reply({"webhook": WEBHOOK, "secret": "whsec_abc"}, 201))
    webhook = levity.create_webhook("https://example.com/", events=["job.failed"])
    assert (webhook.id, webhook.secret, webhook.enabled) == ("whk_1", "whsec_abc", True)
    assert "whsec_abc" not in repr(webhook)
    assert stub.requests[0].json == {
        "url": "https://example.com/",
        "description": "",
        "enabled": True,
        "events": ["job.failed"],
    }


def test_registering_is_not_repeated(stub, levity):
    stub.on("POST /v1/webhooks", Answer(503))
    with pytest.raises(LevityError):
        levity.create_webhook("https://example.com/")
    assert len(stub.requests) == 1


def test_changing_sends_only_what_is_given(stub, levity):
    stub.on("PATCH /v1/webhooks/whk_1", Answer(503), reply(GONE))
    webhook = levity.update_webhook("whk_1", enabled=False)
    assert (webhook.enabled, webhook.disabled_reason["code"], webhook.secret) == (False, "gone", None)
    assert [request.json for request in stub.requests] == [{"enabled": False}] * 2


def test_deliveries_come_page_by_page(stub, levity):
    stub.on(
        "GET /v1/webhooks/whk_1/deliveries",
        reply({"items": [DELIVERY], "next_cursor": "abc"}),
        reply({"items": [{**DELIVERY, "id": "dlv_0"}], "next_cursor": None}),
    )
    found = list(levity.deliveries("whk_1", state="waiting"))
    assert [one.id for one in found] == ["dlv_1", "dlv_0"]
    assert found[0].attempts == [ATTEMPT]
    assert [request.path.partition("?")[2] for request in stub.requests] == [
        "state=waiting",
        "state=waiting&cursor=abc",
    ]


def test_a_jobs_own_webhook(stub, levity):
    stub.on("POST /v1/jobs", reply({"id": "job_1", "state": "queued"}, 202))
    webhook = {"url": "https://example.com/", "secret": "whsec_abc"}
    levity.submit("mdl_1", [{"type": "prune"}], webhook=webhook)
    assert stub.requests[0].json["webhook"] == webhook


def test_commands(stub, capsys):
    def run(*words):
        status = main(["webhooks", *words, "--url", stub.url])
        return status, capsys.readouterr().out

    stub.on("POST /v1/webhooks", reply({"webhook": WEBHOOK, "secret": "whsec_abc"}, 201))
    assert run("create", "https://example.com/", "--event", "job.failed") == (0, "whk_1\nwhsec_abc\n")
    assert stub.requests[-1].json["events"] == ["job.failed"]
    stub.on("GET /v1/webhooks", reply({"items": [WEBHOOK, GONE], "next_cursor": None}))
    status, shown = run("list")
    assert [line.split("  ")[1].strip() for line in shown.splitlines()[2:]] == ["enabled", "disabled (gone)"]
    stub.on("GET /v1/webhooks/whk_1/deliveries", reply({"items": [DELIVERY], "next_cursor": None}))
    status, shown = run("deliveries", "whk_1")
    assert (status, shown.splitlines()[-1].endswith("503 bad_status")) == (0, True)
    stub.on("POST /v1/webhooks/whk_1/deliveries/dlv_1/replay", reply(DELIVERY, 202))
    assert run("replay", "whk_1", "dlv_1") == (0, "dlv_1 is waiting.\n")
    stub.on("POST /v1/webhooks/whk_1/rotate", reply({"webhook": WEBHOOK, "secret": "whsec_def"}))
    assert run("rotate", "whk_1") == (0, "whsec_def\n")
    stub.on("PATCH /v1/webhooks/whk_1", reply(WEBHOOK))
    assert run("enable", "whk_1") == (0, "whk_1 is enabled.\n")
    stub.on("POST /v1/webhooks/whk_1/test", problem(409, "webhook_disabled"))
    assert run("test", "whk_1")[0] == 1
    stub.on("DELETE /v1/webhooks/whk_1", Answer(204))
    assert run("delete", "whk_1") == (0, "whk_1 is deleted.\n")
