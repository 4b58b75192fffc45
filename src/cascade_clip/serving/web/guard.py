"""The guard of the web page, in front of Gradio.

Only the addresses that the page needs are open (Gradio has many more, some of which fetch from
other hosts); requests must be small, and name no file outside the upload folder.
"""

import json
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from cascade_clip.serving.asgi import App, Receive, Scope, content_length, header, replay
from cascade_clip.serving.guard import ANY_HOST, FORM_OVERHEAD, Guard, Refusal, in_time

MOST_JSON = 1_000_000
"""Bytes of a request that is no upload."""

_API = "/gradio_api/"
_FILE = f"{_API}file="
_UPLOAD = f"{_API}upload"
_READ = re.compile(
    r"/(config/?|theme\.css|favicon\.ico|robots\.txt|manifest\.json|static/.*|assets/.*|svelte/.*"
    r"|gradio_api/(info|app_id|startup-events|theme\.css|queue/data|upload_progress"
    r"|heartbeat/[^/]+|file=.*))?"
)
_WRITE = re.compile(r"/gradio_api/(queue/join|upload|reset/?|cancel)")
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self'"
    " 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:;"
    " frame-ancestors 'none'"
)


class PageGuard(Guard):
    """Opens to the page's own requests only; every refusal is one line of text."""

    extra_headers = (
        (b"content-security-policy", _POLICY.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
    )

    def __init__(
        self,
        app: App,
        folder: Path,
        max_upload: int,
        hosts: Iterable[str] = ANY_HOST,
        patience: float = 120.0,
    ) -> None:
        """Stand before `app`.

        Args:
            app: the page.
            folder: the only folder whose files are given away and may be named.
            max_upload: bytes of an uploaded file.
            hosts, patience: as those of `Guard`.
        """
        super().__init__(app, MOST_JSON, hosts, patience)
        self.folder, self.max_upload = folder.resolve(), max_upload

    def check_head(self, scope: Scope) -> None:
        """Check also the method, the address, the named file, and the length of the body."""
        super().check_head(scope)
        method, path = scope["method"], scope["path"]
        if method not in ("GET", "HEAD", "POST"):
            raise Refusal(405, "this method is not allowed")
        if not (_WRITE if method == "POST" else _READ).fullmatch(path):
            raise Refusal(404, "there is nothing at this address")
        if path.startswith(_FILE) and not self._is_inside(path.removeprefix(_FILE)):
            raise Refusal(403, "this file is not open")
        if method == "POST":
            self._check_length(scope)

    async def admit(self, scope: Scope, receive: Receive) -> Receive:
        """Receive an upload part by part, any other body at once, with no foreign files in it."""
        if scope["method"] != "POST":
            return receive
        if scope["path"] == _UPLOAD:
            return self._with_deadline(receive)
        body = await self.read_body(receive)
        try:
            foreign = self._names_foreign_file(json.loads(b"".join(body) or b"{}"))
        except (ValueError, RecursionError):
            raise Refusal(400, "the request is not JSON") from None
        if foreign:
            raise Refusal(403, "this file is not open")
        return replay(body, receive)

    def _check_length(self, scope: Scope) -> None:
        length = content_length(scope)
        # a chunked body would not keep to its length
        if length is None or header(scope, b"transfer-encoding"):
            raise Refusal(411, "say how long the request is (Content-Length)")
        limit = self.max_upload + FORM_OVERHEAD if scope["path"] == _UPLOAD else MOST_JSON
        if length > limit:
            raise Refusal(413, f"the request is too big: {length:,} bytes, {limit:,} at most")

    def _with_deadline(self, receive: Receive) -> Receive:
        end, done = time.monotonic() + self.patience, False

        async def receive_in_time() -> Any:
            nonlocal done
            if done:
                return await receive()
            message = await in_time(receive(), max(0.01, end - time.monotonic()))
            done = message["type"] == "http.request" and not message.get("more_body")
            return message

        return receive_in_time

    def _names_foreign_file(self, value: Any) -> bool:
        """Whether a request names, as an input, a file that was not uploaded here."""
        if isinstance(value, dict):
            path = value.get("path")
            if isinstance(path, str) and not self._is_inside(path):
                return True
            value = list(value.values())
        return isinstance(value, list) and any(map(self._names_foreign_file, value))

    def _is_inside(self, name: str) -> bool:
        """Whether a name, also decoded once more and with links followed, is an upload's."""
        paths = (Path(name), Path(unquote(name)))
        try:
            return all(
                path.is_absolute() and path.resolve().is_relative_to(self.folder) for path in paths
            )
        except (OSError, ValueError, RuntimeError):  # names that no file can have, circular links
            return False
