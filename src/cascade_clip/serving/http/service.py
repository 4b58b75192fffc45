"""The state of a running service: one predictor behind a queue, from loading to stopping."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future

from cascade_clip.config import ServiceOptions
from cascade_clip.inference import Predictor
from cascade_clip.serving.http.metrics import RequestMetrics
from cascade_clip.serving.http.queue import JobQueue, QueueClosed, Slots
from cascade_clip.serving.http.segmentation import (
    BatchSegmenter,
    SegmentationRequest,
    SegmentationResponse,
)


class Service:
    """One predictor with its queue, its limits and its counters."""

    def __init__(self, load: Callable[[], Predictor], options: ServiceOptions) -> None:
        self.options, self._load = options, load
        self.slots = Slots(options.queue + options.workers * (options.batch or 1))
        self.metrics = RequestMetrics(lambda: self.waiting, lambda: self.slots.used)
        self.jobs: JobQueue[SegmentationRequest, SegmentationResponse] | None = None
        self.segmenter: BatchSegmenter | None = None
        self.failure: BaseException | None = None
        self.stopping = False
        self._mean_seconds = 1.0

    def start(self) -> None:
        """Load the model and begin to take requests; what goes wrong is kept in `failure`."""
        try:
            self.segmenter = BatchSegmenter(self._load, self.options)
        except BaseException as error:
            self.failure = error
            return
        workers, batch = self.options.workers, self.segmenter.batch
        self.slots.limit = self.options.queue + workers * batch
        jobs = JobQueue(self._segment, workers, batch, self.metrics.batches.observe)
        jobs.start()
        self.jobs = jobs

    def stop(self) -> None:
        """Refuse the requests that wait and end the threads."""
        self.stopping = True
        if self.jobs is not None and self.segmenter is not None:
            self.jobs.close()
            self.segmenter.close()

    @property
    def waiting(self) -> int:
        """Requests that no worker has taken."""
        return 0 if self.jobs is None else self.jobs.waiting

    def not_ready(self) -> str:
        """Say why no request is accepted at the moment; empty when they are."""
        if self.stopping:
            return "the service is stopping"
        return "" if self.jobs is not None else "the model is being loaded"

    def is_idle(self) -> bool:
        """Whether no request is in flight."""
        return self.slots.used == 0

    def retry_after(self) -> int:
        """Estimate the seconds until there will be room, from the time that requests take."""
        seconds = (self.waiting + 1) * self._mean_seconds / self.options.workers
        return min(60, max(1, math.ceil(seconds)))

    def submit(self, request: SegmentationRequest) -> Future[SegmentationResponse]:
        """Queue a request.

        Raises:
            QueueClosed: no request is accepted.
        """
        if self.jobs is None:
            raise QueueClosed
        return self.jobs.submit(request, request.key)

    def _segment(
        self, requests: list[SegmentationRequest]
    ) -> list[SegmentationResponse | BaseException]:
        assert self.segmenter is not None
        started = time.perf_counter()
        responses = self.segmenter.segment(requests)
        seconds = (time.perf_counter() - started) / len(requests)
        self._mean_seconds += 0.1 * (seconds - self._mean_seconds)
        return responses
