"""What both guards read of ASGI requests."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def header(scope: Scope, name: bytes) -> str:
    """Return a header of a request; empty where it has none of that name."""
    return str(dict(scope["headers"]).get(name, b"").decode("latin-1"))


def content_length(scope: Scope) -> int | None:
    """Return the length of the body that a request announces; None where that is no number."""
    length = header(scope, b"content-length")
    return int(length) if length.isascii() and length.isdigit() else None


def replay(parts: list[bytes], receive: Receive) -> Receive:
    """Make a receiver that hands out the parts of a body, and then what comes after it."""
    left = parts[::-1]

    async def again() -> Message:
        if not left:
            return await receive()
        return {"type": "http.request", "body": left.pop(), "more_body": bool(left)}

    return again
