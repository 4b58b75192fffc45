"""The guard of the service: `POST /segment` is let in only with a small body, in time, and while
there is a slot."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable

from cascade_clip.config import MEBIBYTE, ServiceOptions
from cascade_clip.serving.guard import (
    ANY_HOST,
    App,
    Guard,
    Receive,
    Refusal,
    Scope,
    header,
    in_time,
    read_part,
    replay,
)
from cascade_clip.serving.http.queue import Slots

SLOT = "cascade_clip.slot"
"""Where a request finds its slot in the scope."""
SEGMENT = "/segment"
FORM_OVERHEAD = 64 * 1024
"""Bytes of a form apart from the image."""
UPLOADS_AT_ONCE = 8
"""Uploads of the largest size that may be in memory before they have a slot; counted in bytes, so
that slow ones take little."""
DRAIN_SECONDS = 1.0
"""Time for the body of a refused request to arrive and be thrown away, so that the client reads the
response."""


class SegmentGuard(Guard):
    """Refuses segmentation requests beyond the limits; every refusal is a JSON object."""

    media_type = "application/json"

    def __init__(
        self,
        app: App,
        options: ServiceOptions,
        slots: Slots,
        closing: Callable[[], str],
        retry_after: Callable[[], int],
        hosts: Iterable[str] = ANY_HOST,
    ) -> None:
        """Stand before `app`.

        Args:
            app: the service.
            options: limits.
            slots: what is given to the requests that are let in, as scope entry `SLOT`.
            closing: says why no request is accepted at the moment; empty when they are.
            retry_after: says after how many seconds a refused client may come again.
            hosts: names by which the service may be called; `*`: any.
        """
        super().__init__(app, hosts, options.upload_timeout)
        self.slots, self.closing, self.retry_after = slots, closing, retry_after
        self.max_upload = options.max_upload
        self.largest = options.max_upload * MEBIBYTE + FORM_OVERHEAD
        self.uploading = 0  # bytes of bodies that have no slot yet

    async def admit(self, scope: Scope, receive: Receive) -> Receive:
        """Read the body of a segmentation request under the limits, then take a slot for it."""
        if scope["path"] != SEGMENT or scope["method"] != "POST":
            return receive
        length = header(scope, b"content-length") or "0"
        if not (length.isascii() and length.isdigit()) or int(length) > self.largest:
            raise self._too_big()
        if self.closing() or self.slots.used >= self.slots.limit:
            await _discard(receive)
            self._check_open()
            raise self._full()
        body = await in_time(self._read(receive), self.patience)
        self._check_open()
        slot = self.slots.take()
        if slot is None:
            raise self._full()
        scope[SLOT] = slot
        return replay(body, receive)

    def leave(self, scope: Scope) -> None:
        """Release the slot, unless the computation still holds it."""
        if SLOT in scope:
            scope[SLOT].release()

    def describe(self, reason: str) -> str:
        """Return the JSON of a refusal."""
        return json.dumps({"error": reason})

    def _check_open(self) -> None:
        if reason := self.closing():
            raise Refusal(503, reason, self.retry_after())

    async def _read(self, receive: Receive) -> list[bytes]:
        """Read a body in parts, while all bodies together stay within the limit."""
        parts: list[bytes] = []
        size, more = 0, True
        try:
            while more:
                part, more = await read_part(receive)
                size, self.uploading = size + len(part), self.uploading + len(part)
                parts.append(part)
                if size > self.largest:
                    raise self._too_big()
                if self.uploading > UPLOADS_AT_ONCE * self.largest:
                    raise self._full()
            return parts
        finally:
            self.uploading -= size

    def _full(self) -> Refusal:
        return Refusal(429, "too many requests wait; try again later", self.retry_after())

    def _too_big(self) -> Refusal:
        return Refusal(
            413, f"the request is too big; an image may have {self.max_upload} MiB at most"
        )


async def _discard(receive: Receive) -> None:
    """Throw the body of a refused request away for a moment."""

    async def read() -> None:
        while (message := await receive())["type"] == "http.request" and message.get("more_body"):
            pass

    try:
        await asyncio.wait_for(read(), DRAIN_SECONDS)
    except asyncio.TimeoutError:
        pass
