"""The web page: layout and events in Gradio behind the guard; `WebService` computes.

Nothing of the page is fetched from other hosts: fonts are the system's, analytics are off.
"""

import functools
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cascade_clip.errors import CascadeClipError, MissingPackageError, SettingError
from cascade_clip.serving.guard import ANY_HOST
from cascade_clip.serving.pages import escape, render
from cascade_clip.serving.uploads import LONGEST_TEXT
from cascade_clip.serving.web.drawing import ResultView, heat_map, legend, make_examples
from cascade_clip.serving.web.guard import PageGuard
from cascade_clip.serving.web.service import PageRequest, WebService

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before the first import of gradio
try:
    import gradio as gr
    import uvicorn
    from fastapi import FastAPI
except ImportError as error:
    message = "the web page needs gradio: pip install 'cascade-clip[web]'"
    raise MissingPackageError(message) from error

QUEUE_SIZE = 32
"""Requests that may wait; more are told that the page is busy."""
AT_ONCE = 1
"""Requests at the same time: one keeps all cores busy, and memory stays that of one image."""
SESSIONS = 64
"""Visitors whose last result is kept in memory."""
KEPT_SECONDS = 3600
"""Age at which uploads and results are deleted."""
CONNECTIONS = 256
"""Most open connections."""

_INTRO = "# Cascade-CLIP\nAn image and your own class names: every pixel gets one of them."
_READY = "Press Segment."
_HEAT = "Heat map of a class: click on the legend"
_STYLE, _SCRIPT = (
    (Path(__file__).parent / name).read_text(encoding="utf-8") for name in ("page.css", "page.js")
)


def build_app(service: WebService, hosts: Sequence[str] = ANY_HOST) -> PageGuard:
    """Build the page as an ASGI application.

    Args:
        service: what computes the results. Its folder becomes Gradio's upload folder for this
            process.
        hosts: names by which the server may be called; `*`: any.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(service.folder)
    theme = gr.themes.Default(
        primary_hue="teal", neutral_hue="slate", spacing_size="sm", radius_size="sm",
        text_size="sm", font_mono=("ui-monospace", "Consolas", "monospace"),
        font=("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"),
    )  # fmt: skip
    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None), build_page(service), "/", allowed_paths=[],
        max_file_size=service.max_upload, ssr_mode=False, pwa=False, mcp_server=False,
        show_error=False, enable_monitoring=False, footer_links=[], run_history=False, css=_STYLE,
        theme=theme,
    )  # fmt: skip
    return PageGuard(app, service.folder, service.max_upload, hosts)


def serve(service: WebService, sock: socket.socket, hosts: Sequence[str]) -> None:
    """Serve the page on an open socket until interrupted."""
    config = uvicorn.Config(
        build_app(service, hosts), log_level="warning", limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=2, ws="none",
    )  # fmt: skip
    uvicorn.Server(config).run(sockets=[sock])


def build_page(service: WebService) -> gr.Blocks:
    """Build layout and events."""
    examples = make_examples(service.folder / "examples")
    with gr.Blocks(
        title="Cascade-CLIP", analytics_enabled=False, delete_cache=(600, KEPT_SECONDS),
        fill_width=True,
    ) as page:  # fmt: skip
        view = gr.State(None, time_to_live=KEPT_SECONDS)
        gr.Markdown(_INTRO, elem_id="intro")
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=320):
                image, scenes = _image_input(examples)
                classes, calibration, threshold, model, button = _settings(service)
            with gr.Column(scale=8, min_width=320):
                results = _results(view)
        status, overlay, heat, entries, *_ = results

        # Gradio finds the progress by its default
        def segment(*values: Any, progress: Any = gr.Progress()) -> list[Any]:  # noqa: B008
            return respond(service, PageRequest(*values), progress)

        settings: dict[str, Any] = {
            "inputs": [model, image, classes, calibration, threshold], "outputs": results,
            "show_progress_on": [overlay], "trigger_mode": "always_last",
            "concurrency_id": "model", "concurrency_limit": AT_ONCE, "api_visibility": "private",
        }  # fmt: skip
        sliders = [calibration.release, threshold.release]
        triggers = [page.load, button.click, classes.submit, *sliders, model.input]
        gr.on(triggers, segment, **settings)
        private: dict[str, Any] = {"api_visibility": "private"}
        chosen = scenes.click(lambda number: str(examples[number]), scenes, image, **private)
        chosen.then(segment, **settings)
        changed = [image.upload, image.clear]
        gr.on(changed, lambda: blank(_note(_READY)), None, results, **private)
        entries.click(select, view, [status, heat, entries], show_progress="hidden", **private)
    page.state_session_capacity = SESSIONS
    page.queue(max_size=QUEUE_SIZE)
    blocks: gr.Blocks = page  # the type is lost in the context manager
    return blocks


def respond(service: WebService, request: PageRequest, progress: Any = None) -> list[Any]:
    """Return the values of all results for one request; a visitor's mistake becomes one line."""
    try:
        found = service.segment(request, progress)
        view = found.view
        heat, caption = heat_map(view, view.largest)
    except (CascadeClipError, OSError) as error:
        return blank(_note(str(error), wrong=True))
    paths = (found.index_file, found.overlay_file, found.json_file)
    files = [gr.update(value=str(path), interactive=True) for path in paths]
    heat_update = gr.update(value=heat, label=caption)
    entries = legend(view, view.largest)
    return [_note(found.summary), found.overlay, heat_update, entries, *files, view]


def select(view: ResultView | None, event: gr.EventData) -> list[Any]:
    """Return status, heat map and legend after a click on an entry of the legend."""
    try:
        if view is None:
            raise SettingError("this result is not kept any more; press Segment again")
        index = event._data.get("index") if isinstance(event._data, dict) else None
        if type(index) is not int:
            raise SettingError("choose an entry of the legend")
        heat, caption = heat_map(view, index)
    except CascadeClipError as error:
        return [_note(str(error), wrong=True), gr.skip(), gr.skip()]
    return [gr.skip(), gr.update(value=heat, label=caption), legend(view, index)]


def blank(status: str) -> list[Any]:
    """Return the values of no result, so that no old one is shown beside a new image."""
    files = [gr.update(value=None, interactive=False)] * 3
    return [status, None, gr.update(value=None, label=_HEAT), "", *files, None]


def _image_input(examples: list[Path]) -> tuple[gr.Image, gr.Dataset]:
    image = gr.Image(
        str(examples[0]), label="Image", type="filepath", image_mode=None, height=196,
        sources=["upload", "clipboard"], buttons=[], elem_id="image",
    )  # fmt: skip
    # Gradio's own preprocessing would fail on broken files before our reader can say so (and a
    # subclass writes a .pyi beside this file). The guard has made sure that the path is an upload.
    read: Any = lambda payload: None if payload is None else str(payload.path)  # noqa: E731
    image.preprocess = read  # type: ignore[method-assign]
    scenes = gr.Dataset(
        components=[gr.Image(render=False, type="filepath")],
        samples=[[str(path)] for path in examples], type="index", layout="gallery",
        show_label=False, elem_id="scenes",
    )  # fmt: skip
    return image, scenes


def _settings(service: WebService) -> list[Any]:
    """Class names, calibration, threshold, model, and the button."""
    classes = gr.Textbox(
        service.first_classes, label="Class names (synonyms: sofa = couch; settee)", lines=4,
        max_lines=5, max_length=LONGEST_TEXT, placeholder="cat, grass, sofa = couch; settee",
        elem_id="names",
    )  # fmt: skip
    button = gr.Button("Segment", variant="primary", elem_id="segment")
    with gr.Row(elem_id="sliders"):
        calibration, threshold = (
            gr.Slider(0, most, 0, step=0.01, label=name.title(), min_width=140, elem_id=name)
            for name, most in (("calibration", 0.5), ("threshold", 1))
        )
    gr.HTML(render("hint.html"), elem_id="hint", apply_default_css=False)
    models = list(service.sources)
    model = gr.Dropdown(models, value=models[0], label="Model", elem_id="model")
    return [classes, calibration, threshold, model, button]


def _results(view: gr.State) -> list[Any]:
    """What the visitor gets, in the order of `respond`."""
    status = gr.HTML(_note(_READY), elem_id="status", apply_default_css=False)
    with gr.Row():
        overlay, heat = (
            gr.Image(
                label=label, interactive=False, buttons=["fullscreen"], format="png", height=380,
                min_width=300, elem_id=name,
            )
            for name, label in (("overlay", "Result"), ("heat", _HEAT))
        )  # fmt: skip
    entries = gr.HTML("", js_on_load=_SCRIPT, elem_id="legend", apply_default_css=False)
    with gr.Row(elem_id="files"):
        button = functools.partial(gr.DownloadButton, interactive=False, size="sm", min_width=80)
        labels = ("Index PNG", "Overlay PNG", "JSON")
        files = [button(f"\u2193 {label}", elem_id=f"file{i}") for i, label in enumerate(labels)]
    return [status, overlay, heat, entries, *files, view]


def _note(text: str, *, wrong: bool = False) -> str:
    """Return the status line: one line, whatever the text."""
    kind = "wrong" if wrong else "note"
    return f'<p role="status" class="{kind}">{escape(" ".join(text.split()))}</p>'
