"""A worker process: puts the parts together, and takes them apart again on SIGTERM."""

from __future__ import annotations

import logging
import os
import signal
from functools import partial
from types import FrameType

from catalog.blobs import Blobs
from catalog.broker import Wakeups, build_celery
from catalog.db import Database
from catalog.ids import new_id
from catalog.jobs.states import Queue
from catalog.settings import Settings
from catalog.storage.ledger import DatabaseLedger
from catalog.workers.repository import Workers
from workers import capabilities
from workers.alarm import Alarm
from workers.celery_app import Receiver
from workers.children import Children
from workers.collecting import CollectorThread
from workers.devices import NoFreeDevice, Reserved, cuda_devices
from workers.jobs import JobLoop
from workers.lease import Drain
from workers.sandbox import Sandbox
from workers.supervisor import Supervisor
from workers.sweeper import Sweeper
from workers.webhooks import Deliverer
from workers.workspace import Workspace

logger = logging.getLogger(__name__)

# Two compression jobs at once would spoil each other's timings; inspections are not timed.
DEFAULT_CONCURRENCY = {Queue.CPU: 1, Queue.GPU: 1, Queue.IO: 4}


class CannotServe(Exception):
    """This machine lacks what the queue needs."""


def serve(settings: Settings, queue: Queue, concurrency: int) -> None:
    """Work on `queue` until a signal says to stop.

    Raises:
        CannotServe: Queue gpu, and this machine has not a free CUDA device for each job at once.
        SandboxUnavailable: The sandbox that `settings` insist on does not work here.
        TablesBehind: The tables are of an older release, and `settings` leave them alone.
    """
    devices = _reserve(settings, concurrency) if queue is Queue.GPU else None
    worker_id = new_id("wrk")
    sandbox = Sandbox.choose(settings, queue)
    if devices is not None:
        _check_sight(sandbox, devices)
    workspace = Workspace(settings.folder("work"), worker_id)
    children = Children(
        sandbox,
        workspace.folder,
        warm=settings.warm_children,
        refill_at_once=queue is Queue.IO,
        devices=devices,
    )
    children.prepare()
    # Children warm up while the rest is set up.
    database = Database(settings.resolved_database_url)
    database.prepare(migrate=settings.migrate)
    app = build_celery(settings)
    drain = Drain()
    alarm = Alarm()
    threads = 0 if concurrency == 1 else max(1, len(os.sched_getaffinity(0)) // concurrency)
    wakeups = Wakeups(app)
    database.after_outbox = partial(wakeups.wake, Queue.IO)
    blobs = Blobs.from_settings(settings, DatabaseLedger(database))
    supervisor = Supervisor(
        settings=settings,
        database=database,
        blobs=blobs,
        children=children,
        wakeups=wakeups,
        drain=drain,
        queue=queue,
        memory_limit=sandbox.memory_limit,
        threads=threads,
        alarm=alarm,
    )
    jobs = JobLoop(
        settings=settings,
        database=database,
        supervisor=supervisor,
        drain=drain,
        queue=queue,
        worker_id=worker_id,
        slots=concurrency,
    )
    sweeper = Sweeper(
        settings=settings,
        database=database,
        wakeups=wakeups,
        workspace=workspace,
        jobs=jobs,
        alarm=alarm,
        queue=queue,
        worker_id=worker_id,
        slots=concurrency,
        capabilities=capabilities.describe(
            sandbox, threads=threads, devices=() if devices is None else devices.devices
        ),
    )
    beside: list[Sweeper | CollectorThread | Deliverer] = [sweeper, CollectorThread(settings, database, blobs)]
    deliverer = None
    if queue is Queue.IO:
        deliverer = Deliverer(settings=settings, database=database, drain=drain, worker_id=worker_id)
        beside.append(deliverer)

    def wake() -> None:
        if deliverer is not None:
            deliverer.wake()
        jobs.run_until_empty()

    receiver = Receiver(app, queue, concurrency, wake)
    try:
        # Before anything can claim a job, which a signal that nobody listens to would make it lose.
        _stop_on_signals(drain, settings.drain_seconds)
        logger.info("worker %s serves queue %s, %d at once, sandbox %s", worker_id, queue, concurrency, sandbox.level)
        for part in beside:
            part.start()
        receiver.run()
    finally:
        if not drain.begun.is_set():
            drain.begin(settings.drain_seconds)
        for part in reversed(beside):
            part.stop()
        children.close()
        with database.write() as session:
            Workers(session).forget(worker_id)
        database.dispose()
        workspace.close()
        if devices is not None:
            devices.close()
        logger.info("worker %s has stopped", worker_id)


def _reserve(settings: Settings, concurrency: int) -> Reserved:
    """A CUDA device for each job at once."""
    found = cuda_devices()
    if not found:
        raise CannotServe(
            "Queue gpu needs a CUDA device, and the driver (libcuda.so.1) shows none. Serve queue cpu instead."
        )
    try:
        devices = Reserved(found, concurrency, settings.folder("devices"))
    except NoFreeDevice as error:
        raise CannotServe(str(error)) from error
    for device in devices.devices:
        logger.info("jobs compute on %s (%s)", device, device.selector)
    return devices


def _check_sight(sandbox: Sandbox, devices: Reserved) -> None:
    """See that children find their devices: better missed now than in every job."""
    if all(map(sandbox.sees, devices.devices)):
        return
    sandbox.hides_devices = False
    unseen = [device for device in devices.devices if not sandbox.sees(device)]
    if unseen:
        raise CannotServe(
            f"Children do not see {unseen[0]} ({unseen[0].selector}), confined by {sandbox.level}, though this process "
            "does. LEVITY_SANDBOX=rlimits would show them everything."
        )
    logger.warning("the driver does not start where other devices' files are hidden: children see them all")


def _stop_on_signals(drain: Drain, drain_seconds: float) -> None:
    def stop(_number: int, _frame: FrameType | None) -> None:
        # The first signal leaves running jobs some time, the second none.
        if drain.begun.is_set():
            drain.begin(0)
        else:
            drain.begin(drain_seconds)
            Receiver.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
