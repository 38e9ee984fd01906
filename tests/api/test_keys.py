"""Keys, scopes and tenants, from an attacker's side."""

from __future__ import annotations

import re

import pytest

from api.authentication import required_scope
from catalog.db import db_now
from catalog.jobs.step_cache import FinishedSteps
from catalog.jobs.tables import JobRow
from catalog.keys import secrets
from catalog.keys.repository import Keys
from catalog.keys.scopes import EVERYTHING, Scope
from catalog.keys.tables import ApiKeyRow
from catalog.models.tables import ModelRow
from catalog.settings import Settings
from catalog.tenancy import Actor
from catalog.tenants.repository import Tenants
from tests.api.conftest import own_database
from tests.api.harness import SIGNATURE, assert_problem, serve

PRUNE = {"type": "prune", "amount": 0.5}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def keyed(request, tmp_path_factory):
    """A service that asks for keys, with two tenants."""
    data_dir = tmp_path_factory.mktemp("keyed")
    if request.param == "sqlite":
        settings = Settings(data_dir=data_dir, auth="keys")
        with serve(settings) as service:
            yield prepare(service)
        return
    with (
        own_database(request.getfixturevalue("postgresql_url")) as url,
        serve(Settings(data_dir=data_dir, database_url=url, auth="keys")) as service,
    ):
        yield prepare(service)


def prepare(service):
    with service.database.write() as session:
        for tenant in ("ours", "theirs"):
            Tenants(session).add(tenant)
    return service


def make_key(service, tenant, scopes=EVERYTHING, **values):
    with service.database.acting(Actor(tenant, "operator")).write() as session:
        row, text = Keys(session).add(name="", scopes=scopes, **values)
    return row.id, text


def ask(service, text, method, path, **request):
    return service.http.request(method, path, headers={"authorization": f"Bearer {text}"}, **request)


@pytest.fixture
def ours(keyed):
    return make_key(keyed, "ours")[1]


@pytest.fixture
def theirs(keyed):
    return make_key(keyed, "theirs")[1]


class As:
    """The service as one caller sees it."""

    def __init__(self, service, text):
        self.service, self.text = service, text

    def __call__(self, method, path, **request):
        headers = {"authorization": f"Bearer {self.text}", **request.pop("headers", {})}
        return self.service.http.request(method, path, headers=headers, **request)

    def everything(self):
        """One of each thing that a tenant can have; ids by the name of the parameter that takes them."""
        upload = self("POST", "/v1/uploads", json={}).json()["id"]
        self("PUT", f"/v1/uploads/{upload}/content", content=b"secret bytes").raise_for_status()
        model = self("POST", "/v1/models", json={"upload_id": upload}).json()["id"]
        self.service.change(ModelRow, model, state="ready", summary=SIGNATURE.model_dump(mode="json"))
        dataset = self("POST", "/v1/datasets", json={"upload_id": upload}).json()["id"]
        webhook = self("POST", "/v1/webhooks", json={"url": "https://receiver.example/"}).json()["webhook"]["id"]
        job = self("POST", "/v1/jobs", json={"model_id": model, "pipeline": [PRUNE]}).json()["id"]
        delivery = self("GET", f"/v1/webhooks/{webhook}/deliveries").json()["items"]
        delivery_id = (delivery or [self("POST", f"/v1/webhooks/{webhook}/test").json()])[0]["id"]
        key = self("POST", "/v1/keys", json={"scopes": ["read"]}).json()["key"]["id"]
        return {
            "upload_id": upload,
            "model_id": model,
            "dataset_id": dataset,
            "webhook_id": webhook,
            "job_id": job,
            "delivery_id": delivery_id,
            "key_id": key,
            "name": "model.onnx",
            "number": "1",
        }


BODIES = {
    "create_job": {"pipeline": [PRUNE]},
    "create_model": {},
    "create_dataset": {},
    "update_webhook": {"description": "mine"},
}


def test_no_route_knows_what_belongs_to_another_tenant(keyed, ours, theirs):
    """Every operation with an id in its path or body answers a foreign one as it answers one that never was."""
    foreign = As(keyed, theirs).everything()
    mine = As(keyed, ours)
    document = keyed.http.get("/openapi.json").json()
    walked = 0
    for path, operations in document["paths"].items():
        names = re.findall(r"{(\w+)}", path)
        for method, operation in operations.items():
            known, absent = dict(foreign), {name: re.sub(r"[0-9a-f]{32}", "0" * 32, i) for name, i in foreign.items()}
            body = BODIES.get(operation["operationId"])
            if (not names and body is None) or (operation["operationId"] == "update_webhook" and not names):
                continue
            answers = []
            for ids in (known, absent):
                sent = body
                if operation["operationId"] == "create_job":
                    sent = {**body, "model_id": ids["model_id"]}
                elif operation["operationId"] in ("create_model", "create_dataset"):
                    sent = {"upload_id": ids["upload_id"]}
                content = b"x" if operation["operationId"].startswith("put_") else None
                answer = mine(
                    method.upper(),
                    path.format(**ids),
                    **({"content": content} if content else {"json": sent} if sent is not None else {}),
                )
                answers.append(
                    (
                        answer.status_code,
                        answer.text and {k: v for k, v in answer.json().items() if k in ("code", "title")},
                    )
                )
            assert answers[0] == answers[1], (operation["operationId"], answers)
            assert answers[0][0] == 404, (operation["operationId"], answers)
            walked += 1
    assert walked >= 30
    # And nothing happened to any of it.
    owner = As(keyed, theirs)
    assert owner("GET", f"/v1/jobs/{foreign['job_id']}").json()["state"] == "queued"
    assert owner("GET", f"/v1/webhooks/{foreign['webhook_id']}").json()["description"] == ""
    assert owner("GET", f"/v1/keys/{foreign['key_id']}").json()["revoked_at"] is None
    for noun in ("uploads", "models", "datasets"):
        assert owner("GET", f"/v1/{noun}/{foreign[noun[:-1] + '_id']}").status_code == 200


def test_lists_and_cursors_stay_within_the_tenant(keyed):
    with keyed.database.write() as session:
        for tenant in ("list-a", "list-b"):
            if not any(row.id == tenant for row in Tenants(session).all()):
                Tenants(session).add(tenant)
    a, b = (As(keyed, make_key(keyed, tenant)[1]) for tenant in ("list-a", "list-b"))
    first, _second = a.everything(), a.everything()
    own = b.everything()
    for noun in ("models", "datasets", "jobs", "webhooks", "keys", "audit"):
        ids = {item["id"] for item in b("GET", f"/v1/{noun}").json()["items"]}
        theirs = {item["id"] for item in a("GET", f"/v1/{noun}").json()["items"]}
        assert ids, noun
        assert not ids & theirs, noun
        cursor = a("GET", f"/v1/{noun}", params={"limit": 1}).json()["next_cursor"]
        beyond = b("GET", f"/v1/{noun}", params={"cursor": cursor}).json()["items"]
        assert {item["id"] for item in beyond} <= ids, noun
    assert b("GET", "/v1/jobs", params={"model_id": first["model_id"]}).json()["items"] == []
    assert [job["id"] for job in b("GET", "/v1/jobs").json()["items"]] == [own["job_id"]]


def test_events_of_a_job_reach_its_own_tenants_webhooks_alone(keyed, ours, theirs):
    listener, worker = As(keyed, theirs), As(keyed, ours)
    webhook = listener("POST", "/v1/webhooks", json={"url": "https://listener.example/"}).json()["webhook"]["id"]
    job = worker.everything()["job_id"]
    keyed.change(JobRow, job, priority=9)
    worker("POST", f"/v1/jobs/{job}/cancel").raise_for_status()
    assert listener("GET", f"/v1/webhooks/{webhook}/deliveries").json()["items"] == []


def test_two_tenants_may_choose_the_same_idempotency_key(keyed, ours, theirs):
    models = {text: As(keyed, text).everything()["model_id"] for text in (ours, theirs)}
    jobs = []
    for text in (ours, theirs, ours):
        body = {"model_id": models[text], "pipeline": [PRUNE]}
        answer = As(keyed, text)("POST", "/v1/jobs", json=body, headers={"idempotency-key": f"same-{ours[3:15]}"})
        assert answer.status_code == 202, answer.text
        jobs.append(answer.json()["id"])
    assert jobs[0] == jobs[2] != jobs[1]


def test_announcing_anothers_hash_gives_none_of_its_bytes(keyed, ours, theirs):
    upload = As(keyed, theirs).everything()["upload_id"]
    sha256 = As(keyed, theirs)("GET", f"/v1/uploads/{upload}").json()["sha256"]
    mine = As(keyed, ours)
    announced = mine("POST", "/v1/uploads", json={"sha256": sha256, "size": len(b"secret bytes")}).json()
    assert announced["state"] == "open"
    assert_problem(
        mine("POST", f"/v1/uploads/{announced['id']}/complete", json={"sha256": sha256}), 409, "part_missing"
    )
    assert_problem(mine("POST", "/v1/models", json={"upload_id": announced["id"]}), 409, "upload_incomplete")


def test_a_finished_step_is_shared_within_a_tenant_only(keyed):
    with keyed.database.write() as session:
        FinishedSteps(session, "ours").put("k" * 64, [{"name": "x", "sha256": "0" * 64}])
        assert FinishedSteps(session, "theirs").get("k" * 64) == []
        assert FinishedSteps(session, "theirs").longest_prefix(["k" * 64]) is None
        assert FinishedSteps(session, "ours").longest_prefix(["k" * 64]).tenant == "ours"


@pytest.mark.parametrize("scope", list(Scope))
def test_a_key_may_do_what_its_scopes_say_and_nothing_else(keyed, scope):
    _, text = make_key(keyed, "ours", {scope})
    document = keyed.http.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            needed = required_scope(method.upper(), path)
            assert operation.get("security", []) == ([{"key": [needed]}] if needed else [])
            if needed is None:
                continue
            answer = ask(
                keyed, text, method.upper(), re.sub(r"{number}", "1", re.sub(r"{\w+_id}|{name}", "nothing", path))
            )
            assert (answer.status_code == 403) == (needed != scope), (method, path, answer.status_code)
            if answer.status_code == 403 and method != "head":
                problem = assert_problem(answer, 403, "insufficient_scope")
                assert f"`{needed}`" in problem["detail"]
                assert answer.headers["www-authenticate"] == f'Bearer error="insufficient_scope", scope="{needed}"'


def test_everything_but_probes_and_documentation_needs_a_key(keyed):
    for path in ("/livez", "/readyz", "/docs", "/openapi.json"):
        assert keyed.http.get(path).status_code == 200
    for path in ("/metrics", "/v1", "/v1/", "/v1/nowhere", "/v1/jobs", "/v1/steps", "/v1/capabilities", "/v1/%6aobs"):
        answer = keyed.http.get(path)
        assert_problem(answer, 401, "unauthenticated")
        assert answer.headers["www-authenticate"] == "Bearer"


def test_what_is_no_valid_key_opens_nothing(keyed, ours):
    other = secrets.new_key().text
    prefix = ours[:16]
    wrong = [
        other,
        ours[:-1],
        ours + "A",
        prefix + other[16:],
        ours.upper(),
        f"{ours}\u00e9".encode("latin-1").decode("latin-1"),
        "lv__",
        "'",
    ]
    for text in wrong:
        answer = keyed.http.get("/v1/jobs", headers={"authorization": f"Bearer {text}".encode("latin-1")})
        assert_problem(answer, 401, "unauthenticated")
    assert_problem(keyed.http.get("/v1/jobs", headers={"authorization": f"Basic {ours}"}), 401, "unauthenticated")
    assert_problem(keyed.http.get("/v1/jobs", params={"api_key": ours}), 401, "unauthenticated")
    assert keyed.http.get("/v1/jobs", headers={"authorization": f"bearer {ours}"}).status_code == 200


def test_keys_expire_rotate_and_are_revoked(keyed):
    admin_id, admin = make_key(keyed, "ours")
    caller = As(keyed, admin)
    made = caller("POST", "/v1/keys", json={"name": "ci", "scopes": ["read"], "expires_in_seconds": 3600}).json()
    rotated = caller("POST", f"/v1/keys/{made['key']['id']}/rotate", json={"overlap_seconds": 600}).json()
    assert rotated["key"]["scopes"] == ["read"]
    assert rotated["key"]["name"] == "ci"
    for text in (made["secret"], rotated["secret"]):
        assert ask(keyed, text, "GET", "/v1/jobs").status_code == 200
    again = caller("POST", f"/v1/keys/{made['key']['id']}/rotate")
    assert_problem(again, 409, "key_not_valid")

    expired_id, expired = make_key(keyed, "ours")
    keyed.change(ApiKeyRow, expired_id, expires_at=db_now() - 1)
    assert_problem(ask(keyed, expired, "GET", "/v1/jobs"), 401, "unauthenticated")
    revoked_id, revoked = make_key(keyed, "ours")
    assert caller("DELETE", f"/v1/keys/{revoked_id}").json()["revoked_at"] is not None
    assert_problem(ask(keyed, revoked, "GET", "/v1/jobs"), 401, "unauthenticated")
    assert_problem(caller("POST", f"/v1/keys/{revoked_id}/rotate"), 409, "key_not_valid")

    old, new = (caller("GET", f"/v1/keys/{k['key']['id']}").json() for k in (made, rotated))
    assert old["replaced_by"] == new["id"]
    assert old["expires_at"] < new["expires_at"]
    assert old["last_used_at"] is not None
    log = [(e["action"], e["subject"], e["actor"]) for e in caller("GET", "/v1/audit").json()["items"]]
    for action, subject in (("key.created", made), ("key.rotated", made), ("key.created", rotated)):
        assert (action, subject["key"]["id"], admin_id) in log
    assert ("key.revoked", revoked_id, admin_id) in log


def test_an_admin_makes_no_key_that_may_more(keyed):
    _, text = make_key(keyed, "ours", {Scope.ADMIN, Scope.READ})
    caller = As(keyed, text)
    assert_problem(caller("POST", "/v1/keys", json={"scopes": ["read", "metrics"]}), 403, "insufficient_scope")
    stronger, _ = make_key(keyed, "ours", {Scope.METRICS})
    assert_problem(caller("POST", f"/v1/keys/{stronger}/rotate"), 403, "insufficient_scope")
    assert caller("POST", "/v1/keys", json={"scopes": ["read"]}).status_code == 201


def test_what_is_done_is_written_down(keyed, ours):
    caller = As(keyed, ours)
    ids = caller.everything()
    caller("POST", f"/v1/jobs/{ids['job_id']}/cancel", headers={"x-request-id": "cancel-1"}).raise_for_status()
    caller("DELETE", f"/v1/jobs/{ids['job_id']}").raise_for_status()
    caller("DELETE", f"/v1/uploads/{ids['upload_id']}").raise_for_status()
    entries = caller("GET", "/v1/audit", params={"subject": ids["job_id"]}).json()["items"]
    assert [entry["action"] for entry in entries] == ["job.deleted", "job.cancelled", "job.created"]
    assert entries[1]["request_id"] == "cancel-1"
    upload = caller("GET", "/v1/audit", params={"subject": ids["upload_id"]}).json()["items"]
    assert [entry["action"] for entry in upload] == ["upload.deleted", "upload.created"]


def test_keys_are_compared_in_constant_time_and_kept_as_hashes(keyed, monkeypatch):
    compared = []
    monkeypatch.setattr(secrets, "compare_digest", lambda a, b: compared.append((a, b)) or a == b)
    key_id, text = make_key(keyed, "ours")
    assert ask(keyed, text, "GET", "/v1/jobs").status_code == 200
    (row,) = keyed.rows(ApiKeyRow, id=key_id)
    assert compared == [(row.sha256, row.sha256)]
    assert text not in str(vars(row))
    secret = text.split("_", 2)[2]
    assert len(secret) * 6 >= 256
    assert len({secrets.new_key().text for _ in range(1000)}) == 1000


@pytest.mark.parametrize("header", ["Forwarded", "X-Forwarded-For", "X-Real-IP", "Via"])
def test_without_keys_a_proxy_is_refused(http, header):
    assert_problem(http.get("/v1/jobs", headers={header: "127.0.0.1"}), 403, "keys_required")
    assert http.get("/livez", headers={header: "127.0.0.1"}).status_code == 200


@pytest.mark.parametrize(
    ("client", "local"),
    [
        (("127.0.0.1", 1), True),
        (("::1", 1), True),
        (("::ffff:127.0.0.1", 1), True),
        (None, True),
        (("10.0.0.1", 1), False),
        (("::ffff:10.0.0.1", 1), False),
        (("unknown", 1), False),
    ],
)
def test_peers_of_a_service_without_keys(client, local):
    from starlette.datastructures import Headers

    from api.authentication import _is_local

    assert _is_local({"client": client}, Headers({})) is local
