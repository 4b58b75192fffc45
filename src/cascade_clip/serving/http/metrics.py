"""Counters of the service for Prometheus."""

from collections.abc import Callable

import prometheus_client as prometheus

SEGMENT = "/segment"
PATHS = (SEGMENT, "/health", "/metrics", "/docs", "/openapi.json")
"""Paths that are counted by name; all others count as `other`, whatever strangers ask for."""
SECONDS = (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
"""Bounds of the latency histogram."""


class RequestMetrics:
    """Counters, histograms and gauges of one service."""

    def __init__(self, waiting: Callable[[], int], used: Callable[[], int]) -> None:
        """Measure a service.

        Args:
            waiting: counts the requests that wait for a worker.
            used: counts the requests in flight.
        """
        self.registry = registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=registry)
        self._requests = prometheus.Counter(
            "cascade_clip_requests", "Requests by path and status", ["path", "status"],
            registry=registry,
        )  # fmt: skip
        self._seconds = prometheus.Histogram(
            "cascade_clip_request_seconds", "Time from request to response of /segment",
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.batches = prometheus.Histogram(
            "cascade_clip_batch_size", "Requests segmented together",
            buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry,
        )  # fmt: skip
        gauges = {"queue_length": waiting, "slots_used": used}
        texts = ("Requests that wait for a worker", "Requests in flight")
        for (name, count), text in zip(gauges.items(), texts, strict=True):
            gauge = prometheus.Gauge(f"cascade_clip_{name}", text, registry=registry)
            gauge.set_function(count)

    def report(self, path: str, status: int, seconds: float) -> None:
        """Count one request."""
        self._requests.labels(path if path in PATHS else "other", str(status)).inc()
        if path == SEGMENT:
            self._seconds.observe(seconds)

    def text(self) -> bytes:
        """Return everything in the text format of Prometheus."""
        return prometheus.generate_latest(self.registry)
