"""A running service: one predictor behind a queue, from loading to stopping."""

import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

from cascade_clip.config import ServiceOptions
from cascade_clip.inference import Predictor
from cascade_clip.serving.http.batching import RememberedText, attempt, segment_together
from cascade_clip.serving.http.metrics import RequestMetrics
from cascade_clip.serving.http.queue import JobQueue, QueueClosed, Slots
from cascade_clip.serving.http.segmentation import SegmentationRequest as Request
from cascade_clip.serving.http.segmentation import SegmentationResponse as Response
from cascade_clip.serving.http.segmentation import write_response
from cascade_clip.serving.uploads import read_upload

Responses = list[Response | BaseException]


class Service:
    """One predictor with its queue, its limits and its counters.

    Text embeddings of class lists stay in a bounded memory and are not written to disk.
    """

    def __init__(self, load: Callable[[], Predictor], options: ServiceOptions) -> None:
        self.options, self._load = options, load
        self.slots = Slots(options.queue + options.workers * (options.batch or 1))
        self.metrics = RequestMetrics(lambda: self.waiting, lambda: self.slots.used)
        self.jobs: JobQueue[Request, Response] | None = None
        self.failure: BaseException | None = None
        self.stopping = False
        self._mean_seconds = 1.0

    def start(self) -> None:
        """Load the model and begin to take requests; what goes wrong is kept in `failure`."""
        options = self.options
        try:
            self.predictor = predictor = self._load()
        except BaseException as error:
            self.failure = error
            return
        if predictor.text_encoder is not None:
            predictor.text_encoder = RememberedText(predictor.text_encoder, options.cached_texts)
        batch = options.batch or (1 if predictor.device.type == "cpu" else 8)
        self.slots.limit = options.queue + options.workers * batch
        self._pool = ThreadPoolExecutor(options.workers * batch, thread_name_prefix="image")
        jobs = JobQueue(self._segment, options.workers, batch, self.metrics.batches.observe)
        jobs.start()
        self.jobs = jobs

    def stop(self) -> None:
        """Refuse the requests that wait and end the threads."""
        self.stopping = True
        if self.jobs is not None:
            self.jobs.close()
            self._pool.shutdown(wait=False, cancel_futures=True)

    @property
    def waiting(self) -> int:
        """Requests that no worker has taken."""
        return 0 if self.jobs is None else self.jobs.waiting

    def not_ready(self) -> str:
        """Say why no request is accepted at the moment; empty when they are."""
        if self.stopping:
            return "the service is stopping"
        return "" if self.jobs is not None else "the model is being loaded"

    def retry_after(self) -> int:
        """Estimate the seconds until there will be room, from the time that requests take."""
        seconds = (self.waiting + 1) * self._mean_seconds / self.options.workers
        return min(60, max(1, math.ceil(seconds)))

    def submit(self, request: Request) -> Future[Response]:
        """Queue a request.

        Raises:
            QueueClosed: no request is accepted.
        """
        if self.jobs is None:
            raise QueueClosed
        return self.jobs.submit(request, request.key)

    def _segment(self, requests: list[Request]) -> Responses:
        """Answer requests of one key, in order; an error takes the place of a response."""
        began, first = time.perf_counter(), requests[0]
        target = self.predictor.bind(
            first.classes, first.calibration, background=first.background, threshold=first.threshold
        )
        run = map if len(requests) == 1 else self._pool.map  # one request needs no other thread
        images = list(run(self._read, requests))
        read = [image for image in images if isinstance(image, Tensor)]
        results = iter(segment_together(self.predictor, read, target, self._pool))
        responses: Responses = []
        for request, image in zip(requests, images, strict=True):
            result = next(results) if isinstance(image, Tensor) else image
            if isinstance(result, Exception):
                responses.append(result)
            else:
                responses.append(attempt(write_response, request, image, result))
        seconds = (time.perf_counter() - began) / len(requests)
        self._mean_seconds += 0.1 * (seconds - self._mean_seconds)
        return responses

    def _read(self, request: Request) -> Tensor | Exception:
        limit, settings = self.options.max_pixels, self.predictor.settings
        return attempt(read_upload, request.file, limit, settings)
