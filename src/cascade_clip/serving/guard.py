"""The guard in front of a server: an ASGI layer that lets in only small, timely requests that name
this host and come from its own pages, and answers everything else itself in one line.

What the HTTP service and the web page check beyond that is in their own subclasses.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import SplitResult, urlsplit

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
"""Names of this machine; a server that listens on one of them is reached from nowhere else."""
ANY_HOST = ("*",)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = tuple[tuple[bytes, bytes], ...]


class Refusal(Exception):
    """A request that is not let in, with its HTTP status and a reason of one line."""

    def __init__(self, status: int, reason: str, retry_after: int | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.retry_after = status, reason, retry_after


class Guard:
    """The checks that both servers share; subclasses add theirs in `check_head`, `admit` and
    `leave`."""

    media_type = "text/plain; charset=utf-8"
    """Of refusals."""
    extra_headers: Headers = ()
    """Sent with every response."""

    def __init__(self, app: App, hosts: Iterable[str] = ANY_HOST, patience: float = 30.0) -> None:
        """Stand before `app`.

        Args:
            app: the server.
            hosts: names by which the server may be called; `*`: any.
            patience: seconds within which the body of a request must arrive.
        """
        self.app, self.patience = app, patience
        self.hosts = frozenset(name.lower() for name in hosts)

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

    def leave(self, scope: Scope) -> None:
        """Take note that a request is over, whether it was let in or not."""

    def describe(self, reason: str) -> str:
        """Return the body of a refusal."""
        return f"{reason}\n"

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = [*message.get("headers", ()), *self.extra_headers]
                message = {**message, "headers": headers}
            await send(message)

        try:
            self.check_head(scope)
            await self.app(scope, await self.admit(scope, receive), send_with_headers)
        except Refusal as refusal:
            if started:
                raise
            await self._refuse(send_with_headers, refusal)
        finally:
            self.leave(scope)

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


def header(scope: Scope, name: bytes) -> str:
    """Return a header of a request; empty where it has none of that name."""
    return str(dict(scope["headers"]).get(name, b"").decode("latin-1"))


def _split(address: str) -> SplitResult:
    """Split an address; one that is malformed has neither host name nor location."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")


async def in_time(waiting: Awaitable[Any], seconds: float) -> Any:
    """Await something for at most `seconds`.

    Raises:
        Refusal: it takes longer.
    """
    try:
        return await asyncio.wait_for(waiting, seconds)
    except asyncio.TimeoutError:
        raise Refusal(408, "the request took too long to arrive") from None


async def read_part(receive: Receive) -> tuple[bytes, bool]:
    """Receive the next part of a body, and whether there are more.

    Raises:
        Refusal: the client has left.
    """
    message = await receive()
    if message["type"] != "http.request":
        raise Refusal(400, "the request broke off")
    return message.get("body", b""), message.get("more_body", False)


def replay(parts: list[bytes], receive: Receive) -> Receive:
    """Make a receiver that hands out the parts of a body that was read before, and then what comes
    after it. The list is emptied, so that each part is freed once it was handed out."""
    left = list(reversed(parts))
    parts.clear()

    async def again() -> Message:
        if not left:
            return await receive()
        return {"type": "http.request", "body": left.pop(), "more_body": bool(left)}

    return again
