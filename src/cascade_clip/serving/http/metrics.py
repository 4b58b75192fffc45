"""Counters of the service for Prometheus, and the ASGI layer that fills them."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from cascade_clip.serving.guard import App, Message, Receive, Scope, Send
from cascade_clip.serving.http.guard import SEGMENT

PATHS = (SEGMENT, "/health", "/metrics", "/docs", "/openapi.json")
"""Paths that are counted by name; all others count as `other`, whatever strangers ask for."""
SECONDS = (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
"""Bounds of the latency histogram."""
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)


class RequestMetrics:
    """Counters, histograms and gauges of one service."""

    def __init__(self, waiting: Callable[[], int], used: Callable[[], int]) -> None:
        """Measure a service.

        Args:
            waiting: counts the requests that wait for a worker.
            used: counts the requests in flight.
        """
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "cascade_clip_requests", "Requests by path and status", ["path", "status"],
            registry=registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "cascade_clip_request_seconds", "Time from request to response of /segment",
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.batches = Histogram(
            "cascade_clip_batch_size", "Requests segmented together",
            buckets=BATCH_SIZES, registry=registry,
        )  # fmt: skip
        for name, text, count in (
            ("queue_length", "Requests that wait for a worker", waiting),
            ("slots_used", "Requests in flight", used),
        ):
            Gauge(f"cascade_clip_{name}", text, registry=registry).set_function(count)

    def report(self, path: str, status: int, seconds: float) -> None:
        """Count one request."""
        self._requests.labels(path if path in PATHS else "other", str(status)).inc()
        if path == SEGMENT:
            self._seconds.observe(seconds)

    def text(self) -> bytes:
        """Return everything in the text format of Prometheus."""
        return generate_latest(self.registry)


class RequestTimer:
    """The outermost ASGI layer: tells `report` the path, status and seconds of every request."""

    def __init__(self, app: App, report: Callable[[str, int, float], None]) -> None:
        self.app, self.report = app, report

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; one whose response never began counts as 500."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watch)
        finally:
            self.report(scope["path"], status, time.perf_counter() - started)
