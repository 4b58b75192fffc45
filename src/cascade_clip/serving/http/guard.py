"""The guard of the service: lets in `POST /segment` with a small, timely body if a slot is free."""

import asyncio
import contextlib
import json
from collections.abc import Iterable

from cascade_clip.config import MEBIBYTE
from cascade_clip.serving.asgi import App, Receive, Scope, content_length, header, replay
from cascade_clip.serving.guard import ANY_HOST, FORM_OVERHEAD, Guard, Refusal
from cascade_clip.serving.http.metrics import SEGMENT
from cascade_clip.serving.http.service import Service

JOBS = "segment jobs"
"""Where the scope of a request that has a slot keeps its job, in a list."""
DRAIN_SECONDS = 1.0
"""Time to throw the body of a refused request away, so that the client reads the response."""


class SegmentGuard(Guard):
    """Refuses, in JSON, requests beyond the limits of a service, and counts all requests."""

    media_type = "application/json"

    def __init__(self, app: App, service: Service, hosts: Iterable[str] = ANY_HOST) -> None:
        """Stand before `app`, the addresses of `service`."""
        largest = service.options.max_upload * MEBIBYTE + FORM_OVERHEAD
        super().__init__(app, largest, hosts, service.options.upload_timeout)
        self.service = service

    async def admit(self, scope: Scope, receive: Receive) -> Receive:
        """Read the body of a segmentation request under the limits, then take a slot for it."""
        if scope["path"] != SEGMENT or scope["method"] != "POST":
            return receive
        slots = self.service.slots
        length = content_length(scope) if header(scope, b"content-length") else 0
        if length is None or length > self.largest:
            raise self.too_big()
        if self.service.not_ready() or slots.used >= slots.limit:
            await _discard(receive)
            self._check_ready()
            raise self.full()
        body = await self.read_body(receive)
        self._check_ready()
        if not slots.take():
            raise self.full()
        scope[JOBS] = []
        return replay(body, receive)

    def leave(self, scope: Scope, status: int, seconds: float) -> None:
        """Count the request, and release its slot once the job, too, is done."""
        jobs, release = scope.get(JOBS), self.service.slots.release
        if jobs:
            jobs[0].add_done_callback(lambda _: release())
        elif jobs is not None:
            release()
        self.service.metrics.report(scope["path"], status, seconds)

    def describe(self, reason: str) -> str:
        """Return the JSON of a refusal."""
        return json.dumps({"error": reason})

    def too_big(self) -> Refusal:
        """Make the refusal of a body beyond the limit, in the unit of its flag."""
        limit = self.service.options.max_upload
        return Refusal(413, f"the request is too big; an image may have {limit} MiB at most")

    def full(self) -> Refusal:
        """Make the refusal while the queue is full."""
        refusal = super().full()
        return Refusal(refusal.status, refusal.reason, self.service.retry_after())

    def _check_ready(self) -> None:
        if reason := self.service.not_ready():
            raise Refusal(503, reason, self.service.retry_after())


async def _discard(receive: Receive) -> None:
    """Throw the body of a refused request away for a moment."""

    async def read() -> None:
        while (message := await receive())["type"] == "http.request" and message.get("more_body"):
            pass

    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(read(), DRAIN_SECONDS)
