"""Half an hour of mixed work while everything is killed, stopped and cut off at random.

`LEVITY_SOAK_MINUTES` sets how long, over both backends together; `LEVITY_SOAK_SEED` repeats what is done, though not
at the same moments. The API process and the two workers whose memory is measured are stopped and cut off, never killed;
the S3 server is left alone, because it keeps everything in memory.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections import Counter

import numpy as np
import pytest
from onnx import helper
from sqlalchemy import select

from catalog.jobs.tables import AttemptRow
from tests.acceptance import processes
from tests.acceptance.backends import NAMES, backend
from tests.acceptance.conftest import DIGITS
from tests.acceptance.harness import Service
from tests.acceptance.soak.audit import (
    Memory,
    faults_of_deliveries,
    faults_of_jobs,
    leaks,
    leftover_bytes,
    now,
    wait_until_all_has_ended,
)
from tests.acceptance.soak.load import Load, Things
from tests.acceptance.soak.mayhem import Mayhem
from tests.compression.models import make_model, save, value
from tests.receiver import Answer, Receiver

MINUTES = float(os.environ.get("LEVITY_SOAK_MINUTES", "30"))
SEED = int(os.environ.get("LEVITY_SOAK_SEED", str(random.SystemRandom().randrange(10**6))))
# Most faults are about servers.
SHARE = dict(zip(NAMES, (1 / 3, 2 / 3), strict=True))
# Long enough that a machine at its limits keeps its leases, short enough that many are lost.
PACE = {"lease_seconds": 6, "heartbeat_seconds": 1, "sweep_seconds": 1, "drain_seconds": 2}
# The collector races with all of it, giving bytes that nothing names longer than any pause lasts.
COLLECTION = {"collect_seconds": 15, "collect_grace_seconds": 240}
# Below this, what a process allocates when it is young is all there is to see.
FLAT_AFTER_MINUTES = 8
GROWTH_MIB = 24


def broken_model(path):
    """One that looks well and cannot be run: it makes three columns of four."""
    weights = {"shape": np.array([-1, 3], np.int64), "scale": np.ones((4, 4), np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "scale"], ["scaled"], "scale_x"),
        helper.make_node("Reshape", ["scaled", "shape"], ["y"], "reshape"),
    ]
    return save(make_model(nodes, [value("x", ["n", 4])], [value("y", ["m", 3])], weights), path)


@pytest.mark.soak
@pytest.mark.timeout(int(60 * MINUTES) + 1800)
@pytest.mark.parametrize("name", NAMES)
def test_soak(name, tmp_path):
    seconds = 60 * MINUTES * SHARE[name]
    say(f"\n{now()} {name}: {seconds / 60:.1f} minutes, LEVITY_SOAK_SEED={SEED}")
    processes.adopt_orphans()
    data_dir, temporary, files = (tmp_path / part for part in ("data", "temporary", "files"))
    temporary.mkdir()
    files.mkdir()
    # One answer of ten is a failure.
    answers = [*([Answer(204)] * 9 + [Answer(500)]) * 2000, Answer(204)]
    with backend(name, data_dir, own_redis=True) as chosen, Receiver(*answers) as receiver:
        service = Service(tmp_path, chosen, data_dir, **PACE, **COLLECTION)
        service.environment["TMPDIR"] = str(temporary)
        try:
            rows = soak(service, receiver, seconds, files, temporary)
        except BaseException:
            say(f"every process's log is in {tmp_path}")
            service.reset()
            raise
        finally:
            service.stop()
    say("\n".join(f"| {what} | {number} |" for what, number in [(name, ""), ("---", "---"), *rows]))


def soak(service, receiver, seconds, files, temporary):
    service.ensure()
    client = service.client
    things = Things(
        client.create_model(DIGITS / "digits-cnn.onnx").id,
        client.create_model(broken_model(files / "broken.onnx")).id,
        {role: client.create_dataset(DIGITS / f"{role}.npz").id for role in ("calibration", "training")},
    )
    client.create_webhook(receiver.url)
    mayhem = Mayhem(service, seed=SEED)
    load = Load(mayhem.urls, things, files, seed=SEED)
    begun = time.monotonic()
    with Memory(mayhem.witnesses, seconds) as memory:
        load.start()
        try:
            mayhem.rage(seconds)
        finally:
            load.stop(seconds=900)
        lasted = time.monotonic() - begun
        wait_until_all_has_ended(service)
    job_faults = faults_of_jobs(service, load.orders)
    delivery_faults, deliveries = faults_of_deliveries(service, [one.headers for one in receiver.received])
    left = leaks(service, temporary)
    byte_faults, named, collected = leftover_bytes(service)
    staged = list((service.data_dir / "staging").iterdir())
    service.blobs.remove_abandoned(older_than=time.time() + 1)
    left += [f"staged file {path}" for path in (service.data_dir / "staging").iterdir()]
    rows = [
        ("seed; minutes with load", f"{SEED}; {lasted / 60:.1f}"),
        *((f"jobs: {kind}", ends(load, kind)) for kind in sorted({order.kind for order in load.orders})),
        ("uploads and datasets", load.uploads),
        *sorted(outcomes(service).items()),
        *sorted(mayhem.done.items()),
        ("requests asked again", dict(load.retries)),
        ("deliveries", dict(deliveries)),
        ("staged files of killed processes, removed as abandoned", len(staged)),
        ("blobs that are named; that the collector removed at the end", f"{named}; {collected}"),
        *((f"{name} that lived on: MiB, descriptors", growth(memory, name)) for name in mayhem.witnesses),
        ("jobs lost, doubled, or not as they should be", len(job_faults)),
        ("deliveries lost or doubled", len(delivery_faults)),
        ("processes, files, leases left over", len(left)),
        ("blobs missing, wrong or left over", len(byte_faults)),
        ("answers that were defects", len(load.defects)),
    ]
    faults = [*job_faults, *delivery_faults, *left, *byte_faults, *load.defects]
    if seconds >= 60 * FLAT_AFTER_MINUTES:
        for name in mayhem.witnesses:
            early, late, early_files, late_files = memory.growth(name)
            if late - early > GROWTH_MIB or late_files - early_files > 20:
                faults.append(f"{name} grows: {growth(memory, name)}")
    if faults:
        say("\n".join(f"| {what} | {number} |" for what, number in rows))
    assert faults == []
    return rows


def ends(load, kind):
    return ", ".join(
        f"{number} {state or 'not ended'}"
        for state, number in sorted(Counter(order.state for order in load.orders if order.kind == kind).items())
    )


def outcomes(service):
    with service.database.read() as session:
        rows = session.execute(select(AttemptRow.outcome, AttemptRow.error)).all()
    return Counter(
        f"attempts: {outcome}" + (f" ({error['code']})" if error and outcome == "failed" else "")
        for outcome, error in rows
    )


def growth(memory, name):
    early, late, early_files, late_files = memory.growth(name)
    return f"{early:.0f} to {late:.0f}, {early_files} to {late_files} of {len(memory.samples[name])} samples"


def say(text):
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
