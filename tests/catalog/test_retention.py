"""What is forgotten for its age, and what is not because somebody works with it."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import func, select, update

from catalog.errors import Conflict, NotFound
from catalog.jobs.leases import Leases
from catalog.jobs.repository import Jobs, NewJob
from catalog.jobs.states import JobKind, JobState, Queue
from catalog.jobs.step_cache import FinishedSteps
from catalog.jobs.tables import EventRow, IdempotencyRow, JobRow, StepCacheRow
from catalog.models.repository import Models
from catalog.storage.copies import PartKey
from catalog.storage.retention import RULES, forget
from catalog.tenants.tables import UsageRow
from catalog.tenants.usage import HOUR_SECONDS, USAGE_WINDOW_SECONDS, Quotas
from catalog.totals.metrics import FORGOTTEN
from catalog.totals.repository import Totals
from catalog.uploads.repository import Uploads
from catalog.uploads.tables import PartRow, UploadRow
from tests.catalog.storing import Store, digest

DAY = 24 * 3600
RULE = {rule.name: rule for rule in RULES}


@pytest.fixture
def store(database, tmp_path):
    return Store(database, tmp_path)


def shift(store, table, *columns, seconds=8 * DAY, **of):
    """Make rows older."""
    with store.database.write() as session:
        values = {column: getattr(table, column) - seconds for column in columns}
        session.execute(update(table).filter_by(**of).values(**values).execution_options(synchronize_session=False))


def count(store, table):
    with store.database.read() as session:
        return session.scalar(select(func.count()).select_from(table))


def upload(store, *parts):
    with store.database.write() as session:
        upload_id = Uploads(session).add(filename="f", size=None, sha256=None).id
    for number, content in enumerate(parts, start=1):
        put_part(store, upload_id, number, content)
    return upload_id


def put_part(store, upload_id, number, content):
    staged = store.blobs.new_staging_path()
    staged.write_bytes(content)
    store.blobs.put_part(PartKey(upload_id, number, digest(content)), staged)
    with store.database.write() as session:
        Uploads(session).put_part(upload_id, number, size=len(content), sha256=digest(content))


def job(store, kind=JobKind.COMPRESS):
    with store.database.write() as session:
        new = NewJob(kind=kind, queue=Queue.CPU, max_attempts=1, time_limit_seconds=60, model_id="mdl_1")
        return Jobs(session).add(new).id


def there(store, upload_id):
    with store.database.read() as session:
        return session.get(UploadRow, upload_id) is not None


def test_an_upload_that_is_never_finished_goes_with_its_parts(store):
    old, waiting, young = upload(store, b"1", b"2"), upload(store), upload(store, b"3")
    shift(store, UploadRow, "created_at", "active_at")
    put_part(store, young, 2, b"4")  # it came back to life
    done = store.collector().run()
    assert done["uploads"] == 2
    assert [there(store, upload_id) for upload_id in (old, waiting, young)] == [False, False, True]
    assert count(store, PartRow) == 2
    assert all(name.startswith(f"uploads/{young}/") for name in store.files())
    keys = [PartKey(young, number, digest(content)) for number, content in ((1, b"3"), (2, b"4"))]
    assert store.blobs.assemble(keys, expected_sha256=digest(b"34")) == (digest(b"34"), 2)
    with store.database.read() as session:
        assert Totals(session).of_counter(FORGOTTEN) == {("uploads",): 2}


def test_a_body_that_takes_days_keeps_its_upload(store):
    upload_id = upload(store)
    shift(store, UploadRow, "created_at")
    with store.database.write() as session:
        Uploads(session).touch(upload_id)  # what the API does as it arrives
    store.collector().run()
    assert there(store, upload_id)
    shift(store, UploadRow, "active_at")
    store.collector().run()
    with pytest.raises(NotFound), store.database.write() as session:
        Uploads(session).touch(upload_id)


def test_a_complete_upload_goes_and_what_was_made_from_it_stays(store):
    used, never_used = store.put(b"used"), store.put(b"never used")
    for sha256 in (used, never_used):
        store.name(sha256, "upload")
    store.name(used, "model")
    shift(store, UploadRow, "created_at", "completed_at", seconds=6 * DAY)
    assert store.collector().run()["uploads"] == 0
    shift(store, UploadRow, "created_at", "completed_at", seconds=2 * DAY)
    assert store.collector().run()["uploads"] == 2
    store.settle()
    assert store.whole(used) == b"used"
    assert not store.blobs.exists(never_used)


def test_parts_are_removed_once_nobody_can_ask_for_them(store):
    """Left by a process that died after the commit and before it dropped them, or by a late one."""
    complete, gone, open_ = upload(store, b"1"), upload(store, b"2"), upload(store, b"3")
    with store.database.write() as session:
        Uploads(session).complete(complete, size=1, sha256=digest(b"1"))
    with store.database.write() as session:
        Uploads(session).delete(gone)
    store.collector().run()
    assert [name.split("/")[1] for name in store.files()] == [open_]


def test_an_upload_that_is_completing_is_not_forgotten_under_its_hands(store):
    upload_id = upload(store, b"1")
    shift(store, UploadRow, "created_at", "active_at")
    sha256 = store.put(b"1")
    with ThreadPoolExecutor(1) as threads:
        with store.database.write() as session:
            Uploads(session).complete(upload_id, size=1, sha256=sha256)
            round_ = threads.submit(store.collector().run)
            time.sleep(0.3)
        assert round_.result(60)["uploads"] == 0
    assert there(store, upload_id)
    store.settle()
    assert store.whole(sha256) == b"1"


def test_an_upload_from_which_a_model_is_being_made_is_not_forgotten_under_its_hands(store):
    sha256 = store.put(b"1")
    upload_id = store.name(sha256, "upload")
    shift(store, UploadRow, "created_at", "completed_at")
    with ThreadPoolExecutor(1) as threads:
        with store.database.write() as session:
            row = Uploads(session).get_complete(upload_id)
            round_ = threads.submit(store.collector().run)
            time.sleep(0.3)
            Models(session).add(name="m", files=[{"name": "f", "sha256": row.sha256, "size": 1}])
        round_.result(60)
    store.settle()
    assert not there(store, upload_id)
    assert store.whole(sha256) == b"1"


def test_staged_files_of_processes_that_were_killed(store):
    old, young = store.blobs.new_staging_path(), store.blobs.new_staging_path()
    for path in (old, young):
        path.write_bytes(b"x")
    os.utime(old, (time.time() - 2 * DAY,) * 2)
    store.collector().run()
    assert list(store.blobs.staging.iterdir()) == [young]


def test_idempotency_keys(store):
    job_id = job(store)
    with store.database.write() as session:
        jobs = Jobs(session)
        for key in ("old", "young"):
            assert jobs.remember_key(key, body_sha256="b", job_id=job_id) is None
    shift(store, IdempotencyRow, "created_at", key="old")
    assert store.collector().run()["idempotency_keys"] == 1
    with store.database.write() as session:
        jobs = Jobs(session)
        assert jobs.find_key("young").job_id == job_id
        assert jobs.find_key("old") is None
        assert jobs.remember_key("old", body_sha256="c", job_id=job_id) is None


def test_hours_of_use_go_when_no_quota_counts_them(store):
    hour = int(time.time() // HOUR_SECONDS)
    window = USAGE_WINDOW_SECONDS // HOUR_SECONDS
    ages = (0, window - 2, window + 1, 2 * window)
    with store.database.write() as session:
        session.add_all(
            UsageRow(tenant=tenant, hour=hour - age, queue=Queue.CPU, seconds=10.0, attempts=1)
            for tenant in ("default", "other")
            for age in ages
        )
    with store.database.read() as session:
        before = Quotas(session).usage().worker_seconds
    assert before[Queue.CPU] == 20
    assert store.collector().run()["usage"] == 4
    with store.database.read() as session:
        assert Quotas(session).usage().worker_seconds == before
        left = session.scalars(select(UsageRow.hour).execution_options(populate_existing=True)).all()
    assert set(left) == {hour - age for age in ages[:2]}


def test_steps_that_no_job_used(store):
    files = [{"name": "model.onnx", "sha256": store.put(b"step"), "size": 4}]
    for key in ("stale", "used", "begun"):
        with store.database.write() as session:
            FinishedSteps(session, "default").put(key, files)
    shift(store, StepCacheRow, "created_at", "used_at", seconds=40 * DAY)
    with store.database.write() as session:
        assert FinishedSteps(session, "default").longest_prefix(["used", "unknown"]).key == "used"
        assert FinishedSteps(session, "default").get("begun") == files
        assert FinishedSteps(session, "other").get("begun") == []
    assert store.collector().run()["steps"] == 1
    store.settle()
    with store.database.write() as session:
        steps = FinishedSteps(session, "default")
        assert [steps.get(key) for key in ("stale", "used", "begun")] == [[], files, files]
    assert store.whole(files[0]["sha256"]) == b"step"


def test_a_step_that_is_hit_while_it_is_forgotten(store):
    """The hit is first: it stays. Or it comes too late, and is none."""
    with store.database.write() as session:
        FinishedSteps(session, "default").put("step", [])
    shift(store, StepCacheRow, "used_at", seconds=40 * DAY)
    with ThreadPoolExecutor(1) as threads:
        with store.database.write() as session:
            assert FinishedSteps(session, "default").longest_prefix(["step"]) is not None
            round_ = threads.submit(store.collector().run)
            time.sleep(0.3)
        assert round_.result(60)["steps"] == 0
        shift(store, StepCacheRow, "used_at", seconds=40 * DAY)
        with store.database.write() as session:
            assert forget(session, RULE["steps"], store.settings) == [("default", "step")]
            hit = threads.submit(_hit, store)
            time.sleep(0.3)
        assert hit.result(60) is None


def _hit(store):
    with store.database.write() as session:
        row = FinishedSteps(session, "default").longest_prefix(["step"])
        return row and row.key


def test_steps_go_with_the_last_model_that_they_were_made_from(store):
    bytes_of = {name: store.put(name.encode()) for name in ("model", "other", "step", "of other")}
    first, second, other = (store.name(bytes_of[name], "model") for name in ("model", "model", "other"))
    with store.database.write() as session:
        for tenant in ("default", "acme"):
            steps = FinishedSteps(session, tenant)
            for key, model in (("step", "model"), ("of other", "other")):
                file = {"name": "f", "sha256": bytes_of[key], "size": 4}
                steps.put(key, [file], model_sha256=bytes_of[model])

    def known():
        with store.database.read() as session:
            return sorted(tuple(row) for row in session.execute(select(StepCacheRow.tenant, StepCacheRow.key)))

    everything = known()
    store.unname(first, "model")
    assert known() == everything, "there is another model of the same bytes"
    store.unname(second, "model")
    assert known() == [entry for entry in everything if entry != ("default", "step")]
    store.unname(other, "model")
    assert known() == [("acme", "of other"), ("acme", "step")]


def test_jobs_stay_unless_they_are_to_go(store):
    done, failed, queued, running = (job(store) for _ in range(4))
    with store.database.write() as session:
        session.execute(update(JobRow).where(JobRow.id.in_([done, failed])).values(finished_at=0.0))
        session.execute(update(JobRow).where(JobRow.id == done).values(state=JobState.SUCCEEDED))
        session.execute(update(JobRow).where(JobRow.id == failed).values(state=JobState.FAILED))
        session.execute(update(JobRow).where(JobRow.id.in_([queued, running])).values(created_at=0.0))
        session.execute(update(JobRow).where(JobRow.id == running).values(state=JobState.RUNNING))
    inspection = job(store, JobKind.INSPECT_MODEL)
    with store.database.write() as session:
        session.execute(update(JobRow).where(JobRow.id == inspection).values(state=JobState.SUCCEEDED, finished_at=0.0))
    assert store.collector().run()["jobs"] == 0, "nobody asked for it"
    store.settings = store.settings.model_copy(update={"job_retention_seconds": 30.0 * DAY})
    assert store.collector().run()["jobs"] == 3
    with store.database.read() as session:
        assert set(session.scalars(select(JobRow.id))) == {queued, running}
        assert set(session.scalars(select(EventRow.job_id))) == {queued, running}


def test_a_job_that_is_retried_while_it_is_forgotten(store):
    store.settings = store.settings.model_copy(update={"job_retention_seconds": 1.0 * DAY})
    job_id = job(store)
    with store.database.write() as session:
        claim, _ = Leases(session).claim(Queue.CPU, owner="w", lease_seconds=60)
        Leases(session).fail(claim, {"code": "x", "message": "", "retryable": False, "log_tail": ""}, retry=False)
    shift(store, JobRow, "finished_at")
    with ThreadPoolExecutor(1) as threads:
        with store.database.write() as session:
            Jobs(session).retry(job_id)
            round_ = threads.submit(store.collector().run)
            time.sleep(0.3)
        assert round_.result(60)["jobs"] == 0
    with store.database.read() as session:
        assert Jobs(session).get(job_id).state == JobState.QUEUED
    with pytest.raises(Conflict), store.database.write() as session:
        Jobs(session).delete(job_id)


def test_batches(store, monkeypatch):
    for _ in range(5):
        upload(store)
    shift(store, UploadRow, "created_at")
    small = tuple(rule if rule.name != "uploads" else type(rule)(**(vars(rule) | {"batch": 2})) for rule in RULES)
    monkeypatch.setattr("catalog.storage.collector.RULES", small)
    assert store.collector().run()["uploads"] == 5
    assert count(store, UploadRow) == 0


def test_two_rounds_at_once_forget_everything_once(store):
    for _ in range(40):
        upload(store, b"x")
    shift(store, UploadRow, "created_at", "active_at")
    ready = threading.Barrier(2)

    def round_(_number):
        ready.wait(30)
        return store.collector().run()["uploads"]

    with ThreadPoolExecutor(2) as threads:
        assert sum(threads.map(round_, range(2))) == 40
    assert store.files() == []
