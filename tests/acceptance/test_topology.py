"""docker-compose.yml as processes: two API processes, three workers, PostgreSQL, Redis and an S3 server.

The settings are those of docker-compose.yml, read from it: secrets by file, API keys, tables that one service migrates.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from levity import LevityError
from tests.acceptance.conftest import DIGITS
from tests.acceptance.harness import BRIEF, LONG
from tests.acceptance.processes import eventually
from tests.acceptance.test_main_job import PRUNE_AND_INT8
from tests.acceptance.topology import Topology

# Seven processes start on a machine that may be busy with other tests.
pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
WORKERS = {"cpu-1": "worker-cpu", "cpu-2": "worker-cpu", "io-1": "worker-io"}
SECRETS = ("database_password", "broker_password", "store_access_key_id", "store_secret_access_key")


@pytest.fixture(scope="module")
def topology(tmp_path_factory):
    with Topology(tmp_path_factory.mktemp("topology")) as topology:
        yield topology


@pytest.fixture(scope="module")
def clients(topology):
    """A client of each of two API processes, beside three workers; before the migration none starts."""
    early = topology.start_worker("early", "worker-io")
    assert early.popen.wait(180) == 1
    assert "python -m catalog migrate" in early.log.read_text()
    topology.migrate()
    key = topology.new_key("--name", "acceptance")
    for name, service in WORKERS.items():
        topology.start_worker(name, service)
    first, second = (topology.start_api(name, key) for name in ("api-1", "api-2"))
    eventually(
        lambda: (
            {worker["queue"] for worker in first.capabilities()["workers"]} == {"cpu", "io"}
            and len(first.capabilities()["workers"]) == len(WORKERS)
        ),
        seconds=180,
        what="three workers are there",
    )
    yield first, second
    first.close()
    second.close()


@pytest.fixture(scope="module")
def inputs(clients):
    """The digits model and its data, sent to the two API processes in turn."""
    first, second = clients
    model = first.create_model(DIGITS / "digits-cnn.onnx")
    calibration = second.create_dataset(DIGITS / "calibration.npz")
    evaluation = first.create_dataset(DIGITS / "evaluation.npz")
    return model.id, {"calibration": calibration.id, "evaluation": evaluation.id}


def test_the_main_job_over_two_api_processes(clients, inputs, tmp_path):
    first, second = clients
    model, data = inputs
    job = first.submit(model, PRUNE_AND_INT8, data=data, benchmark=BRIEF, idempotency_key="topology")
    again = second.submit(model, PRUNE_AND_INT8, data=data, benchmark=BRIEF, idempotency_key="topology")
    assert again.id == job.id
    events = []
    done = second.wait(job.id, on_event=events.append, timeout=300)
    assert done.state == "succeeded"
    assert [event.type for event in events][:2] == ["queued", "running"]
    assert events[-1].type == "succeeded"
    assert [(event.seq, event.type) for event in first.events(job.id)] == [(event.seq, event.type) for event in events]
    assert first.get_job(job.id) == second.get_job(job.id)

    assert {"model.onnx", "report.html", "manifest.json"} <= {artifact.name for artifact in done.artifacts}
    for artifact in done.artifacts:
        bytes_of = []
        for index, client in enumerate(clients):
            folder = tmp_path / str(index)
            folder.mkdir(exist_ok=True)
            bytes_of.append(client.download(job.id, artifact.name, folder).read_bytes())
        assert bytes_of[0] == bytes_of[1]
        assert hashlib.sha256(bytes_of[0]).hexdigest() == artifact.sha256


def test_two_workers_of_one_queue_work_at_once(topology, clients, inputs):
    first, second = clients
    model, _ = inputs
    jobs = [client.submit(model, PRUNE_AND_INT8[:1], benchmark=LONG, seed=n) for n, client in enumerate(clients)]
    eventually(lambda: all(first.get_job(job.id).phase == "benchmarking" for job in jobs), seconds=180, what="both run")
    # Each is cancelled through the process that did not take it.
    for job, client in zip(jobs, (second, first), strict=True):
        client.cancel(job.id)
    assert [first.wait(job.id, timeout=180).state for job in jobs] == ["cancelled"] * 2


def test_every_service_says_that_it_is_healthy(topology, clients):
    with ThreadPoolExecutor() as threads:
        assert list(threads.map(topology.healthy, WORKERS, WORKERS.values())) == [True] * 3


def test_who_shows_no_key_gets_nothing(topology, clients, inputs):
    from levity import Levity

    for client in clients:
        with Levity(client.base_url, api_key="lv_" + "0" * 60) as stranger, pytest.raises(LevityError) as refused:
            stranger.get_model(inputs[0])
        assert refused.value.status == 401
    reader = topology.new_key("--scope", "read")
    with Levity(clients[0].base_url, api_key=reader) as client:
        assert client.get_model(inputs[0]).id == inputs[0]
        with pytest.raises(LevityError) as refused:
            client.submit(inputs[0], PRUNE_AND_INT8[:1])
        assert refused.value.status == 403


def test_secrets_are_in_files_and_nowhere_else(topology, clients, inputs):
    for name, started in topology.processes.items():
        if started.popen.poll() is not None or name == "s3":
            continue
        shown = Path(f"/proc/{started.popen.pid}/environ").read_bytes()
        shown += Path(f"/proc/{started.popen.pid}/cmdline").read_bytes() + started.log.read_bytes()
        for secret in SECRETS:
            assert topology.secret(secret).encode() not in shown, (name, secret)


def test_workers_stop_when_they_are_told_to(topology, clients):
    for name in WORKERS:
        assert topology.processes[name].stop() == 0, topology.processes[name].log.read_text()[-2000:]
    assert eventually(lambda: clients[0].capabilities()["workers"] == [], what="no worker is left")
