"""What a worker of queue io does beside its jobs: real receivers, real time only where nothing else would do."""

from __future__ import annotations

import ipaddress
import shutil
import time

import pytest
from sqlalchemy import select, update

from catalog.db import Database, db_now
from catalog.jobs.repository import Jobs, NewJob
from catalog.jobs.states import JobKind, Queue
from catalog.settings import Settings
from catalog.webhooks.repository import NewWebhook, Webhooks
from catalog.webhooks.signatures import new_secret
from catalog.webhooks.states import MAX_ATTEMPTS, EventType
from catalog.webhooks.tables import DeliveryAttemptRow, DeliveryRow
from tests.receiver import Answer, Receiver
from workers.lease import Drain
from workers.webhooks import Deliverer

SECRET = new_secret()


class Post:
    """Deliverers on a database of their own."""

    def __init__(self, root, template, **settings):
        fast = {
            "webhook_allow_http": True,
            "webhook_allowed_networks": (ipaddress.ip_network("127.0.0.0/8"),),
            "webhook_timeout_seconds": 10,
            "lease_seconds": 60,
            "sweep_seconds": 60,
        }
        self.settings = Settings(data_dir=root, **{**fast, **settings})
        shutil.copyfile(template, self.settings.folder(".") / "levity.db")
        self.database = Database(self.settings.resolved_database_url)
        self.drain = Drain()
        self.deliverer = Deliverer(settings=self.settings, database=self.database, drain=self.drain, worker_id="worker")
        self.database.after_outbox = self.deliverer.wake

    def close(self):
        self.drain.begin(0)
        self.deliverer.stop()
        self.database.dispose()

    def register(self, url, events=(EventType.JOB_QUEUED,)):
        with self.database.write() as session:
            return Webhooks(session).add(NewWebhook(url, events, secret=SECRET)).id

    def add_job(self):
        new = NewJob(kind=JobKind.COMPRESS, queue=Queue.CPU, max_attempts=1, time_limit_seconds=60)
        with self.database.write() as session:
            return Jobs(session).add(new).id

    def rows(self, table=DeliveryRow):
        with self.database.read() as session:
            return list(session.scalars(select(table)))

    def later(self):
        """Time passes: what waits is due."""
        with self.database.write() as session:
            session.execute(
                update(DeliveryRow).where(DeliveryRow.state == "waiting").values(next_attempt_at=db_now() - 1)
            )
        self.deliverer.wake()

    def wait(self, condition):
        for _ in range(1000):
            if condition():
                return
            time.sleep(0.01)
        raise AssertionError([(row.state, row.attempt) for row in self.rows()])

    def wait_for_attempt(self, number, state):
        self.wait(lambda: [(row.attempt, row.state) for row in self.rows()] == [(number, state)])


@pytest.fixture
def make(tmp_path, template):
    made = []

    def make(**settings):
        made.append(Post(tmp_path / "data", template, **settings))
        return made[0]

    yield make
    for post in made:
        post.close()


@pytest.fixture
def receiver():
    with Receiver() as receiver:
        yield receiver
        receiver.release()


def test_failures_then_success(make, receiver):
    post = make()
    receiver.answer_with(Answer(500), Answer(503, b"busy"), Answer(200, b"thanks"))
    post.register(receiver.url)
    post.deliverer.start()
    post.add_job()
    for number in (1, 2):
        post.wait_for_attempt(number, "waiting")
        post.later()
    post.wait_for_attempt(3, "delivered")
    attempts = post.rows(DeliveryAttemptRow)
    assert [(one.status, one.response) for one in attempts] == [(500, ""), (503, "busy"), (200, "thanks")]
    assert {received.headers["webhook-id"] for received in receiver.received} == {attempts[0].delivery_id}
    assert len({received.body for received in receiver.received}) == 1
    assert receiver.events(SECRET) == ["job.queued"] * 3


def test_a_retry_comes_by_itself_when_it_is_due(make, receiver):
    """Without a message and long before the next look around."""
    post = make()
    receiver.answer_with(Answer(500), Answer(200))
    post.register(receiver.url)
    post.deliverer.start()
    post.add_job()
    post.wait_for_attempt(1, "waiting")
    with post.database.write() as session:
        session.execute(update(DeliveryRow).values(next_attempt_at=db_now() + 0.3))
    post.deliverer.wake()
    post.wait_for_attempt(2, "delivered")


def test_gone(make, receiver):
    post = make()
    receiver.answer_with(Answer(410))
    webhook_id = post.register(receiver.url)
    post.deliverer.start()
    post.add_job()
    post.wait_for_attempt(1, "failed")
    with post.database.read() as session:
        assert Webhooks(session).get(webhook_id).disabled["code"] == "gone"


def test_what_an_operator_does_not_allow_is_recorded(make, receiver):
    post = make(webhook_allowed_networks=())
    post.register(receiver.url)
    post.deliverer.start()
    post.add_job()
    post.wait_for_attempt(1, "waiting")
    assert [one.error["code"] for one in post.rows(DeliveryAttemptRow)] == ["url_refused"]
    assert receiver.connections == 0


def test_a_slow_receiver_keeps_no_other_waiting(make, receiver):
    post = make(webhook_senders=3)
    with Receiver(Answer(hang=True)) as slow:
        post.register(slow.url)
        post.register(receiver.url)
        post.deliverer.start()
        for _ in range(6):
            post.add_job()
        post.wait(lambda: len(receiver.received) == 6)
        assert len(slow.received) == 2
        slow.release()
        post.wait(lambda: {row.state for row in post.rows()} == {"delivered"})
    assert len(slow.received) == 6


def test_two_workers_share_the_work_and_no_attempt(make, receiver):
    post = make()
    post.register(receiver.url)
    other = Deliverer(settings=post.settings, database=post.database, drain=post.drain, worker_id="other")
    for _ in range(20):
        post.add_job()
    post.deliverer.start()
    other.start()
    post.wait(lambda: {row.state for row in post.rows()} == {"delivered"})
    other.stop()
    ids = [received.headers["webhook-id"] for received in receiver.received]
    assert sorted(ids) == sorted(row.id for row in post.rows())


def test_an_attempt_of_a_dead_worker_is_made_again(make, receiver):
    """A worker sends, hears nothing and dies; another one takes over once its lease has run out."""
    post = make()
    post.register(receiver.url)
    post.add_job()
    with post.database.write() as session:
        session.execute(
            update(DeliveryRow).values(
                state="sending", attempt=1, attempts_left=MAX_ATTEMPTS - 1, owner="dead", lease_until=db_now() - 1
            )
        )
    post.deliverer.start()
    post.wait_for_attempt(2, "delivered")
    assert len(receiver.received) == 1


def test_a_worker_that_stops_gives_back_what_hangs(make, receiver):
    post = make()
    receiver.answer_with(Answer(hang=True))
    post.register(receiver.url)
    post.deliverer.start()
    post.add_job()
    post.wait(lambda: receiver.received)
    post.drain.begin(0.1)
    post.deliverer.stop()
    (row,) = post.rows()
    assert (row.state, row.attempts_left) == ("waiting", MAX_ATTEMPTS)
    assert post.rows(DeliveryAttemptRow)[0].error["code"] == "worker_stopped"
