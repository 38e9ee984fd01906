"""What is counted, for Prometheus. Each process has a registry of its own; what is in the database is asked there."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterator

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from api.authentication import PRINCIPAL
from catalog.db import Database
from catalog.jobs.repository import Jobs
from catalog.jobs.states import JobState, Queue
from catalog.webhooks.deliveries import Deliveries
from catalog.webhooks.states import DeliveryState
from catalog.workers.repository import Workers

_LATENCY_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

router = APIRouter(tags=["health"])


class Metrics:
    """Counters of this process, and gauges over the database.

    Args:
        database: Where jobs and workers are.
        worker_silence_seconds: A worker that was not seen for so long is not counted as live.
    """

    def __init__(self, database: Database, *, worker_silence_seconds: float) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "levity_http_requests_total",
            "Requests by method, route template and status.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self.latency = Histogram(
            "levity_http_request_seconds",
            "Time to the end of the response, in seconds, transfers and waiting included.",
            ("method", "route"),
            buckets=_LATENCY_SECONDS,
            registry=self.registry,
        )
        self.upload_bytes = Counter(
            "levity_upload_bytes_total", "Bytes of uploads that arrived whole.", registry=self.registry
        )
        self.registry.register(_CatalogCollector(database, worker_silence_seconds))


class _CatalogCollector(Collector):
    def __init__(self, database: Database, worker_silence_seconds: float) -> None:
        self._database = database
        self._silence = worker_silence_seconds

    def describe(self) -> list[Metric]:
        """Nothing: registering must not ask the database."""
        return []

    def collect(self) -> Iterator[Metric]:
        with self._database.read() as session:
            counts = Jobs(session).counts()
            oldest = Jobs(session).oldest_waiting_seconds()
            deliveries = Deliveries(session)
            under_way, overdue = deliveries.under_way(), deliveries.overdue_seconds()
            live = Tally(worker.queue for worker in Workers(session).alive(seconds=self._silence))
        jobs = GaugeMetricFamily("levity_jobs", "Jobs by kind, queue and state.", labels=("kind", "queue", "state"))
        waiting: Tally[str] = Tally()
        for (kind, queue, state), count in sorted(counts.items()):
            jobs.add_metric((kind, queue, state), count)
            if state == JobState.QUEUED:
                waiting[queue] += count
        yield jobs
        yield _by_queue("levity_queue_depth", "Jobs that wait, by queue.", waiting.__getitem__)
        yield _by_queue(
            "levity_queue_oldest_seconds",
            "Age of the oldest job that waits, in seconds, by queue.",
            lambda queue: oldest.get(queue, 0.0),
        )
        yield _by_queue("levity_workers", "Live workers, by queue.", live.__getitem__)
        family = GaugeMetricFamily(
            "levity_webhook_deliveries", "Webhook deliveries that have not ended, by state.", labels=("state",)
        )
        for state in (DeliveryState.WAITING, DeliveryState.SENDING):
            family.add_metric((state,), under_way.get(state, 0))
        yield family
        yield GaugeMetricFamily(
            "levity_webhook_overdue_seconds",
            "For how long the oldest delivery that could be sent has not been, in seconds.",
            value=overdue,
        )


def _by_queue(name: str, documentation: str, value: Callable[[str], float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, documentation, labels=("queue",))
    for queue in Queue:
        family.add_metric((queue,), value(queue))
    return family


@router.get(
    "/metrics",
    operation_id="get_metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus text."}},
)
def get_metrics(request: Request) -> Response:
    # They tell of all tenants: nobody comes here past the authentication.
    _ = request.scope[PRINCIPAL]
    metrics: Metrics = request.app.state.services.metrics
    return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)
