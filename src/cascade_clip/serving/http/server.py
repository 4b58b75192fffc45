"""uvicorn with deadlines for connections, and a stop that finishes what was accepted."""

from __future__ import annotations

import asyncio
import math
import socket
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from cascade_clip.config import ServiceOptions
from cascade_clip.serving.http.app import build_app
from cascade_clip.serving.http.service import Service


class DeadlineProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 with deadlines for a request's head and for the reading of a response."""

    seconds = 30.0
    most_connections = 256
    _head: asyncio.TimerHandle | None = None
    _writing: asyncio.TimerHandle | None = None

    @classmethod
    def under(cls, options: ServiceOptions) -> type[DeadlineProtocol]:
        """Return the protocol with the limits of a service."""
        limits = {"seconds": options.upload_timeout, "most_connections": options.connections}
        return type("DeadlineProtocol", (cls,), limits)

    def connection_made(self, transport: Any) -> None:
        """Wait for a request, or close at once where too many connections are open."""
        super().connection_made(transport)
        if len(self.connections) > self.most_connections:
            self.transport.abort()
        else:
            self._head = self._restart(self._head)

    def data_received(self, data: bytes) -> None:
        """Stop waiting once a request is there."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            _cancel(self._head)

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._head = self._restart(self._head)
        super().on_response_complete()
        if not self.cycle.response_complete:  # a pipelined request has begun
            _cancel(self._head)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the deadlines."""
        _cancel(self._head)
        _cancel(self._writing)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Start the deadline of a client that reads too slowly."""
        super().pause_writing()
        self._writing = self._restart(self._writing)

    def resume_writing(self) -> None:
        """Cancel that deadline: the client reads again."""
        _cancel(self._writing)
        super().resume_writing()

    def _restart(self, timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle:
        _cancel(timer)
        return self.loop.call_later(self.seconds, self.transport.abort)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


class DrainingServer(uvicorn.Server):
    """uvicorn that, on the first signal, finishes the requests it has accepted and refuses new ones
    (503), then stops; on the second signal it stops at once."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service
        self._deadline = math.inf

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop."""
        if self.service.stopping:
            self.should_exit = self.force_exit = True
        self.service.stopping = True
        self._deadline = time.monotonic() + self.service.options.grace

    async def on_tick(self, counter: int) -> bool:
        """Stop when no request is left, when time is up, or when the model could not be loaded."""
        late = time.monotonic() > self._deadline
        if late:
            self.service.stop()  # the requests that wait are refused
        if late or (self.service.stopping and not self.service.slots.used):
            self.should_exit = True
        return await super().on_tick(counter) or self.service.failure is not None


def run(service: Service, sock: socket.socket, hosts: Sequence[str]) -> None:
    """Serve on an open socket until a signal comes.

    Raises:
        Exception: what went wrong while the model was loaded.
    """
    config = uvicorn.Config(
        build_app(service, hosts), http=DeadlineProtocol.under(service.options), ws="none",
        log_level="error", access_log=False, proxy_headers=False, server_header=False,
        timeout_keep_alive=5, timeout_graceful_shutdown=2, backlog=128,
    )  # fmt: skip
    DrainingServer(config, service).run(sockets=[sock])
    if service.failure is not None:
        raise service.failure
