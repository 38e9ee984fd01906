from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from levity import LevityError
from tests.acceptance import processes
from tests.acceptance.backends import NAMES, backend
from tests.acceptance.harness import BRIEF, PRUNE, Service
from tests.receiver import Receiver

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
_failed = pytest.StashKey[bool]()


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.acceptance)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    item.stash[_failed] = item.stash.get(_failed, False) or report.failed
    return report


@pytest.fixture(scope="session", params=NAMES)
def shared(request, tmp_path_factory):
    """One service for each backend, for all tests."""
    processes.adopt_orphans()
    folder = tmp_path_factory.mktemp(request.param)
    with backend(request.param, folder / "data") as chosen:
        service = Service(folder, chosen, folder / "data")
        service.ensure()
        yield service
        service.stop()
        assert processes.orphans() == []


@pytest.fixture
def service(shared, request):
    """The shared service, whole; afterwards nothing may be left of what the test did."""
    shared.ensure()
    yield shared
    if request.node.stash.get(_failed, False):
        shared.print_logs()
        shared.reset()
    else:
        shared.assert_tidy()


@dataclass(frozen=True)
class Inputs:
    """What most tests compress, and how."""

    service: Service
    model: str
    calibration: str
    evaluation: str

    def submit(self, pipeline=PRUNE, *, benchmark=BRIEF, **more):
        return self.service.client.submit(self.model, pipeline, benchmark=benchmark, **more)

    def submit_patiently(self, *, key, **more):
        """Submit once, however often nobody answers: the Idempotency-Key makes it safe to ask again."""
        while True:
            try:
                return self.submit(idempotency_key=key, **more)
            except LevityError as error:
                if error.code != "unreachable":
                    raise

    def assert_healthy(self):
        """The workers take another job and finish it."""
        job = self.service.client.wait(self.submit().id, timeout=120)
        self.service.assert_settled(job, "succeeded")


def upload_inputs(service):
    client = service.client
    model = client.create_model(DIGITS / "digits-cnn.onnx")
    calibration = client.create_dataset(DIGITS / "calibration.npz")
    evaluation = client.create_dataset(DIGITS / "evaluation.npz")
    return Inputs(service, model.id, calibration.id, evaluation.id)


@pytest.fixture(scope="session")
def _inputs(shared):
    return upload_inputs(shared)


@pytest.fixture
def inputs(service, _inputs):
    return _inputs


@pytest.fixture
def http(service):
    with httpx.Client(base_url=service.client.base_url, trust_env=False) as client:
        yield client


@pytest.fixture
def receiver():
    with Receiver() as receiver:
        yield receiver
        receiver.release()
