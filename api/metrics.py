"""What is counted, for Prometheus: requests in this process, and everything else in the database."""

from __future__ import annotations

import os

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector

from api.authentication import PRINCIPAL
from api.catalog_metrics import CatalogCollector
from catalog.blobs import Blobs
from catalog.db import Database

_LATENCY_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_SHARED = "PROMETHEUS_MULTIPROC_DIR"

router = APIRouter(tags=["health"])


class Metrics:
    """Counters of this process, and numbers from the database.

    Where several processes answer on one port, `PROMETHEUS_MULTIPROC_DIR` names a folder through which they share
    their counters, so that it does not matter which of them is asked.

    Args:
        database: Where jobs and workers are.
        blobs: For the room on the disk that takes new bytes in.
        worker_silence_seconds: A worker that was not seen for so long is not counted as live.
    """

    def __init__(self, database: Database, blobs: Blobs, *, worker_silence_seconds: float) -> None:
        self._own = CollectorRegistry()
        self.requests = Counter(
            "levity_http_requests_total",
            "Requests by method, route template and status.",
            ("method", "route", "status"),
            registry=self._own,
        )
        self.latency = Histogram(
            "levity_http_request_seconds",
            "Time to the end of the response, in seconds, transfers and waiting included.",
            ("method", "route"),
            buckets=_LATENCY_SECONDS,
            registry=self._own,
        )
        self.received = Counter(
            "levity_http_received_bytes_total", "Bytes of requests' bodies.", ("route",), registry=self._own
        )
        self.sent = Counter("levity_http_sent_bytes_total", "Bytes of answers' bodies.", ("route",), registry=self._own)
        self.upload_bytes = Counter(
            "levity_upload_bytes_total", "Bytes of uploads that arrived whole.", registry=self._own
        )
        self._registry = CollectorRegistry()
        self._registry.register(CatalogCollector(database, blobs, worker_silence_seconds))

    def text(self) -> bytes:
        """All of them, in Prometheus' text format."""
        requests = self._own
        if os.environ.get(_SHARED):
            requests = CollectorRegistry()
            MultiProcessCollector(requests)  # type: ignore[no-untyped-call]
        return generate_latest(requests) + generate_latest(self._registry)


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
    return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)
