"""What a tenant may have, how often it may ask, and what of it is written down."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from catalog.jobs.leases import Leases
from catalog.jobs.states import Queue
from catalog.jobs.tables import AttemptRow, JobRow
from catalog.settings import Settings
from catalog.tenants.repository import Tenants
from catalog.tenants.tables import UsageRow
from catalog.tenants.usage import USAGE_WINDOW_SECONDS
from tests.api.harness import ERROR, assert_problem, serve
from tests.api.test_keys import As, keyed, make_key  # noqa: F401 - a fixture

CONTENT = b"0123456789"
REDIS_URL = os.environ.get("LEVITY_TEST_REDIS", "redis://127.0.0.1:6379") + "/7"


@pytest.fixture
def redis_url():
    connection = redis.Redis.from_url(REDIS_URL, socket_connect_timeout=1)
    try:
        connection.flushdb()
    except redis.ConnectionError as error:
        pytest.skip(f"no Redis at {REDIS_URL} (LEVITY_TEST_REDIS): {error}")
    yield REDIS_URL
    connection.flushdb()
    connection.close()


@pytest.fixture
def tenant(keyed, request):  # noqa: F811
    """A tenant of its own, and a way to set its limits."""
    name = f"t{abs(hash(request.node.name)) % 10**9}"
    with keyed.database.write() as session:
        Tenants(session).add(name)
    caller = As(keyed, make_key(keyed, name)[1])
    caller.name = name

    def limit(**limits):
        with keyed.database.write() as session:
            Tenants(session).change(name, **limits)

    caller.limit = limit
    return caller


def upload(caller, content=CONTENT):
    created = caller("POST", "/v1/uploads", json={})
    if created.status_code != 201:
        return created
    return caller("PUT", f"/v1/uploads/{created.json()['id']}/content", content=content)


def usage(caller):
    return caller("GET", "/v1/usage").raise_for_status().json()


def submit(caller, model):
    return caller("POST", "/v1/jobs", json={"model_id": model, "pipeline": [{"type": "prune", "amount": 0.5}]})


def test_bytes_count_once_and_are_limited(tenant):
    tenant.limit(max_bytes=25)
    first = upload(tenant).json()
    assert upload(tenant).status_code == 200, "the same bytes take no room"
    assert usage(tenant)["stored_bytes"] == 10
    tenant("POST", "/v1/models", json={"upload_id": first["id"]}).raise_for_status()
    assert usage(tenant)["stored_bytes"] == 10
    assert upload(tenant, b"another 10").status_code == 200
    refused = upload(tenant, b"six or so")
    problem = assert_problem(refused, 403, "storage_used_up")
    assert "5 bytes more" in problem["detail"]
    assert_problem(tenant("POST", "/v1/uploads", json={"size": 6}), 403, "storage_used_up")
    assert upload(tenant, b"fits.").status_code == 200
    assert usage(tenant)["stored_bytes"] == 25
    assert_problem(upload(tenant, b"!"), 403, "storage_used_up")
    tenant("DELETE", f"/v1/uploads/{first['id']}").raise_for_status()
    assert usage(tenant)["stored_bytes"] == 25, "the model has the bytes still"


def test_parts_count_and_an_upload_of_unknown_length_stops_at_the_limit(tenant):
    tenant.limit(max_bytes=100)
    created = tenant("POST", "/v1/uploads", json={}).json()["id"]
    for number, size in ((1, 60), (2, 30)):
        tenant("PUT", f"/v1/uploads/{created}/parts/{number}", content=b"x" * size).raise_for_status()
    assert usage(tenant)["stored_bytes"] == 90
    refused = tenant("PUT", f"/v1/uploads/{created}/parts/3", content=iter([b"y" * 6, b"y" * 6]))
    assert_problem(refused, 403, "storage_used_up")
    tenant("POST", f"/v1/uploads/{created}/complete", json={}).raise_for_status()
    assert usage(tenant)["stored_bytes"] == 90


def test_two_uploads_that_do_not_fit_together_are_not_both_taken(tenant):
    tenant.limit(max_bytes=1000)
    uploads = [tenant("POST", "/v1/uploads", json={}).json()["id"] for _ in range(6)]
    start = threading.Barrier(6)

    def send(number):
        start.wait()
        return tenant("PUT", f"/v1/uploads/{uploads[number]}/content", content=bytes([number]) * 400).status_code

    with ThreadPoolExecutor(6) as threads:
        assert sorted(threads.map(send, range(6))) == [200, 200, 403, 403, 403, 403]
    assert usage(tenant)["stored_bytes"] == 800


def test_queued_jobs_are_limited_until_one_starts(tenant, keyed):  # noqa: F811
    ids = tenant.everything()
    queued = usage(tenant)["queued_jobs"]
    assert queued == 3, "a job and two inspections"
    tenant.limit(max_queued_jobs=5)
    start = threading.Barrier(6)

    def send(_):
        start.wait()
        return submit(tenant, ids["model_id"]).status_code

    with ThreadPoolExecutor(6) as threads:
        assert sorted(threads.map(send, range(6))) == [202, 202, 429, 429, 429, 429]
    refused = submit(tenant, ids["model_id"])
    assert_problem(refused, 429, "too_many_queued_jobs")
    assert int(refused.headers["retry-after"]) > 0
    upload_id = upload(tenant).json()["id"]
    assert_problem(tenant("POST", "/v1/datasets", json={"upload_id": upload_id}), 429, "too_many_queued_jobs")
    tenant("POST", f"/v1/jobs/{ids['job_id']}/cancel").raise_for_status()
    assert submit(tenant, ids["model_id"]).status_code == 202
    assert_problem(tenant("POST", f"/v1/jobs/{ids['job_id']}/retry"), 429, "too_many_queued_jobs")
    keyed.end_all_jobs()


def test_workers_time_is_counted_over_thirty_days_and_outlives_jobs(tenant, keyed):  # noqa: F811
    keyed.end_all_jobs()
    ids = tenant.everything()
    keyed.change(JobRow, ids["job_id"], priority=9)
    claim = keyed.claim(ids["job_id"])
    with keyed.database.write() as session:
        attempt = session.get(AttemptRow, (claim.job_id, claim.attempt))
        attempt.started_at -= 90
    assert usage(tenant)["worker_seconds"]["cpu"] == pytest.approx(90, abs=20), "running ones count"
    keyed.leases(lambda leases: leases.fail(claim, ERROR, retry=False))
    tenant("DELETE", f"/v1/jobs/{ids['job_id']}").raise_for_status()
    used = usage(tenant)
    assert used["worker_seconds"]["cpu"] == pytest.approx(90, abs=20)
    assert used["worker_seconds"]["gpu"] == 0
    tenant.limit(max_worker_seconds=60)
    refused = submit(tenant, ids["model_id"])
    assert_problem(refused, 429, "worker_time_used_up")
    assert refused.headers["retry-after"] == "3600"
    assert usage(tenant)["limits"]["max_worker_seconds"] == 60
    with keyed.database.write() as session:
        for row in session.query(UsageRow).filter_by(tenant=tenant.name):
            row.hour -= USAGE_WINDOW_SECONDS // 3600 + 1
    assert submit(tenant, ids["model_id"]).status_code == 202
    keyed.end_all_jobs()


def test_an_attempt_that_ran_is_charged_to_its_tenant_alone(tenant, keyed):  # noqa: F811
    keyed.end_all_jobs()
    tenant.everything()
    with keyed.database.write() as session:
        claim, _ = Leases(session).claim(Queue.IO, owner="worker", lease_seconds=60)
        assert claim.tenant == tenant.name
    keyed.leases(lambda leases: leases.release(claim))
    rows = keyed.rows(UsageRow, tenant=tenant.name)
    assert [(row.queue, row.attempts) for row in rows] == [("io", 1)]
    assert rows[0].seconds < 60
    keyed.end_all_jobs()


def test_what_is_made_and_changed_is_written_down(tenant):
    ids = tenant.everything()
    for path in ("rotate", "test"):
        tenant("POST", f"/v1/webhooks/{ids['webhook_id']}/{path}").raise_for_status()
    tenant("PATCH", f"/v1/webhooks/{ids['webhook_id']}", json={"description": "new"}).raise_for_status()
    made = {(entry["action"], entry["subject"]) for entry in tenant("GET", "/v1/audit?limit=200").json()["items"]}
    for noun in ("upload", "model", "dataset", "webhook", "job", "key"):
        assert (f"{noun}.created", ids[f"{noun}_id"]) in made
    for action in ("rotated", "tested", "changed"):
        assert (f"webhook.{action}", ids["webhook_id"]) in made


def test_tenants_do_not_see_the_operators_machines(tenant, keyed):  # noqa: F811
    from catalog.workers.repository import Workers

    with keyed.database.write() as session:
        Workers(session).register("w-1", host="build-7", queue=Queue.CPU, concurrency=1, capabilities={"isa": []})
    operator = As(keyed, make_key(keyed, tenant.name, {"metrics", "read"})[1])
    plain = As(keyed, make_key(keyed, tenant.name, {"read"})[1])
    assert operator("GET", "/v1/capabilities").json()["workers"][0]["host"] == "build-7"
    assert "build-7" not in plain("GET", "/v1/capabilities").text
    assert plain("GET", "/v1/capabilities").json()["queues"][0]["workers"] == 1


def burst(caller, number):
    return [caller("GET", "/v1/steps") for _ in range(number)]


def test_requests_are_limited_by_the_minute(tenant):
    assert "ratelimit" not in tenant("GET", "/v1/steps").headers
    tenant.limit(requests_per_minute=5)
    other_key = As(tenant.service, make_key(tenant.service, tenant.name)[1])
    answers = burst(other_key, 3) + burst(other_key, 4)
    assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 2
    assert [answer.headers["ratelimit"].split(";")[1] for answer in answers] == ["r=4", "r=3", "r=2", "r=1", "r=0"] + [
        "r=0"
    ] * 2
    assert answers[0].headers["ratelimit-policy"] == '"tenant";q=5;w=60'
    assert_problem(answers[-1], 429, "rate_limited")
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
    assert tenant.service.http.get("/livez").status_code == 200


def test_processes_that_share_redis_count_together(tmp_path, redis_url):
    settings = Settings(data_dir=tmp_path, broker_url=redis_url, requests_per_minute=6)
    with serve(settings) as one, serve(settings) as two:
        statuses = [service.http.get("/v1/steps").status_code for _ in range(4) for service in (one, two)]
    assert statuses == [200] * 6 + [429] * 2


def test_when_the_count_is_away_nobody_is_refused(tmp_path):
    settings = Settings(data_dir=tmp_path, broker_url="redis://127.0.0.1:1/0", requests_per_minute=1)
    with serve(settings) as service:
        start = time.monotonic()
        assert [service.http.get("/v1/steps").status_code for _ in range(3)] == [200] * 3
        assert time.monotonic() - start < 30
