"""The service as an ASGI application: `POST /segment`, `/health`, `/metrics` and `/docs`.

Nothing is fetched from other hosts, and no response names a path of this machine.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import FastAPI, File, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from cascade_clip.errors import CascadeClipError, is_out_of_memory
from cascade_clip.files import TooLarge
from cascade_clip.serving.guard import LOCAL_HOSTS
from cascade_clip.serving.http.guard import JOBS, SegmentGuard
from cascade_clip.serving.http.metrics import SEGMENT
from cascade_clip.serving.http.queue import QueueClosed
from cascade_clip.serving.http.segmentation import Format, SegmentationRequest, read_request
from cascade_clip.serving.http.service import Service
from cascade_clip.serving.pages import render

CLIENT_LEFT = 499
"""Status, in the metrics alone, of requests whose client left before the response."""
_DOCS_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'"
)


class Problem(BaseModel):
    """What is wrong, in one line."""

    error: str


class Health(BaseModel):
    """Whether requests are accepted."""

    status: str
    version: str


_REFUSALS = {
    400: "Not a multipart form, or a host name that is not served here",
    403: "From another site",
    408: "The body took too long to arrive",
    413: "Too many bytes or pixels",
    422: "No image, or class names or numbers that do not fit",
    429: "Too many requests wait; see Retry-After",
    503: "Loading, stopping, or out of memory",
    504: "No response in time",
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The labels", "content": {"image/png": {}, "application/json": {}}},
    **{status: {"model": Problem, "description": text} for status, text in _REFUSALS.items()},
}


def build_app(service: Service, hosts: Sequence[str] = LOCAL_HOSTS) -> FastAPI:
    """Build the ASGI application of a service, which it starts and stops unless that runs already.

    Args:
        service: what computes the responses.
        hosts: names by which it may be called; `*`: any.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if service.jobs is not None:
            yield
            return
        threading.Thread(target=service.start, name="load", daemon=True).start()
        yield
        service.stop()

    app = FastAPI(
        title="Cascade-CLIP", version=version("cascade-clip"),
        description="Every pixel of an image gets one of your class names.",
        docs_url=None, redoc_url=None, redirect_slashes=False, lifespan=lifespan,
    )  # fmt: skip
    _Endpoints(service).add_to(app)
    app.add_exception_handler(RequestValidationError, _on_invalid_form)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_defect)
    app.add_middleware(SegmentGuard, service=service, hosts=hosts)
    return app


class _Endpoints:
    """The functions behind the addresses of a service."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def add_to(self, app: FastAPI) -> None:
        """Open the addresses."""
        app.post(
            SEGMENT, responses=_RESPONSES, response_class=Response,
            summary="Label every pixel of an image",
        )(self.segment)  # fmt: skip
        app.get(
            "/health", summary="Whether requests are accepted",
            responses={503: {"model": Health, "description": "Loading or stopping"}},
        )(self.health)  # fmt: skip
        app.get(
            "/metrics", summary="Counters for Prometheus", response_class=Response,
            responses={200: {"content": {"text/plain": {}}}},
        )(self.metrics)  # fmt: skip
        app.get("/docs", response_class=HTMLResponse, include_in_schema=False)(self.docs)

    async def segment(
        self,
        request: Request,
        image: Annotated[UploadFile, File(description="PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF")],
        classes: Annotated[str, Form(description="cat, grass, sofa = couch; settee")],
        background: Annotated[
            str, Form(description="background names, or scenery, or none; default: the model's")
        ] = "",
        threshold: Annotated[
            float | None, Form(ge=0, le=1, description="lowest score of a labelled pixel")
        ] = None,
        calibration: Annotated[
            float, Form(ge=0, le=1, description="taken off the scores of names seen in training")
        ] = 0.0,
        format: Annotated[Format, Form(description="index png, overlay, json or coco")] = "png",
    ) -> Response:
        service = self.service
        try:
            asked = read_request(
                await image.read(), classes, background, service.options,
                threshold=threshold, calibration=calibration, format=format,
            )  # fmt: skip
            return await self._wait(request, asked)
        except CascadeClipError as error:
            return _problem(413 if isinstance(error, TooLarge) else 422, str(error))
        except QueueClosed:
            return _problem(503, service.not_ready(), service.retry_after())
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = "not enough memory for this image; make it smaller"
            return _problem(503, reason, service.retry_after())

    async def health(self, response: Response) -> Health:
        reason = self.service.not_ready()
        response.status_code = 503 if reason else 200
        status = "stopping" if self.service.stopping else ("loading" if reason else "ready")
        return Health(status=status, version=version("cascade-clip"))

    async def metrics(self) -> Response:
        return Response(self.service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def docs(self, request: Request) -> HTMLResponse:
        page = render("service.html", document=request.app.openapi())
        return HTMLResponse(page, headers={"content-security-policy": _DOCS_POLICY})

    async def _wait(self, request: Request, asked: SegmentationRequest) -> Response:
        """Wait for the response, until the time limit is over or the client has left."""
        job = self.service.submit(asked)
        request.scope[JOBS].append(job)
        done: asyncio.Future[Any] = asyncio.wrap_future(job)
        gone: asyncio.Future[Any] = asyncio.ensure_future(request.receive())
        limit = self.service.options.timeout
        try:
            await asyncio.wait([done, gone], timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if done.done():
                body, media_type = done.result()
                headers = {"x-content-type-options": "nosniff"}
                return Response(body, media_type=media_type, headers=headers)
            if gone.done():
                return Response(status_code=CLIENT_LEFT)
            advice = "try again later, or with a smaller image"
            return _problem(504, f"no response within {limit:g} s; {advice}")
        finally:
            gone.cancel()
            done.cancel()


def _problem(status: int, reason: str, retry_after: int | None = None) -> JSONResponse:
    headers = {} if retry_after is None else {"retry-after": str(retry_after)}
    return JSONResponse({"error": " ".join(reason.split())[:500]}, status, headers)


async def _on_invalid_form(request: Request, error: Any) -> JSONResponse:
    """Name the first field that does not fit."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"][1:]) or "body"
    return _problem(422, f"{field}: {first['msg']}")


async def _on_http_error(request: Request, error: Any) -> JSONResponse:
    response = _problem(error.status_code, str(error.detail))
    response.headers.update(error.headers or {})
    return response


async def _on_defect(request: Request, error: Exception) -> JSONResponse:
    return _problem(500, "defect in the service; its log says more")
