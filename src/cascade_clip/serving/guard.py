"""The guard in front of a server: an ASGI layer that lets in only small, timely requests that name
this host and come from its own pages, and answers everything else itself in one line.

What the HTTP service and the web page check beyond that is in their own subclasses.
"""

import asyncio
import time
from collections.abc import Awaitable, Iterable
from typing import Any
from urllib.parse import SplitResult, urlsplit

from cascade_clip.serving.asgi import App, Message, Receive, Scope, Send, header

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
"""Names of this machine; a server that listens on one of them is reached from nowhere else."""
ANY_HOST = ("*",)
FORM_OVERHEAD = 64 * 1024
"""Bytes of an upload apart from its file."""
BODIES_AT_ONCE = 8
"""Most bodies of the largest size in memory before they are let in; counted in bytes."""


class Refusal(Exception):
    """A request that is not let in, with its HTTP status and a reason of one line."""

    def __init__(self, status: int, reason: str, retry_after: int | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.retry_after = status, reason, retry_after


class Guard:
    """The checks that both servers share; subclasses add theirs in `check_head` and `admit`."""

    media_type = "text/plain; charset=utf-8"
    """Of refusals."""
    extra_headers: tuple[tuple[bytes, bytes], ...] = ()
    """Sent with every response."""

    def __init__(self, app: App, largest: int, hosts: Iterable[str], patience: float) -> None:
        """Stand before `app`.

        Args:
            app: the server.
            largest: bytes of the largest body that is read before it is let in.
            hosts: names by which the server may be called; `*`: any.
            patience: seconds within which the body of a request must arrive.
        """
        self.app, self.largest, self.patience = app, largest, patience
        self.hosts = frozenset(name.lower() for name in hosts)
        self.uploading = 0  # bytes of bodies that are not let in yet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:  # no server here uses web sockets
            await send({"type": "websocket.close", "code": 1008})

    def check_head(self, scope: Scope) -> None:
        """Check host and origin.

        Raises:
            Refusal: the request is not meant for this server, or comes from another site.
        """
        host, origin = header(scope, b"host"), header(scope, b"origin")
        # somebody else may have pointed their own name at this address
        if "*" not in self.hosts and _split(f"//{host}").hostname not in self.hosts:
            raise Refusal(400, "this host name is not served here")
        if origin and (not host or _split(origin).netloc != host):
            raise Refusal(403, "requests from other sites are refused")

    async def admit(self, scope: Scope, receive: Receive) -> Receive:
        """Check the body of a request and return what the server shall receive it from."""
        return receive

    def leave(self, scope: Scope, status: int, seconds: float) -> None:
        """Take note that a request is over, whether it was let in or not."""

    def describe(self, reason: str) -> str:
        """Return the body of a refusal."""
        return f"{reason}\n"

    def too_big(self) -> Refusal:
        """Make the refusal of a body beyond `largest`."""
        return Refusal(413, f"the request is too big; {self.largest:,} bytes at most are allowed")

    def full(self) -> Refusal:
        """Make the refusal of a request for which there is no room."""
        return Refusal(429, "too many requests wait; try again later")

    async def read_body(self, receive: Receive) -> list[bytes]:
        """Read a body in parts, in time, while all bodies together stay within the limit.

        Raises:
            Refusal: the body is too large or too late, or there is no room for it.
        """
        parts: list[bytes] = await in_time(self._read(receive), self.patience)
        return parts

    async def _read(self, receive: Receive) -> list[bytes]:
        parts: list[bytes] = []
        size, more = 0, True
        try:
            while more:
                message = await receive()
                if message["type"] != "http.request":
                    raise Refusal(400, "the request broke off")
                parts.append(message.get("body", b""))
                more = message.get("more_body", False)
                size, self.uploading = size + len(parts[-1]), self.uploading + len(parts[-1])
                if size > self.largest:
                    raise self.too_big()
                if self.uploading > BODIES_AT_ONCE * self.largest:
                    raise self.full()
            return parts
        finally:
            self.uploading -= size

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        began, status = time.perf_counter(), 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *self.extra_headers]}
            await send(message)

        try:
            self.check_head(scope)
            await self.app(scope, await self.admit(scope, receive), send_with_headers)
        except Refusal as refusal:
            if status:
                raise
            await self._refuse(send_with_headers, refusal)
        finally:  # a response that never began is a defect
            self.leave(scope, status or 500, time.perf_counter() - began)

    async def _refuse(self, send: Send, refusal: Refusal) -> None:
        body = self.describe(refusal.reason).encode()
        headers = [
            (b"content-type", self.media_type.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        if refusal.retry_after is not None:
            headers.append((b"retry-after", str(refusal.retry_after).encode()))
        await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def in_time(waiting: Awaitable[Any], seconds: float) -> Any:
    """Await a body, or a part of it, for at most `seconds`.

    Raises:
        Refusal: it takes longer.
    """
    try:
        return await asyncio.wait_for(waiting, seconds)
    except asyncio.TimeoutError:
        raise Refusal(408, "the request took too long to arrive") from None


def _split(address: str) -> SplitResult:
    """Split an address; one that is malformed has neither host name nor location."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")
