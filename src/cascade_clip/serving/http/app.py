"""The service: `POST /segment`, `/health`, `/metrics` and `/docs` in FastAPI, before one predictor.

Nothing is fetched from the net, and no answer names a path of this machine.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from importlib.metadata import version
from types import FrameType
from typing import Annotated, Any

from cascade_clip.errors import CascadeClipError, MissingPackageError, is_out_of_memory

try:
    import uvicorn
    from fastapi import FastAPI, File, Form, Request, UploadFile
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import HTMLResponse, JSONResponse, Response
    from prometheus_client import (
        CONTENT_TYPE_LATEST,
        CollectorRegistry,
        Counter,
        Gauge,
        Histogram,
        ProcessCollector,
        generate_latest,
    )
    from pydantic import BaseModel
    from starlette.exceptions import HTTPException

    from cascade_clip.serving.http.guard import SLOT, Guard, Meter, PatientProtocol
except ImportError as error:
    raise MissingPackageError(
        "the service needs FastAPI and prometheus_client: pip install 'cascade-clip[serve]'"
    ) from error

from cascade_clip.config import ServiceOptions
from cascade_clip.inference import Predictor
from cascade_clip.serving.http.answering import (
    Answer,
    Answerer,
    Format,
    Question,
    TooLarge,
    read_question,
)
from cascade_clip.serving.http.docs_page import describe_service
from cascade_clip.serving.http.queue import JobQueue, Slots, Stopped

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
PATHS = ("/segment", "/health", "/metrics", "/docs", "/openapi.json")
SECONDS = (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
"""Bounds of the latency histogram."""
GONE = 499
"""Status, in the metrics alone, of requests whose client left before the answer."""

logger = logging.getLogger(__name__)


class Problem(BaseModel):
    """What is wrong, in one line."""

    error: str


class Health(BaseModel):
    """Whether requests are taken."""

    status: str
    version: str


class Metrics:
    """Counters in the form of Prometheus."""

    def __init__(self, service: Service) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "cascade_clip_requests",
            "Requests by path and status",
            ["path", "status"],
            registry=self.registry,
        )
        text = "Time from request to answer of /segment"
        self._seconds = Histogram(
            "cascade_clip_request_seconds", text, buckets=SECONDS, registry=self.registry
        )
        sizes = (1, 2, 4, 8, 16, 32, 64)
        self.batches = Histogram(
            "cascade_clip_batch_size",
            "Requests answered together",
            buckets=sizes,
            registry=self.registry,
        )
        waiting = Gauge(
            "cascade_clip_queue_length", "Requests that wait for a worker", registry=self.registry
        )
        waiting.set_function(lambda: service.jobs.waiting if service.jobs else 0)
        Gauge(
            "cascade_clip_slots_used", "Requests in the house", registry=self.registry
        ).set_function(lambda: service.slots.used)

    def report(self, path: str, status: int, seconds: float) -> None:
        """Count one request."""
        self._requests.labels(path if path in PATHS else "other", str(status)).inc()
        if path == PATHS[0]:
            self._seconds.observe(seconds)


class Service:
    """One predictor with its queue: loading, ready, stopping."""

    def __init__(self, load: Callable[[], Predictor], options: ServiceOptions) -> None:
        self.options, self._load = options, load
        self.slots = Slots(options.queue + options.workers * (options.batch or 1))
        self.metrics = Metrics(self)
        self.jobs: JobQueue[Question, Answer] | None = None
        self.answerer: Answerer | None = None
        self.failure: BaseException | None = None
        self.stopping = False
        self._mean_seconds = 1.0

    def start(self) -> None:
        """Load the model and begin to answer; what goes wrong is kept in `failure`."""
        try:
            self.answerer = Answerer(self._load, self.options)
        except BaseException as error:
            self.failure = error
            return
        self.slots.limit = self.options.queue + self.options.workers * self.answerer.batch
        jobs: JobQueue[Question, Answer] = JobQueue(
            self._answer, self.options.workers, self.answerer.batch, self.metrics.batches.observe
        )
        jobs.start()
        self.jobs = jobs

    def stop(self) -> None:
        """Refuse what waits and end the threads."""
        self.stopping = True
        if self.jobs is not None and self.answerer is not None:
            self.jobs.close()
            self.answerer.close()

    def not_ready(self) -> str:
        """Why nothing is taken at the moment; empty when requests are taken."""
        if self.stopping:
            return "the service is stopping"
        return "" if self.jobs is not None else "the model is being loaded"

    def is_idle(self) -> bool:
        """Whether no request is in the house."""
        return self.slots.used == 0

    def retry_after(self) -> int:
        """Seconds until there will be room, from the time that answers take."""
        waiting = self.jobs.waiting if self.jobs is not None else 0
        return min(60, max(1, math.ceil((waiting + 1) * self._mean_seconds / self.options.workers)))

    def ask(self, question: Question) -> Future[Answer]:
        """Queue a question.

        Raises:
            Stopped: nothing is taken.
        """
        if self.jobs is None:
            raise Stopped
        return self.jobs.submit(question, question.key)

    def _answer(self, questions: list[Question]) -> list[Answer | BaseException]:
        assert self.answerer is not None
        started = time.perf_counter()
        answers = self.answerer.answer(questions)
        self._mean_seconds += 0.1 * (
            (time.perf_counter() - started) / len(questions) - self._mean_seconds
        )
        return answers


_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The labels", "content": {"image/png": {}, "application/json": {}}},
    **{
        status: {"model": Problem, "description": text}
        for status, text in {
            400: "Not a multipart form, or a host name that is not served here",
            403: "From another site",
            408: "The body took too long to arrive",
            413: "Too many bytes or pixels",
            422: "No picture, or words or numbers that do not fit",
            429: "Too many requests wait; see Retry-After",
            503: "Loading, stopping, or out of memory",
            504: "No answer in time",
        }.items()
    },
}


def build_app(service: Service, hosts: Sequence[str] = LOCAL_HOSTS) -> FastAPI:
    """The service as an ASGI application; it starts the service, and stops it in the end, unless it
    runs already.

    Args:
        service: what answers.
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
        description="Every pixel of a picture gets one of your words.",
        docs_url=None, redoc_url=None, redirect_slashes=False, lifespan=lifespan,
    )  # fmt: skip
    _add_routes(app, service)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _failed)
    app.add_exception_handler(Exception, _defect)
    limits: dict[str, Any] = {"options": service.options, "slots": service.slots, "hosts": hosts}
    # inside the meter
    app.add_middleware(Guard, closing=service.not_ready, retry_after=service.retry_after, **limits)
    app.add_middleware(Meter, report=service.metrics.report)
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    @app.post(
        "/segment",
        responses=_ANSWERS,
        response_class=Response,
        summary="Label every pixel of a picture",
    )
    async def segment(
        request: Request,
        image: Annotated[UploadFile, File(description="PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF")],
        classes: Annotated[str, Form(description="cat, grass, sofa = couch; settee")],
        background: Annotated[
            str,
            Form(
                description=(
                    "words that all mean background, or scenery, or none; default: the model's"
                )
            ),
        ] = "",
        threshold: Annotated[
            float | None, Form(ge=0, le=1, description="lowest score of a labelled pixel")
        ] = None,
        calibration: Annotated[
            float, Form(ge=0, le=1, description="taken off the scores of names seen in training")
        ] = 0.0,
        format: Annotated[Format, Form(description="index png, overlay, json or coco")] = "png",
    ) -> Response:
        try:
            question = read_question(
                await image.read(),
                classes,
                background,
                service.options,
                threshold=threshold,
                calibration=calibration,
                format=format,
            )
            return await _wait(service, request, question)
        except TooLarge as error:
            return _problem(413, str(error))
        except CascadeClipError as error:
            return _problem(422, str(error))
        except Stopped:
            return _problem(503, service.not_ready(), service.retry_after())
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return _problem(
                503, "not enough memory for this picture; make it smaller", service.retry_after()
            )

    @app.get(
        "/health",
        responses={503: {"model": Health, "description": "Loading or stopping"}},
        summary="Whether requests are taken",
    )
    async def health() -> Health:
        reason = service.not_ready()
        state = "stopping" if service.stopping else ("loading" if reason else "ready")
        answer = Health(status=state, version=app.version)
        return JSONResponse(answer.model_dump(), 503) if reason else answer  # type: ignore[return-value]

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}}},
        summary="Counters for Prometheus",
    )
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    async def docs() -> HTMLResponse:
        policy = (
            "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors"
            " 'none'"
        )
        return HTMLResponse(
            describe_service(app.openapi()), headers={"content-security-policy": policy}
        )


async def _wait(service: Service, request: Request, question: Question) -> Response:
    """The answer to a question, or what came before it: the time limit, or the client left."""
    job = service.ask(question)
    slot = request.scope[SLOT]
    slot.hold()  # until the work is done, also where nobody waits for it any more
    job.add_done_callback(lambda _: slot.release())
    answer: asyncio.Future[Any] = asyncio.wrap_future(job)
    gone: asyncio.Future[Any] = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait(
            [answer, gone], timeout=service.options.timeout, return_when=asyncio.FIRST_COMPLETED
        )
        if answer.done():
            found = answer.result()
            return Response(
                found.body,
                media_type=found.media_type,
                headers={"x-content-type-options": "nosniff"},
            )
        if gone.done():
            return Response(status_code=GONE)
        return _problem(
            504,
            f"no answer within {service.options.timeout:g} s; try again later, or with a smaller"
            " picture",
        )
    finally:
        gone.cancel()
        answer.cancel()


def _problem(status: int, reason: str, retry_after: int | None = None) -> JSONResponse:
    headers = {} if retry_after is None else {"retry-after": str(retry_after)}
    return JSONResponse({"error": " ".join(reason.split())[:500]}, status, headers)


async def _invalid(request: Request, error: Any) -> JSONResponse:
    """One line for the first field that does not fit."""
    first = error.errors()[0]
    return _problem(
        422, f"{'.'.join(str(part) for part in first['loc'][1:]) or 'body'}: {first['msg']}"
    )


async def _failed(request: Request, error: Any) -> JSONResponse:
    answer = _problem(error.status_code, str(error.detail))
    answer.headers.update(error.headers or {})
    return answer


async def _defect(request: Request, error: Exception) -> JSONResponse:
    return _problem(500, "defect in the service; its log says more")


class DrainingServer(uvicorn.Server):
    """uvicorn that, on the first signal, answers what it has accepted and refuses what is new
    (503), then stops; on the second at once."""

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
        """Stop when nothing is left to answer, when time is up, or when the model could not be
        loaded."""
        late = time.monotonic() > self._deadline
        if late:
            self.service.stop()  # what waits is refused
        if late or (self.service.stopping and self.service.is_idle()):
            self.should_exit = True
        return await super().on_tick(counter) or self.service.failure is not None


def run(service: Service, sock: socket.socket, hosts: Sequence[str]) -> None:
    """Answer on an open socket until a signal comes.

    Raises:
        Exception: what went wrong while the model was loaded.
    """
    app = build_app(service, hosts)
    config = uvicorn.Config(
        app, http=PatientProtocol.under(service.options), ws="none", log_level="error",
        access_log=False, proxy_headers=False,
        server_header=False, timeout_keep_alive=5, timeout_graceful_shutdown=2, backlog=128,
    )  # fmt: skip
    DrainingServer(config, service).run(sockets=[sock])
    if service.failure is not None:
        raise service.failure
