"""The web page in a real Chromium: upload, type, run, click, download; nothing leaves this machine;
it looks right on laptop and phone."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cascade_clip.inference.loading import load_predictor
from cascade_clip.sandbox.scenes import SceneConfig, make_scene
from cascade_clip.serving.web.service import with_known_colors
from cascade_clip.vocabulary import parse_classes

pytestmark = pytest.mark.slow
pytest.importorskip("gradio", reason="needs the extra `web`")
playwright = pytest.importorskip(
    "playwright.sync_api", reason="needs playwright: pip install playwright"
)

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
SCREENS = {"laptop": {"width": 1366, "height": 768}, "phone": {"width": 390, "height": 844}}
WORDS = "water, snow, fabric = cloth, umbrella"
WAIT = 60_000  # milliseconds


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    command = [sys.executable, "-m", "cascade_clip", "web", "--port", "0", "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert line.startswith("open http://127.0.0.1:"), line
        yield line.split()[1]
        server.terminate()
        assert server.wait(60) == 0


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--headless"]
        )
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The open page with its first result; fails if anything was fetched elsewhere or a script
    failed."""
    with browser.new_context(viewport=SCREENS["laptop"], accept_downloads=True) as context:
        yield open_page(context, address, urls := [], errors := [])
        assert len(urls) > 10
        assert [url for url in urls if not url.startswith((address + "/", "data:", "blob:"))] == []
        assert errors == []


def open_page(context: Any, address: str, urls: list[str], errors: list[str]) -> Any:
    page = context.new_page()
    page.set_default_timeout(WAIT)
    page.on("request", lambda request: urls.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on(
        "console", lambda message: errors.append(message.text) if message.type == "error" else None
    )
    page.goto(address)
    page.wait_for_selector("#legend button[aria-pressed=true]")
    return page


def upload(page: Any, path: Path) -> None:
    page.locator("#image").get_by_label("Remove Image").click()
    page.locator("#image input[type=file]").set_input_files(path)
    page.wait_for_selector("#image img")
    page.wait_for_function("document.querySelector('#status').innerText.includes('Press Segment')")


def segment(page: Any, words: str, expected: str = " names, ") -> str:
    page.locator("#names textarea").fill(words)
    page.locator("#segment").click()
    page.wait_for_function(
        "text => document.querySelector('#status').innerText.includes(text)", arg=expected
    )
    return str(page.locator("#status").inner_text())


def shown(page: Any, box: str) -> np.ndarray:
    """The picture that a box shows, (H, W, 3)."""
    answer = page.request.get(page.locator(f"#{box} img").get_attribute("src"))
    return np.array(Image.open(io.BytesIO(answer.body())).convert("RGB"))


def download(page: Any, button: str, folder: Path) -> Path:
    with page.expect_download() as waiting:
        page.locator("#files").get_by_text(button).click()
    target = folder / str(waiting.value.suggested_filename)
    waiting.value.save_as(target)
    return target


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    path = tmp_path / "scene.png"
    Image.fromarray(make_scene(2, 74, SceneConfig(size=200)).image[:, :180]).save(path)
    return path


def test_upload_type_run_click_download(page: Any, scene: Path, tmp_path: Path) -> None:
    upload(page, scene)
    assert "180 x 200 pixels, 4 names" in segment(page, WORDS)
    predictor = load_predictor("mini", device="cpu")
    expected = predictor.segment(
        scene, with_known_colors(parse_classes(WORDS), predictor.vocabulary)
    )
    assert np.array_equal(shown(page, "overlay"), np.array(expected.overlay(scene, legend=False)))
    rows = page.locator("#legend button").all_inner_texts()
    shares = sorted(expected.coverage.items(), key=lambda row: -row[1])
    assert [row.split("\n")[0].rstrip("*") for row in rows] == [name for name, _ in shares]
    assert [row.split("\n")[1] for row in rows] == [f"{100 * share:.1f} %" for _, share in shares]

    before = shown(page, "heat")
    page.locator("#legend button", has_text="umbrella").click()
    page.wait_for_function(
        "document.querySelector('#heat').innerText.includes('Heat map of umbrella')"
    )
    page.wait_for_selector("#legend button[aria-pressed=true]:has-text('umbrella')")
    heat = shown(page, "heat")
    assert heat.shape == before.shape
    assert np.abs(heat.astype(int) - before).mean() > 10
    inside = expected.mask("umbrella")
    assert heat[inside].mean() > heat[~inside].mean() + 30

    index = download(page, "Index PNG", tmp_path)
    assert index.name == "scene_index.png"
    assert np.array_equal(np.array(Image.open(index)), expected.labels)
    described = json.loads(download(page, "JSON", tmp_path).read_text())
    files = ["scene_overlay.png", "scene_index.png"]
    assert described == {**expected.to_json(), "files": files}
    overlay = download(page, "Overlay PNG", tmp_path)
    assert np.array_equal(np.array(Image.open(overlay)), np.array(expected.overlay(scene)))


def test_sliders_models_and_examples(page: Any, scene: Path) -> None:
    upload(page, scene)
    segment(page, WORDS)
    number = page.locator("#threshold input[type=number]")
    number.fill("0.5")
    number.press("Enter")
    page.locator("#names textarea").click()
    page.wait_for_selector("#legend >> text=unlabelled")
    page.locator("#model input").click()
    page.get_by_role("option", name="mini-last").click()
    page.wait_for_function("document.querySelector('#status').innerText.includes('with mini-last')")
    page.locator("#scenes button").nth(2).click()
    page.wait_for_function("document.querySelector('#status').innerText.includes('384 x 384')")


def test_mistakes_are_one_line_in_the_page(page: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    upload(page, tmp_path / "bad.png")
    status = segment(page, WORDS, "not an image")
    assert "\n" not in status.strip()
    assert page.locator("#legend button").count() == 0
    assert page.locator("#overlay img").count() == 0
    page.locator("#scenes button").first.click()
    page.wait_for_selector("#legend button")
    segment(page, "  ", "no class names given")


def test_names_stay_text(page: Any) -> None:
    names = (
        "<script>hacked()</script>",
        "${hacked()}",
        "{{constructor}}",
        "`${hacked()}`",
        "sky & sea",
    )
    segment(page, ", ".join(names), " 5 names, ")
    page.wait_for_function("document.querySelectorAll('#legend button').length === 5")
    assert {
        text.split("\n")[0].rstrip("*") for text in page.locator("#legend button").all_inner_texts()
    } == set(names)
    # a call of hacked() would fail and be found at the end
    assert page.locator("#legend script").count() == 0


@pytest.mark.parametrize("screen", SCREENS)
def test_fits_the_screen(browser: Any, address: str, screen: str, tmp_path: Path) -> None:
    """Takes the pictures of docs/web.md where CASCADE_CLIP_SCREENSHOTS names a folder."""
    phone = screen == "phone"
    with browser.new_context(viewport=SCREENS[screen], is_mobile=phone, has_touch=phone) as context:
        page = open_page(context, address, [], [])
        page.locator("#legend button", has_text="umbrella").click()
        page.wait_for_function(
            "document.querySelector('#heat').innerText.includes('Heat map of umbrella')"
        )
        page.wait_for_timeout(1500)  # until the picture is decoded and the spinners are gone
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        if not phone:
            assert page.locator("#files").bounding_box()["y"] < 768  # everything in one view
            assert page.locator("#segment").bounding_box()["y"] < 768
        picture = Image.open(io.BytesIO(page.screenshot(full_page=phone))).convert("RGB")
        folder = Path(os.environ.get("CASCADE_CLIP_SCREENSHOTS") or tmp_path)
        picture.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=2).save(
            folder / f"web-{screen}.png", optimize=True
        )
        assert (folder / f"web-{screen}.png").stat().st_size < 200_000
