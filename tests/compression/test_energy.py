"""Energy from counters that a test moves."""

from __future__ import annotations

import os

import pytest

from compression.benchmarking.energy import Counters, NotReadable, energy_metrics


class Machine:
    """A powercap tree with two packages; calls take time and energy."""

    def __init__(self, root, limit=10**9):
        self.root, self.limit, self.now = root, limit, 0.0
        self.taken = {}
        for zone, name, start in (("intel-rapl:0", "package-0", 0), ("intel-rapl:1", "package-1", limit - 5)):
            self._zone(zone, name, start)
        # A core of the first package, and the first package once more: neither counts twice.
        self._zone("intel-rapl:0:0", "core", 7)
        self._zone("intel-rapl-mmio:0", "package-0", 0)
        (root / "intel-rapl").mkdir()

    def _zone(self, zone, name, start):
        folder = self.root / zone
        folder.mkdir(parents=True)
        (folder / "name").write_text(f"{name}\n")
        (folder / "max_energy_range_uj").write_text(f"{self.limit}\n")
        self.taken[zone] = start
        (folder / "energy_uj").write_text(f"{start}\n")

    def call(self, seconds, microjoules):
        def run():
            self.now += seconds
            for zone in self.taken:
                self.taken[zone] = (self.taken[zone] + microjoules) % (self.limit + 1)
                (self.root / zone / "energy_uj").write_text(f"{self.taken[zone]}\n")

        return run


def test_packages_are_added_up_and_counters_begin_anew(tmp_path):
    machine = Machine(tmp_path / "powercap")
    counters = Counters(machine.root)
    machine.call(0, 2_000_000)()
    # Both packages took 2 J, the second one beyond its counter's end.
    assert counters.joules() == pytest.approx(4.0)
    assert counters.joules() == 0.0


def test_energy_of_a_call_by_hand(tmp_path):
    machine = Machine(tmp_path / "powercap", limit=10**15)
    metrics, notes = energy_metrics(
        machine.call(0.01, 3000), machine.call(0.005, 1000), 2.0, 0, root=machine.root, clock=lambda: machine.now
    )
    (found,) = metrics
    assert (found.name, found.unit, found.direction) == ("energy_per_call", "joules", "lower_is_better")
    assert (found.original, found.result, found.ratio) == pytest.approx((0.006, 0.002, 3.0))
    assert found.interval[0] < 3 < found.interval[1]
    assert found.verdict.startswith("less energy, 3.00x [")
    assert notes == ["Energy is that of the whole processor, with whatever else ran on it meanwhile."]
    assert machine.now == pytest.approx(2.0, abs=0.2)


def test_what_cannot_be_read_is_said_and_nothing_fails(tmp_path):
    def measured(root, joules=1):
        return energy_metrics(lambda: None, lambda: None, 1e-4, 0, root=root)

    assert measured(tmp_path / "none") == ([], ["Energy was not measured: this system shows no energy counters."])
    (tmp_path / "empty").mkdir()
    assert measured(tmp_path / "empty")[1] == [
        "Energy was not measured: this system shows no energy counters of processor packages."
    ]
    machine = Machine(tmp_path / "still")
    assert measured(machine.root) == (
        [],
        ["Energy was not measured: the counters stood still; give energy_seconds more time."],
    )
    (machine.root / "intel-rapl:0" / "energy_uj").write_text("nonsense")
    assert measured(machine.root)[1][0].startswith("Energy was not measured: the energy counters cannot be read: ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_counters_for_root_alone(tmp_path):
    machine = Machine(tmp_path / "powercap")
    for zone in machine.taken:
        (machine.root / zone / "energy_uj").chmod(0)
    with pytest.raises(NotReadable, match="only root may read"):
        Counters(machine.root)


def test_counters_that_are_refused(tmp_path, monkeypatch):
    machine = Machine(tmp_path / "powercap")

    def refuse(_counters):
        raise PermissionError

    monkeypatch.setattr(Counters, "_read", refuse)
    with pytest.raises(NotReadable, match="only root may read this system's energy counters"):
        Counters(machine.root)
