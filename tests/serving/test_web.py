"""The web page without a browser: what it answers, its limits, what the guard lets in, and the page
over HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cascade_clip.cli.main import main
from cascade_clip.errors import CascadeClipError, SettingError
from cascade_clip.inference.loading import load_predictor
from cascade_clip.inference.predictor import Predictor
from cascade_clip.sandbox.scenes import CLASS_NAMES, PALETTE, SceneConfig, make_scene
from cascade_clip.serving.guard import ANY_HOST, FORM_OVERHEAD, LOCAL_HOSTS, Refusal
from cascade_clip.serving.web.drawing import (
    PREVIEW_SIDE,
    ResultView,
    heat_map,
    legend,
    make_examples,
)
from cascade_clip.serving.web.guard import MOST_JSON, PageGuard
from cascade_clip.serving.web.service import (
    MOST_NAMES,
    PageRequest,
    WebService,
    with_known_colors,
)
from cascade_clip.vocabulary import build_palette, parse_classes

WORDS = "water, snow, fabric, umbrella"
MAX_UPLOAD = 2**20  # bytes


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> WebService:
    return WebService(
        [], tmp_path_factory.mktemp("uploads").resolve(), max_pixels=40_000, max_upload=1
    )


@pytest.fixture(scope="module")
def scene(service: WebService) -> Path:
    path = service.folder / "my scene.png"
    # not square
    Image.fromarray(make_scene(2, 74, SceneConfig(size=160)).image[:, :144]).save(path)
    return path


def ask(service: WebService, path: Path | str | None, words: str = WORDS, **changes: Any) -> Any:
    return service.segment(PageRequest("mini", str(path) if path else None, words, **changes))


class TestAnswer:
    def test_known_names_keep_their_colours(self, predictor: Predictor) -> None:
        trained = predictor.vocabulary
        assert with_known_colors(parse_classes("sand, sky"), trained).colors == (
            PALETTE[3],
            PALETTE[0],
        )
        # never two of one colour
        assert with_known_colors(parse_classes("sand, ship"), trained).colors == build_palette(2)

    def test_is_what_the_predictor_says(
        self, service: WebService, scene: Path, predictor: Predictor
    ) -> None:
        found = ask(service, scene, calibration=0.1, threshold=0.5)
        expected = predictor.segment(scene, WORDS, 0.1, threshold=0.5)
        assert 0 < (expected.labels < 0).mean() < 1  # the threshold matters here
        assert np.array_equal(
            np.array(Image.open(found.index_file)),
            np.where(expected.labels < 0, 255, expected.labels),
        )
        described = json.loads(found.json_file.read_text())
        assert [entry["name"] for entry in described["classes"]] == WORDS.split(", ")
        assert (
            [entry["coverage"] for entry in described["classes"]]
            == list(found.view.coverage)
            == list(expected.coverage.values())
        )
        assert found.view.unlabelled == described["unlabelled"] == (expected.labels < 0).mean()
        assert found.index_file.name == "my scene_index.png"
        assert Image.open(found.overlay_file).height == 160
        assert found.overlay.size == (144, 160)
        assert found.summary.startswith("144 x 160 pixels, 4 names, ")

    def test_calibration_and_threshold_matter(self, service: WebService, scene: Path) -> None:
        plain, calibrated = ask(service, scene), ask(service, scene, calibration=0.5)
        assert plain.view.unlabelled == 0
        # the umbrella was never seen, the others were
        assert calibrated.view.coverage[3] > plain.view.coverage[3]

    def test_marks_names_without_masks_in_training(self, service: WebService, scene: Path) -> None:
        assert ask(service, scene, "water, umbrella, Sand, cat").view.unseen == {
            "umbrella",
            "Sand",
            "cat",
        }

    def test_shows_large_pictures_small_and_saves_them_whole(self, tmp_path: Path) -> None:
        Image.new("RGB", (PREVIEW_SIDE + 300, 200), (30, 90, 200)).save(tmp_path / "wide.jpg")
        found = ask(
            WebService([], tmp_path, max_pixels=400_000), tmp_path / "wide.jpg", "water, snow"
        )
        assert (
            found.overlay.size
            == found.view.image.size
            == (PREVIEW_SIDE, round(200 * PREVIEW_SIDE / (PREVIEW_SIDE + 300)))
        )
        assert Image.open(found.index_file).size == (PREVIEW_SIDE + 300, 200)

    @pytest.mark.parametrize(
        ("size", "message"),
        [
            ((201, 200), "more than the limit of 40,000"),
            ((8, 2000), "too narrow"),
            ((7, 7), "smaller than one patch"),
        ],
    )
    def test_refuses_sizes(self, service: WebService, size: tuple[int, int], message: str) -> None:
        Image.new("L", size).save(service.folder / "size.png")
        with pytest.raises(CascadeClipError, match=message):
            ask(service, service.folder / "size.png")

    def test_class_names_are_bounded_without_their_synonyms(
        self, service: WebService, scene: Path
    ) -> None:
        names = ", ".join(f"n{index}" for index in range(MOST_NAMES + 1))
        with pytest.raises(SettingError, match="301 class names are given; 300 at most"):
            ask(service, scene, names)
        synonyms = "; ".join(f"n{index}" for index in range(MOST_NAMES))
        assert ask(service, scene, f"water = {synonyms}, snow").view.names == ("water", "snow")

    def test_names_what_is_missing(self, service: WebService, scene: Path) -> None:
        with pytest.raises(ValueError, match="no image yet"):
            ask(service, None)
        with pytest.raises(ValueError, match="no model 'x'; choose one of mini, mini-last"):
            service.segment(PageRequest("x", str(scene), WORDS))

    def test_threads_get_their_own_answers(self, service: WebService) -> None:
        files = make_examples(service.folder / "threads")
        small = []
        for file in files[:2]:
            small.append(file.with_suffix(".jpg"))
            Image.open(file).resize((96, 128)).save(small[-1])
        jobs = [
            (file, words)
            for file in small
            for words in (WORDS, "grass, gravel, ring", "car, key, sky, sea = water; ocean")
        ]
        alone = [ask(service, *job).view for job in jobs]
        fresh = WebService(
            [], service.folder, 40_000
        )  # its models are loaded in the middle of the run
        with ThreadPoolExecutor(6) as pool:
            together = list(pool.map(lambda job: ask(fresh, *job).view, jobs * 2))
        for one, other in zip(alone * 2, together, strict=True):
            assert one.names == other.names
            assert np.array_equal(one.maps, other.maps)
            assert one.coverage == other.coverage
        assert list(fresh._loaded) == ["mini"]


class TestModels:
    def test_names_are_short_and_differ(self, tiny_folder: Path, tmp_path: Path) -> None:
        other = tmp_path / tiny_folder.name
        other.symlink_to(tiny_folder)
        assert list(WebService([str(other), str(tiny_folder)], tmp_path, 1).sources) == [
            "model",
            "model (2)",
            "mini",
            "mini-last",
        ]
        assert list(WebService(["mini-last"], tmp_path, 1).sources) == ["mini-last", "mini"]

    def test_offers_clip_alone(self, scene: Path, tmp_path: Path) -> None:
        service = WebService(
            ["clip:mini", "clip:ViT-B-16-quickgelu//home/me/secret/ViT-B-16.pt"], tmp_path, 40_000
        )
        assert list(service.sources) == [
            "clip:mini",
            "clip:ViT-B-16-quickgelu/ViT-B-16.pt",
            "mini",
            "mini-last",
        ]
        assert service.first_classes == ", ".join(CLASS_NAMES)
        found = service.segment(PageRequest("clip:mini", str(scene), WORDS))
        expected = load_predictor("clip:mini", device="cpu").segment(scene, WORDS)
        assert np.array_equal(np.array(Image.open(found.index_file)), expected.labels)
        assert found.view.unseen == set()  # a mark on every name would say nothing
        assert "only drawn scenes" in found.summary

    def test_begins_with_the_names_of_the_first_model(
        self, tiny_folder: Path, tmp_path: Path
    ) -> None:
        assert WebService([str(tiny_folder)], tmp_path, 1).first_classes == "cat, dog, grass"
        assert WebService([], tmp_path, 1).first_classes == ", ".join(CLASS_NAMES)

    def test_refuses(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="no checkpoint at nowhere"):
            WebService(["nowhere"], tmp_path, 1)
        with pytest.raises(ValueError, match="does not say which weights"):
            WebService(["clip:ViT-B-16"], tmp_path, 1)
        with pytest.raises(ValueError, match="--max-pixels must lie in"):
            WebService([], tmp_path, 0)


def small_view(**changes: Any) -> ResultView:
    values: dict[str, Any] = {
        "names": ("a", "b", "c"), "colors": ((255, 0, 0), (0, 255, 0), (0, 0, 255)),
        "coverage": (0.25, 0.6, 0.0), "unlabelled": 0.15,
        "unseen": frozenset({"b"}), "maps": np.array([[[0.0]], [[1.0]], [[0.25]]], np.float16),
        "image": Image.new("RGB", (2, 2), (80, 80, 80)),
    }  # fmt: skip
    return ResultView(**{**values, **changes})


class TestHeatMap:
    @pytest.mark.parametrize(
        ("index", "color", "line"),
        [
            # inferno begins at (0, 0, 3): 80/4, 80/4, 80/4 + 9/4
            (0, (20, 20, 22), "Heat map of a: scores up to 0.00"),
            (1, (209, 211, 143), "Heat map of b: scores up to 1.00"),  # and ends at (252, 254, 164)
        ],
    )
    def test_colours(self, index: int, color: tuple[int, int, int], line: str) -> None:
        picture, text = heat_map(small_view(), index)
        assert text == line
        assert np.abs(np.array(picture).astype(int) - color).max() <= 1

    def test_the_brightest_is_the_highest_score_of_all(self) -> None:
        low = small_view(maps=np.array([[[0.2]], [[0.4]], [[-0.1]]], np.float32))
        assert heat_map(low, 1)[0].getpixel((0, 0)) == heat_map(small_view(), 1)[0].getpixel((0, 0))
        assert heat_map(low, 2)[0].getpixel((0, 0)) == heat_map(small_view(), 0)[0].getpixel((0, 0))
        assert heat_map(low, 0)[0].getpixel((0, 0)) not in (
            heat_map(low, 1)[0].getpixel((0, 0)),
            heat_map(low, 2)[0].getpixel((0, 0)),
        )

    def test_has_the_shape_of_the_picture(self) -> None:
        maps = np.zeros((3, 2, 4), np.float16)
        maps[2, :, 3] = 1
        picture, _ = heat_map(small_view(maps=maps, image=Image.new("RGB", (40, 20))), 2)
        assert picture.size == (40, 20)
        values = np.array(picture).sum(axis=2)
        assert values[10, 39] > 300 > 100 > values[10, 5]

    @pytest.mark.parametrize("index", [-1, 3])
    def test_refuses_what_is_not_there(self, index: int) -> None:
        with pytest.raises(ValueError, match="no such class"):
            heat_map(small_view(), index)


class TestLegend:
    def test_orders_by_coverage(self) -> None:
        text = legend(small_view(), 0)
        places = [
            text.index(part)
            for part in (
                "<b>b*</b><span>60.0 %",
                "<b>a</b><span>25.0 %",
                "unlabelled</b><span>15.0 %",
                "not found",
                "<b>c</b></",
            )
        ]
        assert places == sorted(places)
        assert text.count('aria-pressed="true"') == 1
        assert '<button type="button" class="entry" data-class="0" aria-pressed="true"' in text
        assert "no mask of it in training" in text

    def test_says_nothing_of_what_is_not_there(self) -> None:
        text = legend(
            small_view(coverage=(0.4, 0.5996, 0.0004), unlabelled=0.0, unseen=frozenset()), 0
        )
        assert "unlabelled" not in text
        assert "not found" not in text
        assert "*" not in text
        assert "&lt; 0.1 %" in text

    def test_names_stay_text(self) -> None:
        text = legend(
            small_view(names=("<img src=x onerror=alert(1)>", "${alert(2)}{{this}}`", "\"'&")), 0
        )
        assert "<img" not in text
        assert not set("${}`") & set(text)
        assert "&lt;img src=x" in text


# ---- the guard, before an application that says what came through ----


async def echo(scope: Any, receive: Any, send: Any) -> None:
    body, more = b"", scope["method"] == "POST"
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"through:" + body})


def request(
    guard: PageGuard,
    method: str,
    path: str,
    headers: dict[str, str] | None = None,
    body: bytes = b"",
    pause: float = 0.0,
) -> tuple[int, bytes]:
    """Send one request to an ASGI application and gather the answer."""
    given = {
        "host": "127.0.0.1:7860",
        **({"content-length": str(len(body))} if method == "POST" else {}),
        **(headers or {}),
    }
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": [(k.encode(), v.encode()) for k, v in given.items() if v != "-"],
    }
    parts = [body[: len(body) // 2], body[len(body) // 2 :]]
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.sleep(pause)
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(guard(scope, receive, send))
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


class TestGuard:
    @pytest.fixture
    def guard(self, tmp_path: Path) -> PageGuard:
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "a b.png").write_bytes(b"x")
        (tmp_path / "secret.txt").write_text("secret")
        (tmp_path / "in" / "link.txt").symlink_to(tmp_path / "secret.txt")
        return PageGuard(echo, tmp_path / "in", max_upload=50_000, hosts=LOCAL_HOSTS, patience=0.2)

    @pytest.mark.parametrize(
        "path",
        [
            "/",
            "/config",
            "/theme.css",
            "/assets/index.js",
            "/gradio_api/queue/data",
            "/gradio_api/heartbeat/abc",
        ],
    )
    def test_opens_what_the_page_needs(self, guard: PageGuard, path: str) -> None:
        assert request(guard, "GET", path) == (200, b"through:")

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("GET", "/gradio_api/proxy=http://example.org"),
            ("GET", "/gradio_api/openapi.json"),
            ("GET", "/monitoring"),
            ("GET", "/login"),
            ("GET", "/gradio_api/file/etc/passwd"),
            ("GET", "/nothing"),
            ("POST", "/gradio_api/call/answer"),
            ("POST", "/gradio_api/component_server"),
            ("POST", "/gradio_api/vibe-edit"),
            ("POST", "/"),
        ],
    )
    def test_closes_everything_else(self, guard: PageGuard, method: str, path: str) -> None:
        assert request(guard, method, path)[0] == 404

    def test_closes_other_methods(self, guard: PageGuard) -> None:
        assert request(guard, "PUT", "/")[0] == request(guard, "DELETE", "/")[0] == 405

    @pytest.mark.parametrize(
        ("host", "status"),
        [
            ("127.0.0.1:1", 200),
            ("localhost", 200),
            ("[::1]:7860", 200),
            ("evil.example", 400),
            ("127.0.0.1.evil.example", 400),
            ("[evil", 400),
            ("-", 400),
        ],
    )
    def test_knows_its_host(self, guard: PageGuard, host: str, status: int) -> None:
        assert request(guard, "GET", "/", {"host": host})[0] == status

    def test_any_host_where_none_is_named(self, tmp_path: Path) -> None:
        assert request(PageGuard(echo, tmp_path, 1), "GET", "/", {"host": "some.example"})[0] == 200

    @pytest.mark.parametrize(
        ("origin", "status"),
        [
            ("http://127.0.0.1:7860", 200),
            ("http://evil.example", 403),
            ("http://127.0.0.1:1", 403),
            ("http://[evil", 403),
            ("null", 403),
        ],
    )
    def test_refuses_other_sites(self, guard: PageGuard, origin: str, status: int) -> None:
        assert (
            request(guard, "POST", "/gradio_api/queue/join", {"origin": origin}, b"{}")[0] == status
        )

    def test_an_origin_needs_a_host(self, tmp_path: Path) -> None:
        headers = {"host": "-", "origin": "null"}
        assert request(PageGuard(echo, tmp_path, 1), "GET", "/", headers)[0] == 403

    def test_a_response_that_has_begun_gets_no_second_one(self, tmp_path: Path) -> None:
        sent: list[Any] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await receive()

        async def receive() -> Any:
            await asyncio.sleep(5)

        async def send(message: Any) -> None:
            sent.append(message["status"])

        guard = PageGuard(app, tmp_path, 1, patience=0.01)
        scope = {"type": "http", "method": "POST", "path": "/gradio_api/upload"}
        with pytest.raises(Refusal, match="too long to arrive"):
            asyncio.run(guard({**scope, "headers": [(b"content-length", b"1")]}, receive, send))
        assert sent == [200]

    def test_web_sockets_are_closed(self, guard: PageGuard) -> None:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run(guard({"type": "websocket"}, send, send))
        assert sent == [{"type": "websocket.close", "code": 1008}]

    @pytest.mark.parametrize(
        "name",
        [
            "/etc/passwd",
            "../secret.txt",
            "IN/../secret.txt",
            "IN/link.txt",
            "IN/..%2fsecret.txt",
            "a b.png",
            "http://x/y",
            "",
            "IN/\0",
        ],
    )
    def test_gives_no_file_from_outside(self, guard: PageGuard, name: str) -> None:
        name = name.replace("IN", str(guard.folder))
        assert request(guard, "GET", f"/gradio_api/file={name}") == (
            403,
            b"this file is not open\n",
        )
        body = json.dumps({"data": ["x", {"inner": [{"path": name, "meta": {}}]}]}).encode()
        assert request(guard, "POST", "/gradio_api/queue/join", None, body) == (
            403,
            b"this file is not open\n",
        )

    def test_gives_uploaded_files(self, guard: PageGuard) -> None:
        name = str(guard.folder / "a b.png")
        assert request(guard, "GET", f"/gradio_api/file={name}")[0] == 200
        body = json.dumps({"data": [{"path": name}, None, 1.5, {"path": None}]}).encode()
        assert request(guard, "POST", "/gradio_api/queue/join", None, body) == (
            200,
            b"through:" + body,
        )

    @pytest.mark.parametrize("body", [b"{", b"\xff", b"[" * 100_000])
    def test_reads_json_alone(self, guard: PageGuard, body: bytes) -> None:
        assert request(guard, "POST", "/gradio_api/queue/join", None, body) == (
            400,
            b"the request is not JSON\n",
        )

    @pytest.mark.parametrize(
        ("path", "length", "status"),
        [
            ("upload", "-", 411),
            ("upload", "-1", 411),
            ("upload", str(50_000 + FORM_OVERHEAD), 200),
            ("upload", str(50_001 + FORM_OVERHEAD), 413),
            ("queue/join", str(MOST_JSON), 200),
            ("queue/join", str(MOST_JSON + 1), 413),
        ],
    )
    def test_bounds_the_body(self, guard: PageGuard, path: str, length: str, status: int) -> None:
        assert (
            request(guard, "POST", f"/gradio_api/{path}", {"content-length": length}, b"{}")[0]
            == status
        )

    def test_refuses_bodies_in_chunks(self, guard: PageGuard) -> None:
        assert (
            request(
                guard,
                "POST",
                "/gradio_api/upload",
                {"transfer-encoding": "chunked", "content-length": "2"},
                b"{}",
            )[0]
            == 411
        )

    @pytest.mark.parametrize("path", ["upload", "queue/join"])
    def test_bounds_the_wait(self, guard: PageGuard, path: str) -> None:
        assert request(guard, "POST", f"/gradio_api/{path}", None, b"{}", pause=0.15)[0] == 408
        assert request(guard, "POST", f"/gradio_api/{path}", None, b"{}", pause=0.02)[0] == 200


# ---- the whole page over HTTP ----

pytest.importorskip("gradio", reason="needs the extra `web`")


@pytest.fixture(scope="module")
def client(service: WebService) -> Iterator[Any]:
    from starlette.testclient import TestClient

    from cascade_clip.serving.web.page import build_app

    before = os.environ.get("GRADIO_TEMP_DIR")
    with TestClient(build_app(service, ["testserver"]), raise_server_exceptions=False) as client:
        yield client
    os.environ.pop("GRADIO_TEMP_DIR")
    if before is not None:
        os.environ["GRADIO_TEMP_DIR"] = before


def upload(client: Any, name: str, content: bytes) -> Any:
    return client.post("/gradio_api/upload", files={"files": (name, content)})


def call(client: Any, function: int, data: list[Any], event: Any = None) -> list[Any]:
    """What the browser does: join the queue, read the stream to its end."""
    body = {
        "data": data,
        "fn_index": function,
        "session_hash": "visitor",
        "event_data": event,
        "trigger_id": None,
    }
    joined = client.post("/gradio_api/queue/join", json=body)
    assert joined.status_code == 200, joined.text
    messages = [
        json.loads(line[6:])
        for line in client.get("/gradio_api/queue/data?session_hash=visitor").text.splitlines()
        if line.startswith("data:")
    ]
    done = next(message for message in messages if message["msg"] == "process_completed")
    assert done["success"], done
    return list(done["output"]["data"])


def function(client: Any, elem_id: str, event: str) -> int:
    """Number of the function that an event of a component calls."""
    config = client.get("/config").json()
    component = next(
        entry["id"] for entry in config["components"] if entry["props"].get("elem_id") == elem_id
    )
    return int(
        next(
            entry["id"]
            for entry in config["dependencies"]
            if [component, event] in [list(target) for target in entry["targets"]]
        )
    )


def click_legend(client: Any, event: Any) -> list[Any]:
    return call(client, function(client, "legend", "click"), [None], event)


def question(client: Any, path: str | None, words: str = WORDS, model: str = "mini") -> list[Any]:
    image = {"path": path, "meta": {"_type": "gradio.FileData"}} if path else None
    return call(client, function(client, "segment", "click"), [model, image, words, 0.0, 0.0])


class TestPage:
    def test_uploads_and_answers(self, client: Any, scene: Path, predictor: Predictor) -> None:
        path = upload(client, "my scene.png", scene.read_bytes()).json()[0]
        status, _, _, entries, index, _, described, _ = question(client, path)
        assert "144 x 160 pixels, 4 names" in status
        assert "<b>water</b>" in entries
        expected = predictor.segment(scene, WORDS)
        file = client.get(f"/gradio_api/file={index['value']['path']}")
        assert file.status_code == 200
        (scene.parent / "got.png").write_bytes(file.content)
        assert np.array_equal(np.array(Image.open(scene.parent / "got.png")), expected.labels)
        shares = json.loads(client.get(f"/gradio_api/file={described['value']['path']}").text)[
            "classes"
        ]
        assert [entry["coverage"] for entry in shares] == list(expected.coverage.values())
        _, heat, entries = click_legend(client, {"index": 3})
        assert heat["label"].startswith("Heat map of umbrella: scores up to 0.")
        assert entries.count('aria-pressed="true"') == 1
        assert 'data-class="3" aria-pressed="true"' in entries

    @pytest.mark.parametrize(
        ("content", "words", "message"),
        [
            (b"junk", WORDS, "not an image"),
            (None, WORDS, "no image yet"),
            (b"", " , ", "no class names given"),
            (b"junk", "a, a", "twice"),
        ],
    )
    def test_mistakes_are_one_line(
        self, client: Any, content: bytes | None, words: str, message: str
    ) -> None:
        path = None if content is None else upload(client, "x.png", content).json()[0]
        status, overlay, _, entries, index, *_ = question(client, path, words)
        assert 'class="wrong"' in status
        assert message in status
        assert "\n" not in status
        assert overlay is None
        assert entries == ""
        assert index["value"] is None

    @pytest.mark.parametrize("event", [{"index": 99}, {"index": "0"}, {"index": True}, {}, None])
    def test_odd_clicks_are_one_line(self, client: Any, event: Any) -> None:
        assert 'class="wrong"' in click_legend(client, event)[0]

    def test_gives_away_no_other_file(self, client: Any) -> None:
        for name in (
            "/etc/passwd",
            f"{os.getcwd()}/pyproject.toml",
            "/proc/self/environ",
            "../../../../etc/passwd",
            "..%2f..%2fetc/passwd",
            __file__,
        ):
            assert client.get(f"/gradio_api/file={name}").status_code in (403, 404)
            body = {
                "data": ["mini", {"path": name, "meta": {"_type": "gradio.FileData"}}, WORDS, 0, 0],
                "fn_index": 0,
                "session_hash": "x",
            }
            assert client.post("/gradio_api/queue/join", json=body).status_code == 403

    def test_takes_no_file_beyond_the_limit(self, client: Any) -> None:
        assert upload(client, "big.png", bytes(MAX_UPLOAD)).status_code == 200
        assert upload(client, "big.png", bytes(MAX_UPLOAD + 1)).status_code == 413
        assert upload(client, "big.png", bytes(2 * MAX_UPLOAD)).status_code == 413

    def test_stores_uploads_inside_the_folder(self, client: Any, service: WebService) -> None:
        for name in ("../../evil.png", "/tmp/evil.png", "..", ".hidden"):
            answer = upload(client, name, b"x")
            assert answer.status_code >= 400 or Path(answer.json()[0]).resolve().is_relative_to(
                service.folder
            )
        assert not (service.folder.parent / "evil.png").exists()

    def test_needs_nothing_from_the_net(self, client: Any) -> None:
        from html.parser import HTMLParser

        fetched: list[str] = []

        class Links(HTMLParser):
            def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
                if tag in ("script", "link", "img", "iframe"):
                    fetched.extend(value or "" for name, value in attrs if name in ("src", "href"))

        answer = client.get("/")
        Links().feed(answer.text)
        assert fetched
        assert not [link for link in fetched if "//" in link and "//testserver" not in link]
        assert "fonts.g" not in client.get("/theme.css").text
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert client.get("/config").json()["analytics_enabled"] is False

    def test_calls_nobody(self, client: Any, scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        called: list[Any] = []
        monkeypatch.setattr(socket.socket, "connect", lambda self, address: called.append(address))
        question(client, upload(client, "s.png", scene.read_bytes()).json()[0])
        assert called == []

    def test_old_uploads_and_results_go_and_examples_stay(
        self, client: Any, service: WebService, scene: Path
    ) -> None:
        from gradio.route_utils import delete_files_created_by_app

        path = upload(client, "s.png", scene.read_bytes()).json()[0]
        files = [Path(entry["value"]["path"]) for entry in question(client, path)[4:7]]
        made = [Path(path), *files]
        assert all(file.is_file() for file in made)
        page = next(
            route.app for route in client.app.app.routes if hasattr(route, "app")
        ).get_blocks()
        assert page.delete_cache[1] <= 3600
        delete_files_created_by_app(page, 0)  # what runs now and then, with the age 0
        assert not any(file.exists() for file in made)
        assert len(list((service.folder / "examples").iterdir())) == 4

    def test_a_full_queue_says_so(
        self, client: Any, service: WebService, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from cascade_clip.serving.web.page import AT_ONCE, QUEUE_SIZE

        free = threading.Event()
        monkeypatch.setattr(service, "segment", lambda *_: free.wait(30) and None)
        body = {
            "data": ["mini", None, WORDS, 0, 0],
            "fn_index": function(client, "segment", "click"),
            "session_hash": "crowd",
        }
        try:
            states = [
                client.post("/gradio_api/queue/join", json=body).status_code
                for _ in range(QUEUE_SIZE + 10)
            ]
        finally:
            free.set()
        assert set(states) == {200, 503}
        assert QUEUE_SIZE <= states.count(200) <= QUEUE_SIZE + AT_ONCE + 1


class TestCommand:
    def test_says_what_to_install(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setitem(sys.modules, "gradio", None)
        for name in ("cascade_clip.serving.web", "cascade_clip.serving.web.page"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        assert main(["web"]) == 2
        assert (
            capsys.readouterr().err.splitlines()[-1]
            == "cascade-clip: error: the web page needs gradio: pip install 'cascade-clip[web]'"
        )

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--max-upload", "0"], "--max-upload must lie in 1..1024, got 0"),
            (["--port", "70000"], "--port must lie in 0..65535, got 70000"),
            (["--max-pixels", "0"], "--max-pixels must lie in 1..100000000, got 0"),
            (["--model", "nowhere"], "no checkpoint at nowhere"),
            (["--host", "not-an-address.invalid"], "cannot listen on not-an-address.invalid"),
        ],
    )
    def test_refuses(
        self, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["web", "--port", "0", *words]) == 2
        assert message in capsys.readouterr().err

    def test_a_port_in_use(self, capsys: pytest.CaptureFixture[str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            assert main(["web", "--port", str(taken.getsockname()[1])]) == 2
        assert "choose others with --host and --port" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("host", "warned", "shown"),
        [("127.0.0.1", False, "127.0.0.1"), ("0.0.0.0", True, "0.0.0.0")],
    )
    def test_listens_here_alone_by_default(
        self,
        host: str,
        warned: bool,
        shown: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        tiny_folder: Path,
    ) -> None:
        seen: dict[str, Any] = {}

        def serve(service: WebService, sock: socket.socket, hosts: Any) -> None:
            seen.update(
                models=list(service.sources),
                name=sock.getsockname()[0],
                limit=service.max_upload,
                hosts=hosts,
                pixels=service.max_pixels,
                folder=service.folder,
            )

        monkeypatch.setattr("cascade_clip.serving.web.serve", serve)
        words = ["--port", "0", "--model", "mini-last", "--model", str(tiny_folder)] + (
            ["--host", host] if warned else []
        )
        assert main(["web", *words]) == 0
        captured = capsys.readouterr()
        assert ("without a password" in captured.err) is warned
        assert f"open http://{shown}:" in captured.out
        assert seen["models"] == ["mini-last", "model", "mini"]
        assert (seen["name"], seen["limit"], seen["pixels"]) == (host, 20 * 2**20, 16_000_000)
        assert seen["hosts"] == (ANY_HOST if warned else LOCAL_HOSTS)
        assert not seen["folder"].exists()  # uploads do not outlive the server

    @pytest.mark.slow
    @pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_stops_cleanly(self, number: int, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "cascade_clip", "web", "--port", "0"]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)}
        ) as server:
            assert server.stdout is not None
            address = server.stdout.readline().split()[1]
            # waits until the page is up
            with urllib.request.urlopen(f"{address}/config", timeout=60) as answer:
                assert answer.status == 200
            assert list(tmp_path.glob("cascade-clip-web-*/examples/scene1.png"))
            server.send_signal(number)
            assert server.wait(30) == 0
            assert server.stdout.read() == "stopped\n"
        assert list(tmp_path.glob("cascade-clip-web-*")) == []
