"""The parts below the service: slots, the queue with its groups, shared forward passes, remembered
texts, the guard, the protocol."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

pytest.importorskip("uvicorn")

from cascade_clip.config.service import ServiceOptions
from cascade_clip.encoders.text import _cache_folder
from cascade_clip.inference.loading import load_predictor
from cascade_clip.inference.predictor import Predictor
from cascade_clip.results.segmentation import Segmentation
from cascade_clip.serving.guard import BODIES_AT_ONCE
from cascade_clip.serving.http.batching import RememberedText, SharedForward, segment_together
from cascade_clip.serving.http.guard import SegmentGuard
from cascade_clip.serving.http.queue import JobQueue, QueueClosed, Slots
from cascade_clip.serving.http.server import DeadlineProtocol
from cascade_clip.serving.http.service import Service


def test_slots_are_bounded() -> None:
    slots = Slots(2)
    assert [slots.take() for _ in range(3)] == [True, True, False]
    slots.release()
    assert slots.used == 1 and slots.take()


class TestQueue:
    def queue(self, batch: int = 3) -> tuple[JobQueue[str, str], list[list[str]], list[int]]:
        groups: list[list[str]] = []
        sizes: list[int] = []

        def answer(questions: list[str]) -> list[str | BaseException]:
            groups.append(questions)
            if "boom" in questions:
                raise KeyError("boom")
            return [
                ValueError(question) if question == "bad" else question.upper()
                for question in questions
            ]

        return JobQueue(answer, 1, batch, sizes.append), groups, sizes

    def test_jobs_of_one_key_are_taken_together_in_order(self) -> None:
        queue, groups, sizes = self.queue()
        asked = [("a1", "a"), ("b1", "b"), ("a2", "a"), ("a3", "a"), ("a4", "a"), ("b2", "b")]
        futures = [queue.submit(question, key) for question, key in asked]
        assert queue.waiting == 6
        queue.start()
        assert [future.result(10) for future in futures] == ["A1", "B1", "A2", "A3", "A4", "B2"]
        # at most three; the oldest decides
        assert groups == [["a1", "a2", "a3"], ["b1", "b2"], ["a4"]]
        assert sizes == [3, 2, 1]
        assert queue.waiting == 0
        queue.close()

    def test_errors_reach_their_callers_alone_and_the_thread_lives_on(self) -> None:
        queue, _, _ = self.queue()
        futures = [
            queue.submit(question, key)
            for question, key in (("bad", 1), ("good", 1), ("boom", 2), ("next", 3))
        ]
        queue.start()
        assert futures[1].result(10) == "GOOD" and futures[3].result(10) == "NEXT"
        assert isinstance(futures[0].exception(10), ValueError) and isinstance(
            futures[2].exception(10), KeyError
        )
        queue.close()

    def test_cancelled_jobs_are_left_out_and_closing_refuses(self) -> None:
        queue, groups, _ = self.queue()
        gone, kept = queue.submit("gone", 1), queue.submit("kept", 1)
        assert gone.cancel()
        queue.start()
        assert kept.result(10) == "KEPT"
        with pytest.raises(CancelledError):
            gone.result(0)
        assert groups == [["kept"]]
        queue.close()
        assert not any(thread.is_alive() for thread in queue._threads)
        with pytest.raises(QueueClosed):
            queue.submit("late", 1)

    def test_closing_refuses_what_waits(self) -> None:
        queue, groups, _ = self.queue()
        future = queue.submit("waits", 1)
        queue.close()
        assert isinstance(future.exception(0), QueueClosed) and groups == []


class TestTogether:
    def test_one_forward_pass_for_all_that_run(
        self, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Pictures of 1, 2 and 4 windows take 4 forward passes (of 3, 2, 1 and 1 windows), not
        7."""
        target = predictor.bind("water, snow")
        pictures = [
            torch.randint(0, 256, (3, *size), dtype=torch.uint8)
            for size in ((128, 128), (128, 200), (128, 400))
        ]
        alone = [predictor.segment_pixels(picture, target) for picture in pictures]
        sizes: list[int] = []
        forward = predictor.model.forward

        def count(images: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
            sizes.append(len(images))
            return forward(images, text)

        monkeypatch.setattr(predictor.model, "forward", count)
        for picture in pictures:
            predictor.segment_pixels(picture, target)
        windows, sizes[:] = list(sizes), []
        with ThreadPoolExecutor(3) as pool:
            together = segment_together(predictor, pictures, target, pool)
        assert sum(sizes) == sum(windows) and max(sizes) >= 3 > max(windows)
        assert len(sizes) < len(windows)
        for one, other in zip(alone, together, strict=True):
            assert (
                isinstance(other, Segmentation)
                and one.scores is not None
                and other.scores is not None
            )
            assert abs(one.scores - other.scores).max() < 1e-4
            assert (one.labels == other.labels).mean() > 0.999
        assert not isinstance(predictor.model, SharedForward)  # the predictor itself is as it was

    def test_an_error_is_that_of_its_picture(self, predictor: Predictor) -> None:
        target = predictor.bind("water, snow")
        pictures = [
            torch.zeros(3, 130, 140, dtype=torch.uint8),
            torch.zeros(3, 2, 2, dtype=torch.uint8),
        ]
        with ThreadPoolExecutor(2) as pool:
            good, bad = segment_together(predictor, pictures, target, pool)
        assert isinstance(good, Segmentation) and isinstance(bad, ValueError)

    def test_an_error_of_the_network_reaches_every_caller(self) -> None:
        def fail(images: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
            raise RuntimeError(f"{len(images)} windows")

        shared = SharedForward(fail, 2)

        def call(number: int) -> str:
            try:
                shared(torch.zeros(number, 3, 4, 4), torch.zeros(1))
            except RuntimeError as error:
                return str(error)
            finally:
                shared.leave()
            return "none"

        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(call, [1, 2])) == ["3 windows", "3 windows"]


def test_texts_are_remembered_in_memory_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "CASCADE_CLIP_CACHE", str(tmp_path))
    encoder = load_predictor("mini", device="cpu").text_encoder
    assert encoder is not None
    remembered = RememberedText(encoder, 2)
    calls: list[int] = []
    encode = remembered.encode
    monkeypatch.setattr(
        remembered, "encode", lambda prompts: calls.append(len(prompts)) or encode(prompts)
    )
    lists = [[["water"]], [["snow", "ice"]], [["sand"]]]
    first = remembered.embed(lists[0], ["{}"])
    assert remembered.embed(lists[0], ["{}"]) is first
    assert calls == [1]
    remembered.embed(lists[1], ["{}"])
    remembered.embed(lists[2], ["{}"])  # now the first is forgotten
    assert torch.equal(remembered.embed(lists[0], ["{}"]), first)
    assert calls == [1, 2, 1, 1]
    assert _cache_folder() == tmp_path and not list(tmp_path.rglob("*.npy"))
    encoder.embed(lists[0], ["{}"])
    assert len(list(tmp_path.rglob("*.npy"))) == 1  # others write


class TestGuard:
    def send(
        self, guard: SegmentGuard, parts: list[bytes], pause: float = 0.0, headers: Any = ()
    ) -> tuple[int, bytes]:
        """Post a body in parts; a pause stands before the last."""
        sent: list[Any] = []
        left = list(parts)

        async def receive() -> Any:
            if len(left) == 1:
                await asyncio.sleep(pause)
            body = left.pop(0)
            return {"type": "http.request", "body": body, "more_body": bool(left)}

        async def collect(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/segment", "headers": list(headers)}
        asyncio.run(guard(scope, receive, collect))
        return sent[0]["status"], sent[1]["body"]

    def guard(self, held: list[int] | None = None, **changes: Any) -> SegmentGuard:
        held = [] if held is None else held

        async def app(scope: Any, receive: Any, send: Any) -> None:
            body, more = b"", True
            while more:
                message = await receive()
                body, more = body + message["body"], message["more_body"]
            assert guard.service.slots.used == 1
            held.append(guard.uploading)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": body})

        options = ServiceOptions(max_upload=1, upload_timeout=0.1, queue=0)
        service = Service(Mock(), options)
        service.not_ready = changes.get("not_ready", lambda: "")  # type: ignore[method-assign]
        guard = SegmentGuard(app, service)
        return guard

    def test_bodies_arrive_whole(self) -> None:
        held: list[int] = []
        guard = self.guard(held)
        assert self.send(guard, [b"one ", b"", b"two"]) == (200, b"one two")
        assert held == [0]  # a body that has a slot does not count any more
        assert guard.service.slots.used == guard.uploading == 0

    def test_slow_uploads_are_given_up(self) -> None:
        guard = self.guard()
        assert self.send(guard, [b"one", b"two"], pause=5) == (
            408,
            b'{"error": "the request took too long to arrive"}',
        )
        assert guard.service.slots.used == guard.uploading == 0

    def test_uploads_together_are_bounded(self) -> None:
        guard = self.guard()
        guard.uploading = BODIES_AT_ONCE * guard.largest - 2
        assert self.send(guard, [b"xxx"])[0] == 429
        assert self.send(guard, [b"xx"])[0] == 200

    def test_what_is_refused_is_thrown_away_first(self) -> None:
        guard = self.guard(not_ready=lambda: "the service is stopping")
        parts = [b"x" * 1000] * 5
        assert self.send(guard, parts)[0] == 503
        for length in (b"-1", b"1e3", b"99999999", "\u00b2".encode("latin-1")):
            assert self.send(guard, [b""], headers=[(b"content-length", length)])[0] == 413

    def test_a_service_that_stops_during_the_upload_refuses(self) -> None:
        answers = iter(["", "stopping"])
        assert self.send(self.guard(not_ready=lambda: next(answers)), [b"x"]) == (
            503,
            b'{"error": "stopping"}',
        )


def test_a_client_that_does_not_read_is_cut_off() -> None:
    protocol = object.__new__(DeadlineProtocol.under(ServiceOptions(upload_timeout=0.05)))
    protocol.flow, protocol.transport = Mock(), Mock()

    async def run() -> None:
        protocol.loop = asyncio.get_running_loop()
        protocol.pause_writing()
        protocol.resume_writing()
        await asyncio.sleep(0.1)
        assert not protocol.transport.abort.called
        protocol.pause_writing()
        await asyncio.sleep(0.1)
        assert protocol.transport.abort.called

    asyncio.run(run())


def test_a_queue_is_busy_until_its_threads_end() -> None:
    """What closing cannot wait for is known, so that the service can end without meeting a thread
    inside torch."""
    began, go_on = threading.Event(), threading.Event()

    def answer(questions: Sequence[int]) -> list[int]:
        began.set()
        go_on.wait(20)
        return list(questions)

    queue: JobQueue[int, int] = JobQueue(answer, 1, 1, lambda size: None)
    assert not queue.busy
    queue.start()
    future = queue.submit(3, "a")
    assert began.wait(20)
    queue.close(patience=0.01)
    assert queue.busy
    go_on.set()
    assert future.result(20) == 3
    queue.close(patience=20)
    assert not queue.busy
