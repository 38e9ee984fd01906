"""The outbox and the protocol of senders, on SQLite and PostgreSQL."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from sqlalchemy import func, select, update

from catalog.db import Database, db_now
from catalog.errors import Conflict, Fenced, NotFound
from catalog.jobs.leases import Leases
from catalog.jobs.repository import Jobs, NewJob
from catalog.jobs.states import JobKind, Queue
from catalog.webhooks.deliveries import Deliveries, Outcome
from catalog.webhooks.repository import NewWebhook, Webhooks
from catalog.webhooks.signatures import new_secret
from catalog.webhooks.states import BACKOFF_SECONDS, MAX_ATTEMPTS, EventType
from catalog.webhooks.tables import DeliveryAttemptRow, DeliveryRow, WebhookRow

URL = "https://example.com/hook"
ALL = tuple(EventType)
ERROR = {"code": "child_crashed", "message": "It crashed.", "retryable": True, "log_tail": "a secret path"}
OK = Outcome(duration_seconds=0.1, status=204)
DOWN = Outcome(duration_seconds=0.1, status=503, error_code="bad_status", error_message="The receiver answered 503.")
GONE = Outcome(duration_seconds=0.1, status=410, error_code="bad_status", error_message="The receiver answered 410.")
FIVE_DAYS = 5 * 86400


def add_webhook(database: Database, url: str = URL, events=ALL, **more) -> str:
    with database.write() as session:
        return Webhooks(session).add(NewWebhook(url, events, **more)).id


def new_job(**values) -> NewJob:
    return NewJob(
        **{"kind": JobKind.COMPRESS, "queue": Queue.CPU, "max_attempts": 2, "time_limit_seconds": 60.0, **values}
    )


def add_job(database: Database, **values) -> str:
    with database.write() as session:
        return Jobs(session).add(new_job(**values)).id


def claim_job(database: Database):
    with database.write() as session:
        return Leases(session).claim(Queue.CPU, owner="worker", lease_seconds=60)[0]


def outbox(database: Database) -> list[DeliveryRow]:
    with database.read() as session:
        return list(session.scalars(select(DeliveryRow).order_by(DeliveryRow.id)))


def claim(database: Database, owner: str = "sender"):
    with database.write() as session:
        return Deliveries(session).claim(owner=owner, lease_seconds=60)


def settle(database: Database, claimed, outcome: Outcome):
    with database.write() as session:
        return Deliveries(session).settle(claimed, outcome, disable_after_seconds=FIVE_DAYS)


def webhook(database: Database, webhook_id: str) -> WebhookRow:
    with database.read() as session:
        return Webhooks(session).get(webhook_id)


def change(database: Database, table, row_id: str, **values) -> None:
    with database.write() as session:
        session.execute(update(table).where(table.id == row_id).values(**values))


def make_due(database: Database) -> None:
    with database.write() as session:
        session.execute(update(DeliveryRow).where(DeliveryRow.state == "waiting").values(next_attempt_at=db_now() - 1))


def attempts(database: Database) -> list[DeliveryAttemptRow]:
    with database.read() as session:
        return list(session.scalars(select(DeliveryAttemptRow).order_by(DeliveryAttemptRow.number)))


def test_each_change_of_a_jobs_state_is_told(database):
    add_webhook(database)
    job_id = add_job(database, name="half", labels={"team": "vision"})
    claimed = claim_job(database)
    with database.write() as session:
        Leases(session).progress(claimed, phase="pruning", fraction=0.5, message="")
        Leases(session).fail(claimed, ERROR, retry=False)
    rows = outbox(database)
    assert [row.type for row in rows] == ["job.queued", "job.started", "job.failed"]
    assert {(row.state, row.job_id, row.lane) for row in rows} == {("waiting", job_id, "https://example.com")}
    started, failed = (json.loads(row.payload) for row in rows[1:])
    assert started["data"]["job"]["state"] == "running"
    assert (started["data"]["job"]["attempt"], started["data"]["job"]["error"]) == (1, None)
    assert failed["type"] == "job.failed"
    job = failed["data"]["job"]
    assert (job["name"], job["labels"], job["links"]["self"]) == ("half", {"team": "vision"}, f"/v1/jobs/{job_id}")
    # The log stays where it is.
    assert job["error"] == {"code": "child_crashed", "message": "It crashed.", "retryable": True, "attempt": 1}
    assert failed["timestamp"] >= job["finished_at"] >= job["started_at"]


def test_what_ends_queued_jobs_is_told(database):
    add_webhook(database, events=[EventType.JOB_CANCELLED, EventType.JOB_EXPIRED])
    cancelled, overdue = add_job(database), add_job(database, start_within_seconds=-1)
    with database.write() as session:
        Jobs(session).request_cancel(cancelled)
        Leases(session).sweep()
    assert [(row.type, row.job_id) for row in outbox(database)] == [
        ("job.cancelled", cancelled),
        ("job.expired", overdue),
    ]


def test_what_is_rolled_back_is_told_to_nobody(database):
    add_webhook(database)
    woken = []
    database.after_outbox = lambda: woken.append(True)

    def submit_and_fail():
        with database.write() as session:
            Jobs(session).add(new_job())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        submit_and_fail()
    assert (outbox(database), woken) == ([], [])
    add_job(database)
    assert (len(outbox(database)), woken) == (1, [True])


def test_who_is_told(database):
    everybody = add_webhook(database)
    add_webhook(database, enabled=False)
    add_webhook(database, events=[EventType.JOB_FAILED])
    secret = new_secret()
    own = NewWebhook("https://example.org:8443/", [EventType.JOB_QUEUED], secret=secret)
    other, named = add_job(database), add_job(database, webhook=own)
    add_job(database, kind=JobKind.INSPECT_MODEL)
    rows = outbox(database)
    assert [row.job_id for row in rows if row.webhook_id == everybody] == [other, named]
    (own_row,) = [row for row in rows if row.webhook_id != everybody]
    assert (own_row.job_id, own_row.lane) == (named, "https://example.org:8443")
    with database.read() as session:
        assert [row.id for row in Webhooks(session).page(limit=9, job_id=named)] == [own_row.webhook_id]
        assert own_row.webhook_id not in [row.id for row in Webhooks(session).page(limit=9)]
        assert Webhooks(session).count() == 3
    assert webhook(database, own_row.webhook_id).secret == secret


def test_deliveries_outlive_their_job(database):
    own = NewWebhook(URL, ALL, secret=new_secret())
    job_id = add_job(database, webhook=own)
    with database.write() as session:
        Jobs(session).request_cancel(job_id)
        Jobs(session).delete(job_id)
    assert [row.type for row in outbox(database)] == ["job.queued", "job.cancelled"]
    make_due(database)
    assert settle(database, claim(database), OK) == "delivered"


def test_attempts_until_one_succeeds(database):
    webhook_id = add_webhook(database)
    add_job(database)
    first = claim(database)
    assert (first.attempt, first.url, first.secrets) == (1, URL, (webhook(database, webhook_id).secret,))
    assert claim(database) is None
    assert settle(database, first, DOWN) == "waiting"
    assert webhook(database, webhook_id).failing_since == pytest.approx(first.now, abs=5)
    (row,) = outbox(database)
    assert row.next_attempt_at - first.now == pytest.approx(BACKOFF_SECONDS[0], rel=0.5, abs=1)
    assert claim(database) is None
    with database.read() as session:
        assert not Deliveries(session).due()
        assert 0 < Deliveries(session).seconds_until_due() <= BACKOFF_SECONDS[0] * 1.5
    make_due(database)
    second = claim(database)
    assert (second.delivery_id, second.attempt, second.payload) == (first.delivery_id, 2, first.payload)
    assert settle(database, second, OK) == "delivered"
    assert webhook(database, webhook_id).failing_since is None
    assert [(one.number, one.status, one.error) for one in attempts(database)] == [
        (1, 503, {"code": "bad_status", "message": "The receiver answered 503."}),
        (2, 204, None),
    ]


def test_the_schedule_is_ten_attempts_over_75_hours(database):
    assert sum(BACKOFF_SECONDS) / 3600 == pytest.approx(75.58, abs=0.01)
    add_webhook(database)
    add_job(database)
    waits = []
    for _ in range(MAX_ATTEMPTS - 1):
        claimed = claim(database)
        assert settle(database, claimed, DOWN) == "waiting"
        (row,) = outbox(database)
        waits.append(row.next_attempt_at - claimed.now)
        make_due(database)
    assert waits == [pytest.approx(pause, rel=0.5, abs=2) for pause in BACKOFF_SECONDS]
    assert settle(database, claim(database), DOWN) == "failed"
    assert claim(database) is None
    assert len(attempts(database)) == MAX_ATTEMPTS == 10


def test_a_receiver_that_is_gone_is_left_alone(database):
    webhook_id = add_webhook(database)
    add_job(database)
    add_job(database)
    assert settle(database, claim(database), GONE) == "failed"
    row = webhook(database, webhook_id)
    assert (row.enabled, row.disabled["code"]) == (False, "gone")
    assert {delivery.state for delivery in outbox(database)} == {"failed"}
    add_job(database)
    assert len(outbox(database)) == 2


@pytest.mark.parametrize(("days", "enabled"), [(4, True), (6, False)])
def test_days_of_failure_disable(database, days, enabled):
    webhook_id = add_webhook(database)
    add_job(database)
    change(database, WebhookRow, webhook_id, failing_since=db_now() - days * 86400)
    settle(database, claim(database), DOWN)
    # Attempts are left: another one may succeed.
    assert webhook(database, webhook_id).enabled
    change(database, DeliveryRow, outbox(database)[0].id, attempts_left=1)
    make_due(database)
    assert settle(database, claim(database), DOWN) == "failed"
    row = webhook(database, webhook_id)
    assert row.enabled == enabled
    assert (row.disabled or {}).get("code") == (None if enabled else "failing")


def test_a_worker_that_dies_while_sending(database):
    add_webhook(database)
    add_job(database)
    lost = claim(database, "dies")
    with database.write() as session:
        Deliveries(session).sweep()
    assert claim(database) is None
    change(database, DeliveryRow, lost.delivery_id, lease_until=db_now() - 1)
    with database.read() as session:
        assert Deliveries(session).due()
    with database.write() as session:
        Deliveries(session).sweep()
    again = claim(database, "lives")
    assert (again.delivery_id, again.attempt) == (lost.delivery_id, 2)
    with pytest.raises(Fenced):
        settle(database, lost, DOWN)
    assert settle(database, again, OK) == "delivered"
    assert [(one.number, (one.error or {}).get("code")) for one in attempts(database)] == [
        (1, "worker_lost"),
        (2, None),
    ]


def test_a_worker_that_stops_gives_back(database):
    add_webhook(database)
    add_job(database)
    with database.write() as session:
        deliveries = Deliveries(session)
        deliveries.release(deliveries.claim(owner="stops", lease_seconds=60))
    (row,) = outbox(database)
    assert (row.state, row.attempt, row.attempts_left) == ("waiting", 1, MAX_ATTEMPTS)
    assert claim(database).attempt == 2


def test_one_receiver_never_takes_all_senders(database):
    add_webhook(database, "https://slow.example/a")
    add_webhook(database, "https://slow.example/b")
    add_webhook(database, "https://quick.example/")
    for _ in range(3):
        add_job(database)
    claims = []
    while (claimed := claim(database)) is not None:
        claims.append(claimed)
    assert sorted(claimed.url.partition("://")[2].partition("/")[0] for claimed in claims) == [
        "quick.example",
        "quick.example",
        "slow.example",
        "slow.example",
    ]
    settle(database, claims[0], OK)
    assert claim(database).url.startswith(claims[0].url.rpartition("/")[0])


def test_many_senders_never_share_an_attempt(database):
    for number in range(20):
        add_webhook(database, f"https://host{number}.example/")
    add_job(database)
    barrier = threading.Barrier(8)

    def claim_all(number: int) -> list[str]:
        barrier.wait()
        mine = []
        while (claimed := claim(database, f"sender-{number}")) is not None:
            mine.append(claimed.delivery_id)
        return mine

    with ThreadPoolExecutor(8) as threads:
        claimed = [one for mine in threads.map(claim_all, range(8)) for one in mine]
    assert sorted(claimed) == sorted(row.id for row in outbox(database))
    assert len(set(claimed)) == 20


def test_rotation_signs_with_both_until_the_overlap_ends(database):
    webhook_id = add_webhook(database)
    old = webhook(database, webhook_id).secret
    with database.write() as session:
        webhooks = Webhooks(session)
        new = webhooks.rotate(webhooks.get(webhook_id, lock=True), overlap_seconds=3600).secret
    assert new != old
    add_job(database)
    assert claim(database).secrets == (new, old)
    change(database, WebhookRow, webhook_id, previous_secret_until=db_now() - 1)
    add_job(database)
    assert claim(database).secrets == (new,)


def test_replay(database):
    webhook_id = add_webhook(database)
    add_job(database)
    first = claim(database)
    with pytest.raises(Conflict) as refused, database.write() as session:
        Webhooks(session).replay(webhook_id, first.delivery_id)
    assert refused.value.code == "delivery_in_flight"
    settle(database, first, OK)
    with database.write() as session:
        row = Webhooks(session).replay(webhook_id, first.delivery_id)
    assert (row.state, row.attempts_left, row.finished_at) == ("waiting", MAX_ATTEMPTS, None)
    again = claim(database)
    assert (again.delivery_id, again.attempt, again.payload) == (first.delivery_id, 2, first.payload)


def test_disabling_ends_what_waits_and_enabling_forgets_why(database):
    webhook_id = add_webhook(database)
    add_job(database)
    with database.write() as session:
        webhooks = Webhooks(session)
        webhooks.change(webhooks.get(webhook_id, lock=True), {"enabled": False})
    (row,) = outbox(database)
    assert (row.state, row.next_attempt_at) == ("failed", None)
    with pytest.raises(Conflict) as refused, database.write() as session:
        Webhooks(session).replay(webhook_id, row.id)
    assert refused.value.code == "webhook_disabled"
    with database.write() as session:
        webhooks = Webhooks(session)
        enabled = webhooks.change(webhooks.get(webhook_id, lock=True), {"enabled": True})
        assert (enabled.enabled, enabled.disabled) == (True, None)
        webhooks.replay(webhook_id, row.id)
    assert claim(database).delivery_id == row.id


def test_a_webhook_deleted_while_it_is_sent_to(database):
    webhook_id = add_webhook(database)
    add_job(database)
    claimed = claim(database)
    with database.write() as session:
        webhooks = Webhooks(session)
        webhooks.delete(webhooks.get(webhook_id, lock=True))
    with pytest.raises(Fenced):
        settle(database, claimed, OK)
    assert (outbox(database), attempts(database)) == ([], [])
    with pytest.raises(NotFound):
        webhook(database, webhook_id)


def test_submitting_while_webhooks_come_and_go(database):
    """No job is refused because a webhook was deleted meanwhile, and none deadlocks with those who settle."""
    stop = threading.Event()

    def come_and_go():
        while not stop.is_set():
            webhook_id = add_webhook(database)
            claimed = claim(database)
            if claimed is not None:
                with suppress(Fenced):
                    settle(database, claimed, GONE)
            with database.write() as session:
                webhooks = Webhooks(session)
                webhooks.delete(webhooks.get(webhook_id, lock=True))

    with ThreadPoolExecutor(3) as threads:
        busy = [threads.submit(come_and_go) for _ in range(2)]
        jobs = [add_job(database) for _ in range(30)]
        stop.set()
        for one in busy:
            one.result()
    assert len(set(jobs)) == 30


def test_old_deliveries_are_forgotten(database):
    add_webhook(database)
    job_id = add_job(database, webhook=NewWebhook(URL, ALL, secret=new_secret()))
    while (claimed := claim(database)) is not None:
        settle(database, claimed, OK)
    with database.write() as session:
        session.execute(update(DeliveryRow).values(finished_at=db_now() - 100))
        session.execute(update(WebhookRow).values(created_at=db_now() - 100))
        Webhooks(session).prune(older_than_seconds=200)
        assert session.scalar(select(func.count()).select_from(DeliveryRow)) == 2
        Webhooks(session).prune(older_than_seconds=50)
        assert session.scalar(select(func.count()).select_from(DeliveryRow)) == 0
        # The job may be retried, and its own webhook hears of it then.
        assert session.scalar(select(func.count()).select_from(WebhookRow)) == 2
        Jobs(session).request_cancel(job_id)
        Jobs(session).delete(job_id)
        session.execute(update(DeliveryRow).values(finished_at=db_now() - 100))
        Webhooks(session).prune(older_than_seconds=50)
        assert session.scalar(select(func.count()).select_from(WebhookRow)) == 1
