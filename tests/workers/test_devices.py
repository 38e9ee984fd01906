"""CUDA devices: found, reserved, given to children, hidden from others. The driver is a double; no GPU is needed."""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from catalog.jobs.states import Queue
from catalog.settings import Settings
from tests.workers.conftest import StandInSandbox, require_level
from workers import capabilities
from workers.children import Children
from workers.devices import Device, NoFreeDevice, Reserved, cuda_devices, device_files, devices_of
from workers.sandbox import Sandbox
from workers.service import CannotServe, _check_sight

GIB = 2**30
IDS = [uuid.UUID(int=number) for number in (7, 8)]


class Driver:
    """Answers as libcuda.so.1 does: into the place that the caller points to, with 0 for success."""

    def __init__(self, *names, broken=None):
        self.names = names
        self.broken = broken

    def cuInit(self, _flags):  # noqa: N802
        return 100 if self.broken == "init" else 0

    def cuDeviceGetCount(self, count):  # noqa: N802
        count._obj.value = len(self.names)
        return 0

    def cuDeviceGet(self, device, index):  # noqa: N802
        device._obj.value = index
        return 0

    def cuDeviceGetName(self, name, _size, device):  # noqa: N802
        name.value = self.names[device.value].encode()
        return 999 if self.broken == device.value else 0

    def cuDeviceTotalMem_v2(self, size, device):  # noqa: N802
        size._obj.value = (device.value + 1) * 8 * GIB
        return 0

    def cuDeviceGetUuid(self, identity, device):  # noqa: N802
        identity._obj[:] = IDS[device.value].bytes
        return 0

    def cuDeviceGetPCIBusId(self, place, _size, device):  # noqa: N802
        place.value = f"0000:{device.value + 10:02X}:00.0".encode()
        return 0


class NewerDriver(Driver):
    """Tells parts of one device apart."""

    def cuDeviceGetUuid_v2(self, identity, device):  # noqa: N802
        identity._obj[:] = uuid.UUID(int=100 + device.value).bytes
        return 0


@pytest.fixture
def information(tmp_path):
    """What the driver says under /proc of the device on bus 0A, which is /dev/nvidia3."""
    folder = tmp_path / "gpus" / "0000:0a:00.0"
    folder.mkdir(parents=True)
    (folder / "information").write_text("Model: \t\t NVIDIA One\nIRQ:   \t\t 42\nDevice Minor: \t 3\n")
    return folder.parent


def test_devices_as_the_driver_tells_of_them(information):
    one, two = devices_of(Driver("NVIDIA One", "NVIDIA Two"), None, information)
    assert one == Device(str(IDS[0]), f"GPU-{IDS[0]}", "NVIDIA One", 8 * GIB, minor=3)
    assert two == Device(str(IDS[1]), f"GPU-{IDS[1]}", "NVIDIA Two", 16 * GIB, minor=None)
    assert str(two) == "NVIDIA Two, 16.0 GiB"


def test_names_that_the_operator_gave_stay_in_use(information):
    devices = devices_of(NewerDriver("One", "Two"), "MIG-abc, 5", information)
    assert [device.selector for device in devices] == ["MIG-abc", "5"]
    assert [device.identity for device in devices] == [str(uuid.UUID(int=100)), str(uuid.UUID(int=101))]
    assert [device.selector for device in devices_of(Driver("One"), None, information)] == ["0"]


def test_what_cannot_be_used_is_no_device(information):
    assert devices_of(Driver("One", broken="init"), None, information) == []
    assert [device.name for device in devices_of(Driver("One", "Two", broken=0), None, information)] == ["Two"]


def device(number):
    return Device(f"id-{number}", f"GPU-{number}", f"Card {number}", 8 * GIB, minor=number)


def test_each_slot_has_a_device_of_its_own_and_other_workers_have_others(tmp_path):
    there = [device(0), device(1), device(2)]
    with Reserved(there, 2, tmp_path) as first:
        assert first.devices == (there[0], there[1])
        with Reserved(there, 1, tmp_path) as second:
            assert second.devices == (there[2],)
            with pytest.raises(NoFreeDevice, match=r"1 jobs at once.*shows 3, of which other workers leave 0"):
                Reserved(there, 1, tmp_path)
        taken = {first.take(), first.take()}
        assert taken == {there[0], there[1]}
        assert first.take() is None
        first.give_back(there[1])
        assert first.take() == there[1]
    with Reserved(there, 3, tmp_path) as all_of_them:
        assert all_of_them.devices == tuple(there)


def test_a_worker_that_asks_for_too_many_keeps_none(tmp_path):
    with pytest.raises(NoFreeDevice, match="2 jobs at once"):
        Reserved([device(0)], 2, tmp_path)
    Reserved([device(0)], 1, tmp_path).close()


def test_a_device_is_free_again_when_its_worker_dies(tmp_path):
    program = (
        "import sys, time; from pathlib import Path; from workers.devices import Device, Reserved\n"
        "held = Reserved([Device('id-0', 'GPU-0', 'Card', 1)], 1, Path(sys.argv[1])); print('held', flush=True)\n"
        "time.sleep(60)"
    )
    worker = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert worker.stdout.readline() == "held\n"
    with pytest.raises(NoFreeDevice):
        Reserved([device(0)], 1, tmp_path)
    worker.kill()
    worker.wait()
    worker.stdout.close()
    Reserved([device(0)], 1, tmp_path).close()


def test_files_of_other_devices_are_hidden(tmp_path):
    for name in ("nvidia0", "nvidia1", "nvidia10", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "null"):
        (tmp_path / name).touch()
    (tmp_path / "nvidia-caps").mkdir()
    shared = {"nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-caps"}
    assert {path.name for path in device_files(device(1), tmp_path)} == {"nvidia1", *shared}
    unknown = Device("id", "0", "Card", 1, minor=None)
    every = {"nvidia0", "nvidia1", "nvidia10", *shared}
    assert {path.name for path in device_files(unknown, tmp_path)} == every
    assert {path.name for path in device_files(None, tmp_path)} == every


def test_the_sandbox_shows_a_child_its_own_device(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr("workers.sandbox.device_files", lambda one: [Path(f"/dev/nvidia{one.minor}")])
    for level in ("rlimits", "bubblewrap"):
        command = Sandbox(level, Settings(data_dir=tmp_path), Queue.GPU).command(tmp_path, device(1))
        assert command.environment["CUDA_VISIBLE_DEVICES"] == "GPU-1"
    bound = [command.arguments[at + 1 : at + 3] for at, word in enumerate(command.arguments) if word == "--dev-bind"]
    assert bound == [["/dev/nvidia1", "/dev/nvidia1"]]
    cpu = Sandbox("bubblewrap", Settings(data_dir=tmp_path), Queue.CPU).command(tmp_path)
    assert "--dev-bind" not in cpu.arguments


def test_children_and_devices_belong_together(bench, tmp_path):
    """Two devices, two jobs at once, one warm child: no device is ever two children's."""
    devices = Reserved([device(0), device(1)], 2, tmp_path)
    children = Children(bench.sandbox, bench.settings.folder("work"), warm=1, refill_at_once=False, devices=devices)

    def settled():
        children._spawner.submit(lambda: None).result()
        return len(children._spares)

    def visible(child):
        words = Path(f"/proc/{child.pid}/environ").read_bytes().split(b"\0")
        return [word for word in words if word.startswith(b"CUDA_VISIBLE_DEVICES=")]

    for _ in range(3):
        children.prepare()
        first = children.take()
        children.prepare()
        second = children.take()
        assert {first.device, second.device} == {device(0), device(1)}
        assert visible(first) == [f"CUDA_VISIBLE_DEVICES={first.device.selector}".encode()]
        assert settled() == 0, "no device is left for a third"
        children.prepare()
        assert settled() == 0
        with pytest.raises(NoFreeDevice):
            children.take()
        gone = first.device
        children.dismiss(first)
        children.prepare()
        assert settled() == 1
        third = children.take()
        assert third.device == gone
        children.dismiss(second)
        children.dismiss(third)
    children.close()
    bench.assert_tidy()
    assert {devices.take(), devices.take()} == {device(0), device(1)}
    devices.close()


def test_a_device_is_not_lost_when_no_process_can_be_started(bench, tmp_path, monkeypatch):
    devices = Reserved([device(0)], 1, tmp_path)
    children = Children(bench.sandbox, bench.settings.folder("work"), warm=0, refill_at_once=False, devices=devices)
    monkeypatch.setattr(StandInSandbox, "command", lambda *_: (_ for _ in ()).throw(OSError("no memory")))
    with pytest.raises(OSError, match="no memory"):
        children.take()
    monkeypatch.undo()
    children.dismiss(children.take())
    children.close()
    devices.close()


def test_capabilities_name_the_devices_of_the_worker(tmp_path, monkeypatch):
    sandbox = Sandbox("rlimits", Settings(data_dir=tmp_path), Queue.GPU)
    monkeypatch.setattr(capabilities.providers, "installed", lambda *, gpu: ["cpu", *(["cuda"] if gpu else [])])
    facts = capabilities.describe(sandbox, threads=1, devices=[device(0)])
    assert facts["gpus"] == [{"name": "Card 0", "memory_bytes": 8 * GIB}]
    assert facts["providers"] == ["cpu", "cuda"]
    assert capabilities.describe(sandbox, threads=1)["providers"] == ["cpu"]


def test_a_child_offers_itself_when_memory_runs_out(bench_of_each_level):
    children = bench_of_each_level.children
    child = children.take()
    try:
        deadline = time.monotonic() + 30
        while _lowest(child.pid) != 500:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert int(Path("/proc/self/oom_score_adj").read_text()) < 500
    finally:
        children.dismiss(child)


def _lowest(pid):
    """The score of the innermost process below `pid`, itself included."""
    while True:
        below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if not below:
            return int(Path(f"/proc/{pid}/oom_score_adj").read_text())
        pid = int(below[0])


class Blind(StandInSandbox):
    """Children find a device only when all files are shown, or not at all."""

    def __init__(self, *arguments, ever):
        super().__init__(*arguments)
        self.ever = ever

    def sees(self, _device):
        return self.ever and not self.hides_devices


def test_a_worker_sees_to_it_that_children_find_their_devices(tmp_path, caplog):
    settings = Settings(data_dir=tmp_path)
    with Reserved([device(0), device(1)], 2, tmp_path) as devices:
        sandbox = Blind("bubblewrap", settings, Queue.GPU, ever=True)
        _check_sight(sandbox, devices)
        assert sandbox.hides_devices is False
        assert "children see them all" in caplog.text
        with pytest.raises(CannotServe, match=r"do not see Card 0, 8.0 GiB \(GPU-0\), confined by bubblewrap"):
            _check_sight(Blind("bubblewrap", settings, Queue.GPU, ever=False), devices)


@pytest.mark.parametrize("level", ["rlimits", "bubblewrap"])
def test_whether_a_child_sees_a_device_is_asked_of_a_child(tmp_path, level):
    require_level(level, tmp_path)
    sandbox = Sandbox(level, Settings(data_dir=tmp_path), Queue.GPU)
    program = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"
    assert sandbox._run(program, device(1)).stdout == "GPU-1\n"
    here = cuda_devices()
    assert sandbox.sees(here[0] if here else device(0)) is bool(here)
