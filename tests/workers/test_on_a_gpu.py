"""Jobs on a GPU, where there is one: from the worker's process down to the device."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from catalog.blobs import Blobs
from catalog.jobs.repository import Jobs, NewJob
from catalog.jobs.states import JobKind, JobState, Queue
from catalog.models.repository import Models
from catalog.settings import Settings
from compression import providers
from tests.workers.conftest import require_level
from tests.workers.test_process import Deployment
from workers.devices import Reserved, cuda_devices
from workers.sandbox import Sandbox

DEVICES = cuda_devices()
DIGITS = Path(__file__).parents[2] / "examples" / "digits"
pytestmark = pytest.mark.skipif(not DEVICES, reason="no CUDA device: the driver (libcuda.so.1) shows none")

LOOK = """
import torch
print(torch.cuda.device_count(), torch.cuda.get_device_name(0), torch.ones(3, device="cuda").sum().item())
"""
EXHAUST = """
import torch
from workers.execution import _failure
try:
    torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
except torch.OutOfMemoryError as error:
    print(_failure(error, None, "this GPU").code)
"""


@pytest.mark.parametrize("level", ["rlimits", "bubblewrap"])
@pytest.mark.parametrize(
    ("program", "answer"), [(LOOK, f"1 {DEVICES[0].name if DEVICES else ''} 3.0"), (EXHAUST, "gpu_out_of_memory")]
)
def test_a_child_sees_and_uses_its_device_alone(tmp_path, level, program, answer):
    require_level(level, tmp_path)
    sandbox = Sandbox(level, Settings(data_dir=tmp_path / "data"), Queue.GPU)
    work = tmp_path / "work"
    work.mkdir()
    with Reserved(DEVICES, 1, tmp_path) as held:
        command = sandbox.wrap([sys.executable, "-P", "-s", "-c", program], work, held.take())
        done = subprocess.run(
            command.arguments, env=command.environment, cwd=work, capture_output=True, text=True, check=False
        )
    assert done.stdout.strip() == answer, done.stderr


def job_on(deployment: Deployment, steps: list[dict[str, object]], **benchmark: object) -> str:
    blobs = Blobs.from_settings(deployment.settings)
    sha256, size = blobs.copy_in(DIGITS / "digits-cnn.onnx")
    with deployment.database.write() as session:
        model = Models(session).add(name="m", files=[{"name": "m.onnx", "sha256": sha256, "size": size}])
        spec = {"steps": steps, "benchmark": {"max_seconds": 1, **benchmark}}
        new = NewJob(JobKind.COMPRESS, Queue.GPU, max_attempts=1, time_limit_seconds=300, model_id=model.id, spec=spec)
        return Jobs(session).add(new).id


def test_a_job_is_measured_on_cuda(tmp_path):
    deployment = Deployment(tmp_path / "data", sweep_seconds="1")
    try:
        deployment.start(queue="gpu")
        (row,) = deployment.wait_until(deployment.workers)
        assert [gpu["name"] for gpu in row.capabilities["gpus"]] == [DEVICES[0].name]
        job_id = job_on(deployment, [{"type": "prune", "amount": 0.5}])
        deployment.wait_until(lambda: JobState(deployment.job(job_id).state).terminal, seconds=120)
        job = deployment.job(job_id)
        assert job.state == "succeeded", job.error
        measured_on = "cuda" if "cuda" in providers.available() else "cpu"
        assert job.result["measured"]["conditions"]["provider"] == measured_on
    finally:
        deployment.close()
