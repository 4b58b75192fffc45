"""What stands before the service: ASGI layers that measure and that let in only small, timely
requests while there is room, and a protocol that closes connections on which nothing moves.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from uvicorn.protocols.http.h11_impl import H11Protocol

from cascade_clip.config import MEBIBYTE, ServiceOptions
from cascade_clip.serving.http.queue import Slot, Slots

SLOT = "cascade_clip.slot"
"""Where a request finds its slot in the scope."""
GUARDED = "/segment"
FORM_OVERHEAD = 64 * 1024
"""Bytes of a form beside the picture."""
UPLOADS_AT_ONCE = 8
"""Uploads of the largest size that may be in memory before they have a slot; counted in bytes, so
that slow ones take little."""
DRAIN_SECONDS = 1.0
"""Time for the body of a refused request to arrive and be thrown away, so that the client reads the
answer."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Refusal(Exception):
    """A request that is not let in."""

    def __init__(self, status: int, reason: str, retry_after: int | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.retry_after = status, reason, retry_after


class Meter:
    """The outermost layer: tells `report` the path, status and seconds of every request."""

    def __init__(self, app: App, report: Callable[[str, int, float], None]) -> None:
        self.app, self.report = app, report

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; one whose answer never began counts as 500."""
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


class Guard:
    """Refuses other host names and other sites, and lets `POST /segment` in only with a small body,
    in time, and while there is a slot."""

    def __init__(
        self,
        app: App,
        options: ServiceOptions,
        slots: Slots,
        closing: Callable[[], str],
        retry_after: Callable[[], int],
        hosts: Iterable[str] = ("*",),
    ) -> None:
        """Stand before `app`.

        Args:
            app: the service.
            options: limits.
            slots: what is given to the requests that are let in, as scope entry `SLOT`.
            closing: why nothing is taken at the moment; empty: it is.
            retry_after: seconds after which a refused client may come again.
            hosts: names by which the service may be called; `*`: any.
        """
        self.hosts = frozenset(name.lower() for name in hosts)
        self.app, self.options, self.slots, self.closing, self.retry_after = (
            app,
            options,
            slots,
            closing,
            retry_after,
        )
        self.largest = options.max_upload * MEBIBYTE + FORM_OVERHEAD
        self.uploading = 0  # bytes of bodies that have no slot yet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request: pass it on, or refuse it in one line."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        slot: Slot | None = None
        try:
            self._check_host(scope)
            _check_origin(scope)
            if scope["path"] == GUARDED and scope["method"] == "POST":
                body = await self._admit(scope, receive)
                slot = self._take_slot()
                scope[SLOT], receive = slot, _replay(body, receive)
                del body
            await self.app(scope, receive, send)
        except Refusal as refusal:
            await _refuse(send, refusal)
        finally:
            if slot is not None:
                slot.release()

    def _check_host(self, scope: Scope) -> None:
        """Refuse a name that somebody else may have pointed at this address."""
        try:
            name = urlsplit(
                "//" + dict(scope["headers"]).get(b"host", b"").decode("latin-1")
            ).hostname
        except ValueError:
            name = None
        if name not in self.hosts and "*" not in self.hosts:
            raise Refusal(400, "this host name is not served here")

    def _take_slot(self) -> Slot:
        slot = self.slots.take()
        if slot is None:
            raise self._full()
        return slot

    def _full(self) -> Refusal:
        return Refusal(429, "too many requests wait; try again later", self.retry_after())

    async def _admit(self, scope: Scope, receive: Receive) -> list[bytes]:
        """The body of a request, read under the limits."""
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.largest:
            raise self._too_big()
        if self.closing() or self.slots.used >= self.slots.limit:
            await _discard(receive)
            self._check_open()
            raise self._full()
        try:
            body = await asyncio.wait_for(self._read(receive), self.options.upload_timeout)
        except asyncio.TimeoutError:
            raise Refusal(408, "the request took too long to arrive") from None
        self._check_open()
        return body

    def _check_open(self) -> None:
        reason = self.closing()
        if reason:
            raise Refusal(503, reason, self.retry_after())

    async def _read(self, receive: Receive) -> list[bytes]:
        """The parts of a body."""
        parts: list[bytes] = []
        size = 0
        try:
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    raise Refusal(400, "the request broke off")
                part = message.get("body", b"")
                size, self.uploading = size + len(part), self.uploading + len(part)
                parts.append(part)
                if size > self.largest:
                    raise self._too_big()
                if self.uploading > UPLOADS_AT_ONCE * self.largest:
                    raise self._full()
                if not message.get("more_body"):
                    return parts
        finally:
            self.uploading -= size

    def _too_big(self) -> Refusal:
        return Refusal(
            413, f"the request is too big; a picture may have {self.options.max_upload} MiB at most"
        )


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 with deadlines: for the head of a request, and for a client that does not
    read its answer."""

    head_seconds = 30.0
    write_seconds = 30.0
    most_connections = 256
    _head: asyncio.TimerHandle | None = None
    _writing: asyncio.TimerHandle | None = None

    @classmethod
    def under(cls, options: ServiceOptions) -> type[PatientProtocol]:
        """The protocol with the limits of a service."""
        values = {"head_seconds": options.upload_timeout, "write_seconds": options.upload_timeout}
        return type("PatientProtocol", (cls,), {**values, "most_connections": options.connections})

    def connection_made(self, transport: Any) -> None:
        """Wait for a request, or close at once where too many connections are open."""
        super().connection_made(transport)
        if len(self.connections) > self.most_connections:
            self.transport.abort()
        else:
            self._watch_head()

    def data_received(self, data: bytes) -> None:
        """Stop waiting once a request is there."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            _stop(self._head)

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._watch_head()
        super().on_response_complete()
        if not self.cycle.response_complete:  # a pipelined request has begun
            _stop(self._head)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        _stop(self._head)
        _stop(self._writing)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client reads too slowly."""
        super().pause_writing()
        _stop(self._writing)
        self._writing = self.loop.call_later(self.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The client goes on reading."""
        _stop(self._writing)
        super().resume_writing()

    def _watch_head(self) -> None:
        _stop(self._head)
        self._head = self.loop.call_later(self.head_seconds, self.transport.abort)


def _stop(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def _check_origin(scope: Scope) -> None:
    headers = dict(scope["headers"])
    origin = headers.get(b"origin", b"").decode("latin-1")
    try:
        foreign = bool(origin) and urlsplit(origin).netloc != headers.get(b"host", b"").decode(
            "latin-1"
        )
    except ValueError:
        foreign = True
    if foreign:
        raise Refusal(403, "requests from other sites are refused")


def _replay(parts: list[bytes], receive: Receive) -> Receive:
    """A receiver that hands out a body that was read already, and then what comes after it."""
    left = list(reversed(parts))
    parts.clear()

    async def again() -> Message:
        if not left:
            return await receive()
        return {"type": "http.request", "body": left.pop(), "more_body": bool(left)}

    return again


async def _discard(receive: Receive) -> None:
    """Throw the body of a refused request away for a moment."""

    async def read() -> None:
        while (message := await receive())["type"] == "http.request" and message.get("more_body"):
            pass

    try:
        await asyncio.wait_for(read(), DRAIN_SECONDS)
    except asyncio.TimeoutError:
        pass


async def _refuse(send: Send, refusal: Refusal) -> None:
    body = json.dumps({"error": refusal.reason}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    if refusal.retry_after is not None:
        headers.append((b"retry-after", str(refusal.retry_after).encode()))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
