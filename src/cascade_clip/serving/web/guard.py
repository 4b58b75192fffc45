"""What is let in to the web page: an ASGI layer in front of Gradio that answers everything else
itself, in one line.

Only the addresses that the page needs are open (Gradio has many more, some fetch from the net);
requests must name this host, come from this page, be small, arrive in time, and name no file
outside the upload folder.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MOST_JSON = 1_000_000
"""Bytes of a request that is no upload."""
FORM_OVERHEAD = 10_000
"""Bytes of an upload beside the file."""

_API = "/gradio_api/"
_READ = re.compile(
    r"/(config/?|theme\.css|favicon\.ico|robots\.txt|manifest\.json|static/.*|assets/.*|svelte/.*"
    r"|gradio_api/(info|app_id|startup-events|theme\.css|queue/data|upload_progress|heartbeat/[^/]+|file=.*))?"
)
_WRITE = re.compile(r"/gradio_api/(queue/join|upload|reset/?|cancel)")
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self'"
    " 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:;"
    " frame-ancestors 'none'"
)
_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Guard:
    """The layer in front of the page."""

    def __init__(
        self,
        app: App,
        folder: Path,
        max_upload: int,
        hosts: Iterable[str] = (),
        patience: float = 120.0,
    ) -> None:
        """Stand before `app`.

        Args:
            app: the page.
            folder: the only folder whose files are given away and may be named.
            max_upload: bytes of an uploaded file.
            hosts: names by which the server may be called; empty: any.
            patience: seconds within which the body of a request must arrive.
        """
        self.app, self.folder, self.max_upload, self.patience = (
            app,
            folder.resolve(),
            max_upload,
            patience,
        )
        self.hosts = frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request: pass it on, or refuse it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # the page uses no web sockets
            await send({"type": "websocket.close", "code": 1008})
            return
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
            await send(message)

        refusal = self._refusal(scope)
        try:
            if refusal is None and scope["method"] == "POST":
                receive, refusal = await self._take_body(scope, receive)
            if refusal is None:
                await self.app(scope, receive, send_with_headers)
        except asyncio.TimeoutError:
            if started:
                raise
            refusal = (408, "the request took too long to arrive")
        if refusal is not None:
            await _refuse(send, *refusal)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and reason where the head of a request does not fit."""
        method, path, headers = scope["method"], scope["path"], dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        if self.hosts and urlsplit(f"//{host}").hostname not in self.hosts:
            return 400, "this host name is not served here"
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and urlsplit(origin).netloc != host:
            return 403, "requests from other sites are refused"
        if method not in ("GET", "HEAD", "POST"):
            return 405, "this method is not allowed"
        if not (_WRITE if method == "POST" else _READ).fullmatch(path):
            return 404, "there is nothing at this address"
        if path.startswith(_API + "file=") and not self._is_inside(
            path.removeprefix(_API + "file=")
        ):
            return 403, "this file is not open"
        if method == "POST":  # a chunked body would not keep to its length
            return self._wrong_length(
                path, None if b"transfer-encoding" in headers else headers.get(b"content-length")
            )
        return None

    def _wrong_length(self, path: str, given: bytes | None) -> tuple[int, str] | None:
        if given is None or not given.isdigit():
            return 411, "say how long the request is (Content-Length)"
        limit = self.max_upload + FORM_OVERHEAD if path == _API + "upload" else MOST_JSON
        return (
            (413, f"the request is too big: {int(given):,} bytes, {limit:,} at most")
            if int(given) > limit
            else None
        )

    async def _take_body(
        self, scope: Scope, receive: Receive
    ) -> tuple[Receive, tuple[int, str] | None]:
        """The body under a deadline: of an upload bit by bit, of everything else at once, to look
        for foreign files in it."""
        end, done = time.monotonic() + self.patience, False

        async def receive_in_time() -> Message:
            message = await asyncio.wait_for(receive(), max(0.01, end - time.monotonic()))
            if message["type"] == "http.request" and not message.get("more_body"):
                nonlocal done
                done = True
            return message

        async def receive_upload() -> Message:
            return await (receive() if done else receive_in_time())

        if scope["path"] == _API + "upload":
            return receive_upload, None
        body = b""
        while not done:
            message = await receive_in_time()
            if message["type"] != "http.request":
                return receive, (400, "the request broke off")
            body += message.get("body", b"")
        try:
            foreign = self._names_foreign_file(json.loads(body or b"{}"))
        except (ValueError, RecursionError):
            return receive, (400, "the request is not JSON")
        waiting = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return waiting.pop() if waiting else await receive()

        return replay, (403, "this file is not open") if foreign else None

    def _names_foreign_file(self, value: Any) -> bool:
        """Whether a request names, as an input, a file that was not uploaded here."""
        if isinstance(value, dict):
            path = value.get("path")
            return (isinstance(path, str) and not self._is_inside(path)) or any(
                map(self._names_foreign_file, value.values())
            )
        return isinstance(value, list) and any(map(self._names_foreign_file, value))

    def _is_inside(self, name: str) -> bool:
        """Whether a name, also when it is decoded once more and links are followed, lies in the
        upload folder."""
        try:
            return all(
                Path(text).is_absolute() and Path(text).resolve().is_relative_to(self.folder)
                for text in (name, unquote(name))
            )
        except (OSError, ValueError, RuntimeError):  # names that no file can have, circular links
            return False


async def _refuse(send: Send, status: int, reason: str) -> None:
    body = reason.encode() + b"\n"
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *_HEADERS]})
    await send({"type": "http.response.body", "body": body})
