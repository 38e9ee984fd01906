"""Workers are shared fairly between tenants, on SQLite and PostgreSQL."""

from __future__ import annotations

from collections import Counter

import pytest
from sqlalchemy import update

from catalog.db import db_now
from catalog.jobs.leases import Leases
from catalog.jobs.repository import Jobs, NewJob
from catalog.jobs.states import JobKind, Queue
from catalog.jobs.tables import AttemptRow, JobRow
from catalog.tenancy import Actor
from catalog.tenants.repository import Tenants

ERROR = {"code": "failed", "message": "It failed.", "retryable": False, "log_tail": ""}


@pytest.fixture
def tenants(database):
    with database.write() as session:
        for tenant in ("a", "b", "c"):
            Tenants(session).add(tenant)


def add(database, tenant, number=1, **values):
    with database.acting(Actor(tenant, "test")).write() as session:
        new = NewJob(kind=JobKind.COMPRESS, queue=Queue.CPU, max_attempts=2, time_limit_seconds=60, **values)
        return [Jobs(session).add(new).id for _ in range(number)]


def claim(database):
    with database.write() as session:
        claimed = Leases(session).claim(Queue.CPU, owner="worker", lease_seconds=60)
    return claimed and claimed[0]


def end(database, claim, *, after_seconds):
    """The attempt fails after so long."""
    with database.write() as session:
        session.execute(
            update(AttemptRow).where(AttemptRow.job_id == claim.job_id).values(started_at=db_now() - after_seconds)
        )
        Leases(session).fail(claim, ERROR, retry=False)


def share(database, tenant, share):
    with database.write() as session:
        Tenants(session).change(tenant, share=share)


def test_running_jobs_are_spread_over_tenants(database, tenants):
    for tenant in ("a", "b", "c"):
        add(database, tenant, 4 if tenant == "a" else 2)
    assert Counter(claim(database).tenant for _ in range(6)) == {"a": 2, "b": 2, "c": 2}
    assert [claim(database).tenant for _ in range(2)] == ["a", "a"], "what nobody else wants goes to who does"
    assert claim(database) is None


def test_a_share_of_two_runs_twice_as_many(database, tenants):
    share(database, "a", 2)
    for tenant in ("a", "b"):
        add(database, tenant, 20)
    assert Counter(claim(database).tenant for _ in range(12)) == {"a": 8, "b": 4}


@pytest.mark.parametrize("weight", [1, 3])
def test_one_worker_gives_each_tenant_its_time_not_its_number_of_jobs(database, tenants, weight):
    share(database, "b", weight)
    add(database, "a", 60)
    add(database, "b", 60)
    seconds = Counter()
    for _ in range(40):
        taken = claim(database)
        lasted = 60 if taken.tenant == "a" else 20
        end(database, taken, after_seconds=lasted)
        seconds[taken.tenant] += lasted
    assert seconds["b"] / seconds["a"] == pytest.approx(weight, rel=0.15)


def test_a_priority_passes_a_tenants_own_jobs_only(database, tenants):
    (patient,) = add(database, "b", priority=0)
    low, *_ = add(database, "a", 2, priority=1)
    (high,) = add(database, "a", priority=9)
    first, second, third = (claim(database).job_id for _ in range(3))
    assert first in {patient, high}
    assert {first, second} == {patient, high}
    assert third == low


def test_a_tenant_whose_jobs_cannot_start_yet_keeps_nobody_waiting(database, tenants):
    (waiting,) = add(database, "a", priority=9)
    (other,) = add(database, "b")
    with database.write() as session:
        session.execute(update(JobRow).where(JobRow.id == waiting).values(available_at=db_now() + 60))
    assert claim(database).job_id == other
    assert claim(database) is None


def test_jobs_of_a_tenant_that_is_gone_are_claimed_too(database):
    (job,) = add(database, "nobody")
    assert claim(database).job_id == job
