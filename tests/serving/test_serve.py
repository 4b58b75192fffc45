"""The service over HTTP in one process: right answers, limits, refusals, metrics and
documentation."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import io
import json
import re
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from fastapi.testclient import TestClient

from cascade_clip.cli.main import main
from cascade_clip.config.service import ServiceOptions
from cascade_clip.errors import SettingError
from cascade_clip.inference.predictor import Predictor
from cascade_clip.results.rle import decode_mask
from cascade_clip.results.segmentation import Segmentation
from cascade_clip.sandbox.scenes import SceneConfig, make_scene
from cascade_clip.serving.guard import LOCAL_HOSTS
from cascade_clip.serving.http.app import build_app
from cascade_clip.serving.http.segmentation import read_request
from cascade_clip.serving.http.service import Service
from cascade_clip.vocabulary import Vocabulary

WORDS = "water, snow, fabric, umbrella"
OPTIONS = ServiceOptions(max_upload=1, max_pixels=40_000, max_words=12, queue=1)


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    return make_scene(2, 74, SceneConfig(size=160)).image[:, :144]  # not square


@pytest.fixture(scope="module")
def service(predictor: Predictor) -> Iterator[Service]:
    service = Service(lambda: copy.copy(predictor), OPTIONS)
    service.start()
    yield service
    service.stop()


@pytest.fixture(scope="module")
def client(service: Service) -> TestClient:
    # no `with`: keeps the service
    return TestClient(
        build_app(service), base_url="http://localhost", raise_server_exceptions=False
    )


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def palette_png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(4096, dtype=np.uint8).reshape(64, 64)).convert("P").save(file, "PNG")
    return file.getvalue()


def ask(client: TestClient, file: bytes, classes: str = WORDS, **data: Any) -> Any:
    return client.post(
        "/segment", data={"classes": classes, **data}, files={"image": ("a.png", file)}
    )


def image_of(response: Any) -> np.ndarray:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "image/png"
    return np.array(Image.open(io.BytesIO(response.content)))


class Blocked:
    """A service whose predictor waits for a signal."""

    def __init__(self, predictor: Predictor, **options: Any) -> None:
        self.predictor = predictor
        self.go, self.entered = threading.Event(), threading.Semaphore(0)
        self.service = Service(self.load, ServiceOptions(**{"queue": 1, "timeout": 20, **options}))
        self.service.start()
        self.client = TestClient(
            build_app(self.service), base_url="http://localhost", raise_server_exceptions=False
        )

    def load(self) -> Predictor:
        predictor = copy.copy(self.predictor)
        segment = predictor.segment_pixels

        def wait(pixels: torch.Tensor, target: Any) -> Segmentation:
            self.entered.release()
            assert self.go.wait(20)
            return segment(pixels, target)

        predictor.segment_pixels = wait  # type: ignore[method-assign]
        return predictor


@pytest.fixture
def blocked(predictor: Predictor) -> Iterator[Blocked]:
    found = Blocked(predictor)
    yield found
    found.go.set()
    found.service.stop()


def wait_until(condition: Any) -> None:
    for _ in range(1000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("timed out waiting for the condition")


class TestAnswers:
    def test_index_is_what_the_predictor_says(
        self, client: TestClient, predictor: Predictor, scene: np.ndarray
    ) -> None:
        found = image_of(
            ask(client, png(scene), calibration=0.1, threshold=0.5, background="wall, road")
        )
        expected = predictor.segment(scene, WORDS, 0.1, background="wall, road", threshold=0.5)
        assert np.array_equal(found, np.array(expected.index_image()))
        plain = predictor.segment(scene, WORDS)
        assert not np.array_equal(expected.labels, plain.labels)  # the settings matter here
        assert np.array_equal(image_of(ask(client, png(scene))), plain.labels)

    def test_other_forms(self, client: TestClient, predictor: Predictor, scene: np.ndarray) -> None:
        expected = predictor.segment(scene, WORDS)
        assert np.array_equal(
            image_of(ask(client, png(scene), format="overlay")), np.array(expected.overlay(scene))
        )
        answer = ask(client, png(scene), format="json")
        assert answer.headers["content-type"] == "application/json"
        assert answer.json() == json.loads(json.dumps(expected.to_json()))
        coco = ask(client, png(scene), format="coco").json()
        assert coco["images"] == [{"id": 1, "width": 144, "height": 160}]
        assert [category["name"] for category in coco["categories"]] == WORDS.split(", ")
        assert {part["name"] for part in coco["annotations"]} == {
            name for name, share in expected.coverage.items() if share
        }
        for part in coco["annotations"]:
            assert np.array_equal(decode_mask(part["segmentation"]), expected.mask(part["name"]))

    def test_together_equal_alone(self, predictor: Predictor, scene: np.ndarray) -> None:
        """Four requests of which three have the same words, in one service with batches."""
        blocked = Blocked(predictor, batch=4, queue=6)
        asks = [(scene, WORDS), (scene[:100], WORDS), (scene[:, :90], "sky, sand"), (scene, WORDS)]
        with ThreadPoolExecutor(5) as pool:
            first = pool.submit(ask, blocked.client, png(scene), "sky")
            blocked.entered.acquire()
            rest = []
            for number, (image, words) in enumerate(asks, start=1):
                rest.append(pool.submit(ask, blocked.client, png(image), words))
                wait_until(
                    lambda count=number: (
                        blocked.service.jobs and blocked.service.jobs.waiting == count
                    )
                )
            blocked.go.set()
            assert image_of(first.result()).max() == 0
            for (image, words), future in zip(asks, rest, strict=True):
                expected = predictor.segment(image, words).labels
                found = image_of(future.result())
                assert found.shape == expected.shape
                assert (found == expected).mean() > 0.999  # other order of additions
        blocked.service.stop()
        text = blocked.client.get("/metrics").text
        assert "cascade_clip_batch_size_sum 5.0" in text
        assert "cascade_clip_batch_size_count 3.0" in text  # sky; three of one list; sky, sand
        assert blocked.service.slots.used == 0


def test_an_error_in_writing_is_that_of_its_request(
    predictor: Predictor, scene: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(lambda: copy.copy(predictor), dataclasses.replace(OPTIONS, batch=2))
    service.start()
    monkeypatch.setattr(Segmentation, "to_coco_rle", lambda self: 1 / 0)
    asked = [read_request(png(scene), WORDS, "", OPTIONS, format=kind) for kind in ("coco", "png")]
    failed, good = service._segment(asked)
    assert isinstance(failed, ZeroDivisionError)
    assert not isinstance(good, BaseException) and good.media_type == "image/png"
    service.stop()


def test_words_are_never_a_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("password")
    request = read_request(b"", str(secret), str(secret) + ", wall", OPTIONS)
    assert request.classes.names == (str(secret),)
    assert isinstance(request.background, Vocabulary)
    assert request.background.names == (str(secret), "wall")


def test_background_names_count_together_with_class_names() -> None:
    with pytest.raises(SettingError, match="2 class names are given; 1 at most"):
        read_request(b"", ", ".join(f"n{index}" for index in range(11)), "wall, floor", OPTIONS)


@pytest.mark.parametrize("word", ["scenery", " Scenery"])
def test_scenery_stands_for_the_packaged_background_names(predictor: Predictor, word: str) -> None:
    request = read_request(b"", "cat", word, OPTIONS)
    bound = predictor.bind(request.classes, background=request.background)
    assert bound.background.startswith("words (sky, cloud, wall")


class TestRefusals:
    @pytest.mark.parametrize(
        ("data", "status", "reason"),
        [
            ({"classes": " ,"}, 422, "no class names given"),
            ({"classes": "cat, Cat"}, 422, "given twice"),
            ({"classes": "a\x00b"}, 422, "control characters"),
            ({"classes": "x" * 10_001}, 422, "10,001 characters"),
            ({"classes": ",".join("abcdefghijklm")}, 422, "13 class names"),
            ({"classes": "background", "threshold": "0.5"}, 422, "only class name"),
            ({"threshold": "nan"}, 422, "threshold: "),
            ({"threshold": "2"}, 422, "threshold: "),
            ({"calibration": "inf"}, 422, "calibration: "),
            ({"calibration": "much"}, 422, "calibration: "),
            ({"format": "exe"}, 422, "format: "),
        ],
    )
    def test_words_and_numbers(
        self, client: TestClient, scene: np.ndarray, data: dict[str, str], status: int, reason: str
    ) -> None:
        self.check(ask(client, png(scene), **{"classes": WORDS, **data}), status, reason)

    @pytest.mark.parametrize(
        ("file", "status", "reason"),
        [
            (b"", 422, "not an image"),
            (b"nothing", 422, "not an image"),
            (png(make_scene(1, 1, SceneConfig(size=64)).image)[:2000], 422, "image"),
            (palette_png()[:100], 422, "damaged"),
            (png(np.zeros((4, 4, 3), np.uint8)), 422, "4 x 4"),
            (png(np.zeros((201, 200, 3), np.uint8)), 413, "more than the limit"),
            (b"x" * (2**20 + 70_000), 413, "1 MiB at most"),
        ],
        ids=["empty", "text", "cut", "cut palette", "small", "pixels", "bytes"],
    )
    def test_pictures(self, client: TestClient, file: bytes, status: int, reason: str) -> None:
        self.check(ask(client, file), status, reason)

    def test_requests(self, client: TestClient, scene: np.ndarray) -> None:
        self.check(client.post("/segment", data={"classes": "cat"}), 422, "image: Field required")
        self.check(
            client.post(
                "/segment",
                content=b"--x",
                headers={"content-type": "multipart/form-data; boundary=y"},
            ),
            400,
            "",
        )
        self.check(client.get("/segment"), 405, "Method Not Allowed")
        self.check(client.get("/segment/../../etc/passwd"), 404, "Not Found")
        self.check(
            client.post("/segment", headers={"origin": "http://evil.example"}), 403, "other sites"
        )
        self.check(client.post("/segment", headers={"origin": "http://[evil"}), 403, "other sites")
        # its own page
        assert client.post("/segment", headers={"origin": "http://localhost"}).status_code == 422
        for name in (
            "evil.example",
            "localhost.evil.example",
            "[evil",
            "",
            "127.0.0.1@evil.example",
        ):
            self.check(client.get("/health", headers={"host": name}), 400, "host name")
        for name in (*LOCAL_HOSTS[:2], "[::1]", "LOCALHOST:8000", "[::1]:8000"):
            assert client.get("/health", headers={"host": name}).status_code == 200

    def test_chunked_bodies_are_limited_too(self, client: TestClient) -> None:
        self.check(
            client.post("/segment", content=(b"x" * 2**16 for _ in range(20))), 413, "1 MiB at most"
        )

    def check(self, response: Any, status: int, reason: str) -> None:
        assert response.status_code == status, response.text
        assert list(response.json()) == ["error"]
        line = response.json()["error"]
        assert reason in line and "\n" not in line
        assert not re.search(r"/(home|usr|tmp|work|root)\b|site-packages|Traceback", line)


class TestPressure:
    def test_beyond_capacity_is_refused_and_the_rest_is_right(
        self, blocked: Blocked, scene: np.ndarray, predictor: Predictor
    ) -> None:
        with ThreadPoolExecutor(2) as pool:
            running = pool.submit(ask, blocked.client, png(scene))
            blocked.entered.acquire()
            waiting = pool.submit(ask, blocked.client, png(scene[:100]))
            wait_until(lambda: blocked.service.jobs and blocked.service.jobs.waiting == 1)
            refused = ask(blocked.client, png(scene))
            assert (refused.status_code, refused.json()) == (
                429,
                {"error": "too many requests wait; try again later"},
            )
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            text = blocked.client.get("/metrics").text
            assert "cascade_clip_queue_length 1.0" in text and "cascade_clip_slots_used 2.0" in text
            blocked.go.set()
            assert np.array_equal(
                image_of(running.result()), predictor.segment(scene, WORDS).labels
            )
            assert np.array_equal(
                image_of(waiting.result()), predictor.segment(scene[:100], WORDS).labels
            )
        text = blocked.client.get("/metrics").text
        assert 'cascade_clip_requests_total{path="/segment",status="429"} 1.0' in text
        assert 'cascade_clip_requests_total{path="/segment",status="200"} 2.0' in text
        assert "cascade_clip_request_seconds_count 3.0" in text
        assert blocked.service.slots.used == 0

    def test_no_response_in_time(self, predictor: Predictor, scene: np.ndarray) -> None:
        blocked = Blocked(predictor, timeout=0.2)
        late = ask(blocked.client, png(scene))
        assert (late.status_code, late.json()["error"][:24]) == (504, "no response within 0.2 s")
        assert blocked.service.slots.used == 1  # the work goes on, so its place is not free
        blocked.go.set()
        wait_until(lambda: blocked.service.slots.used == 0)
        blocked.service.stop()

    def test_a_client_that_left_is_left_out(self, blocked: Blocked, scene: np.ndarray) -> None:
        form = httpx.Request(
            "POST", "http://localhost/segment", data={"classes": WORDS}, files={"image": png(scene)}
        )
        headers = [(key.lower(), value) for key, value in form.headers.raw]
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/segment",
            "headers": headers,
            "query_string": b"",
            "http_version": "1.1",
        }
        messages = iter(
            [{"type": "http.request", "body": form.read()}, {"type": "http.disconnect"}]
        )
        statuses = []

        async def receive() -> Any:
            return next(messages)

        async def send(message: Any) -> None:
            statuses.append(message.get("status"))

        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(ask, blocked.client, png(scene))
            blocked.entered.acquire()
            asyncio.run(build_app(blocked.service)(scope, receive, send))
            assert statuses[0] == 499
            assert blocked.service.slots.used == 1  # its place is free at once
            blocked.go.set()
            assert running.result().status_code == 200
        assert not blocked.entered.acquire(timeout=0.1)  # and it was never computed

    def test_loading_and_stopping(self, predictor: Predictor, scene: np.ndarray) -> None:
        service = Service(lambda: copy.copy(predictor), OPTIONS)
        client = TestClient(build_app(service), base_url="http://localhost")
        assert (client.get("/health").status_code, client.get("/health").json()["status"]) == (
            503,
            "loading",
        )
        assert ask(client, png(scene)).json() == {"error": "the model is being loaded"}
        service.start()
        assert (client.get("/health").status_code, client.get("/health").json()["status"]) == (
            200,
            "ready",
        )
        service.stopping = True
        assert client.get("/health").json()["status"] == "stopping"
        refused = ask(client, png(scene))
        assert (refused.status_code, refused.json()) == (503, {"error": "the service is stopping"})
        service.stop()

    @pytest.mark.parametrize(
        ("error", "status", "reason"),
        [
            (MemoryError(), 503, "not enough memory"),
            (torch.OutOfMemoryError("CUDA out of memory"), 503, "not enough memory"),
            (
                RuntimeError("cannot open /home/me/weights"),
                500,
                "defect in the service; its log says more",
            ),
            (ValueError("/home/me is wrong"), 500, "defect in the service; its log says more"),
            (
                OSError(2, "No such file", "/home/me/weights"),
                500,
                "defect in the service; its log says more",
            ),
        ],
    )
    def test_defects_leak_nothing(
        self, predictor: Predictor, scene: np.ndarray, error: Exception, status: int, reason: str
    ) -> None:
        def fail(*_: Any) -> None:
            raise error

        broken = copy.copy(predictor)
        broken.segment_pixels = fail  # type: ignore[method-assign, assignment]
        service = Service(lambda: broken, OPTIONS)
        service.start()
        response = ask(
            TestClient(
                build_app(service), base_url="http://localhost", raise_server_exceptions=False
            ),
            png(scene),
        )
        assert response.status_code == status
        assert reason in response.json()["error"] and "/home" not in response.text
        assert service.slots.used == 0
        service.stop()


class TestPages:
    def test_docs_need_no_other_host(self, client: TestClient) -> None:
        page = client.get("/docs")
        assert page.status_code == 200
        # the example of curl
        assert set(re.findall(r"https?://[^/\s\"]+", page.text)) == {"http://127.0.0.1:8000"}
        assert "<script" not in page.text and page.headers["content-security-policy"].startswith(
            "default-src 'none'"
        )
        for part in (
            "POST /segment",
            "GET /health",
            "GET /metrics",
            "calibration",
            "429",
            'name="image"',
        ):
            assert part in page.text
        assert set(client.get("/openapi.json").json()["paths"]) == {
            "/segment",
            "/health",
            "/metrics",
        }

    def test_a_missing_extra_is_named(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.delitem(sys.modules, "cascade_clip.serving.http")
        monkeypatch.setitem(sys.modules, "uvicorn", None)
        assert main(["serve"]) == 2
        assert "pip install 'cascade-clip[serve]'" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("flag", "value"),
        [
            ("--workers", "0"),
            ("--timeout", "0"),
            ("--max-pixels", "999999999"),
            ("--port", "70000"),
        ],
    )
    def test_flags_out_of_range(
        self, flag: str, value: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["serve", flag, value]) == 2
        assert re.search(rf"{flag} must lie in .*got {value}", capsys.readouterr().err)


def test_none_switches_the_background_names_of_a_model_off(
    predictor: Predictor, scene: np.ndarray
) -> None:
    changed = copy.copy(predictor)
    changed.settings = dataclasses.replace(predictor.settings, background="sky, sand, road, cloud")
    service = Service(lambda: changed, OPTIONS)
    service.start()
    asked = [
        read_request(png(scene), WORDS, background, OPTIONS, format="json")
        for background in ("", "none", "None ", "wall")
    ]
    found = [json.loads(service.submit(request).result(60).body)["classes"] for request in asked]
    backgrounds = [
        [entry["name"] for entry in classes if entry["name"] == "background"] for classes in found
    ]
    assert backgrounds == [["background"], [], [], ["background"]]
    # the two forms of `none` may be answered together, with nothing else
    assert len({request.key for request in asked}) == 3
    service.stop()
