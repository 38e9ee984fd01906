"""What Prometheus is told of the database: jobs, workers, deliveries, and all that has been counted there.

What happens in workers is counted in the database rather than at a port of theirs. It is counted in the transaction of
what it tells of, so it is exact whatever dies; workers come and go with the load, and nobody has to find them; and the
embedded service has it all behind one address.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from catalog.blobs import Blobs
from catalog.db import Database
from catalog.jobs.repository import Jobs, Unfinished
from catalog.jobs.states import JobState, Queue
from catalog.storage.collection import Collection
from catalog.storage.tables import CollectionRow
from catalog.totals.metrics import COUNTERS, HISTOGRAMS
from catalog.totals.repository import Totals
from catalog.webhooks.deliveries import Deliveries
from catalog.webhooks.states import DeliveryState
from catalog.workers.repository import Seen, Workers


@dataclass(frozen=True)
class _Snapshot:
    """What one scrape finds in the database."""

    jobs: Sequence[Unfinished]
    overdue_leases: int
    workers: Sequence[Seen]
    deliveries: Mapping[str, int]
    overdue_seconds: float
    totals: Totals
    collection: CollectionRow | None
    now: float


class CatalogCollector(Collector):
    """Asks the database at every scrape; each question is answered from an index or a small table.

    Args:
        database: Unconfined: the numbers are of all tenants.
        blobs: For the room on the disk that takes new bytes in.
        worker_silence_seconds: A worker that was not seen for so long is not counted as live.
    """

    def __init__(self, database: Database, blobs: Blobs, worker_silence_seconds: float) -> None:
        self._database = database
        self._blobs = blobs
        self._silence = worker_silence_seconds

    def describe(self) -> list[Metric]:
        """Nothing: registering must not ask the database."""
        return []

    def collect(self) -> Iterator[Metric]:
        with self._database.snapshot() as session:
            jobs, deliveries, collection = Jobs(session), Deliveries(session), Collection(session)
            found = _Snapshot(
                jobs=jobs.unfinished(),
                overdue_leases=jobs.overdue_leases(),
                workers=Workers(session).seen_seconds_ago(),
                deliveries=deliveries.under_way(),
                overdue_seconds=deliveries.overdue_seconds(),
                totals=Totals(session),
                collection=collection.state(),
                now=collection.now(),
            )
        yield from _of_jobs(found)
        yield from self._of_workers(found)
        yield from _of_deliveries(found)
        yield from _of_store(found.collection, found.now)
        yield from _of_totals(found.totals)
        yield GaugeMetricFamily(
            "levity_staging_free_bytes", "Room on the disk that takes new bytes in.", value=self._blobs.free_bytes()
        )
        yield InfoMetricFamily("levity_build", "The release.", value={"version": version("levity")})

    def _of_workers(self, found: _Snapshot) -> Iterator[Metric]:
        live = [worker for worker in found.workers if worker.seconds_ago <= self._silence]
        number, slots = Tally(worker.queue for worker in live), Tally[str]()
        for worker in live:
            slots[worker.queue] += worker.concurrency
        yield _by_queue("levity_workers", "Live workers, by queue.", number.__getitem__)
        yield _by_queue("levity_worker_slots", "Jobs that live workers run at once, by queue.", slots.__getitem__)
        seen = GaugeMetricFamily(
            "levity_worker_seen_seconds",
            "Seconds since a worker was last heard of; one that stopped in order is not listed.",
            labels=("worker", "queue"),
        )
        for worker in found.workers:
            seen.add_metric((worker.id, worker.queue), worker.seconds_ago)
        yield seen


def _of_jobs(found: _Snapshot) -> Iterator[Metric]:
    jobs = GaugeMetricFamily(
        "levity_jobs", "Jobs that have not ended, by kind, queue and state.", labels=("kind", "queue", "state")
    )
    waiting: Tally[str] = Tally()
    oldest: dict[str, float] = {}
    for group in found.jobs:
        jobs.add_metric((group.kind, group.queue, group.state), group.number)
        if group.state is JobState.QUEUED:
            waiting[group.queue] += group.number
            oldest[group.queue] = max(oldest.get(group.queue, 0.0), group.oldest_seconds)
    yield jobs
    yield _by_queue("levity_queue_depth", "Jobs that wait, by queue.", waiting.__getitem__)
    yield _by_queue(
        "levity_queue_oldest_seconds",
        "For how long the first job that waits could have been claimed, in seconds, by queue.",
        lambda queue: oldest.get(queue, 0.0),
    )
    yield GaugeMetricFamily(
        "levity_leases_overdue",
        "Running jobs whose lease ran out and which no worker has taken back yet.",
        value=found.overdue_leases,
    )


def _of_deliveries(found: _Snapshot) -> Iterator[Metric]:
    family = GaugeMetricFamily(
        "levity_webhook_deliveries", "Webhook deliveries that have not ended, by state.", labels=("state",)
    )
    for state in (DeliveryState.WAITING, DeliveryState.SENDING):
        family.add_metric((state,), found.deliveries.get(state, 0))
    yield family
    yield GaugeMetricFamily(
        "levity_webhook_overdue_seconds",
        "For how long the oldest delivery that could be sent has not been, in seconds.",
        value=found.overdue_seconds,
    )


def _of_store(collection: CollectionRow | None, now: float) -> Iterator[Metric]:
    if collection is None or collection.finished_at is None:
        return
    for name, documentation, value in (
        ("levity_store_blobs", "Blobs in the store when it was last looked through.", collection.blobs),
        ("levity_store_bytes", "Their bytes.", collection.bytes),
        ("levity_store_unused_bytes", "Bytes that nothing named for a grace period, then.", collection.unused_bytes),
        (
            "levity_collection_age_seconds",
            "Time since the store was last looked through.",
            now - collection.finished_at,
        ),
    ):
        yield GaugeMetricFamily(name, documentation, value=value)


def _of_totals(totals: Totals) -> Iterator[Metric]:
    for counter in COUNTERS:
        family = CounterMetricFamily(counter.name, counter.help, labels=counter.labels)
        for labels, value in sorted(totals.of_counter(counter).items()):
            family.add_metric(labels, value)
        yield family
    for histogram in HISTOGRAMS:
        distribution = HistogramMetricFamily(histogram.name, histogram.help, labels=histogram.labels)
        for labels, (buckets, total) in totals.of_histogram(histogram).items():
            distribution.add_metric(labels, buckets, total)
        yield distribution


def _by_queue(name: str, documentation: str, value: Callable[[str], float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, documentation, labels=("queue",))
    for queue in Queue:
        family.add_metric((queue,), value(queue))
    return family
