"""The web page: layout and events in Gradio, mounted behind the guard; what is computed comes from
`web_answers`.

Nothing of the page is fetched from the net: fonts are the system's, analytics are off.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cascade_clip.errors import CascadeClipError, MissingPackageError, SettingError
from cascade_clip.serving.web.guard import LOOPBACK, Guard
from cascade_clip.serving.web.studio import (
    LONGEST_TEXT,
    Question,
    Shown,
    Studio,
    escape,
    heat_map,
    legend,
    make_examples,
)

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before the first import of gradio
try:
    import gradio as gr
    import uvicorn
    from fastapi import FastAPI
except ImportError as error:
    raise MissingPackageError(
        "the web page needs gradio: pip install 'cascade-clip[web]'"
    ) from error

QUEUE_SIZE = 32
"""Questions that may wait; more are told that the page is busy."""
AT_ONCE = 1
"""Questions that run at the same time: one keeps all cores busy, and memory stays that of one
picture."""
SESSIONS = 64
"""Visitors whose last answer is kept in memory."""
KEPT_SECONDS = 3600
"""Age at which uploads and results are deleted."""
CONNECTIONS = 256
"""Open connections at most."""

_INTRO = "# Cascade-CLIP\nA picture and your own words: every pixel gets one of them."
_HINT = (
    "Calibration is taken off the scores of names seen in training. Pixels whose best score lies"
    " below the threshold get no name. Click on an entry of the legend for its heat map; the"
    " brightest is the highest score of any class."
)
_READY = "Press Segment."
_HEAT = "Heat map of a class: click on the legend"
_CLICK = """element.addEventListener('click', event => {
  const entry = event.target.closest('button[data-class]');
  if (entry) trigger('click', {index: Number(entry.dataset.class)});
});"""
_STYLE = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")


def build_app(studio: Studio, max_upload: int, hosts: Sequence[str] = ()) -> Guard:
    """The page as an ASGI application.

    Args:
        studio: what answers. Its folder becomes Gradio's upload folder for this process.
        max_upload: bytes of an uploaded picture.
        hosts: names by which the server may be called; empty: any.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(studio.folder)
    page = build_page(studio)
    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None), page, "/", allowed_paths=[], max_file_size=max_upload,
        ssr_mode=False, pwa=False, mcp_server=False,
        show_error=False, enable_monitoring=False, footer_links=[], run_history=False, css=_STYLE,
        theme=_theme(),
    )  # fmt: skip
    return Guard(app, studio.folder, max_upload, hosts)


def serve(studio: Studio, sock: socket.socket, max_upload: int, host: str) -> None:
    """Answer on an open socket until interrupted; away from the loopback address any host name is
    accepted."""
    app = build_app(studio, max_upload, LOOPBACK if host in LOOPBACK else ())
    config = uvicorn.Config(
        app,
        log_level="warning",
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=2,
        ws="none",
    )
    uvicorn.Server(config).run(sockets=[sock])


def build_page(studio: Studio) -> gr.Blocks:
    """Layout and events."""
    examples = make_examples(studio.folder / "examples")
    models = list(studio.sources)
    with gr.Blocks(
        title="Cascade-CLIP",
        analytics_enabled=False,
        delete_cache=(600, KEPT_SECONDS),
        fill_width=True,
    ) as page:
        shown = gr.State(None, time_to_live=KEPT_SECONDS)
        gr.Markdown(_INTRO, elem_id="intro")
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=320):
                image, scenes, asked = _questions(examples, models, studio.words)
            with gr.Column(scale=8, min_width=320):
                answers = _answers(shown)
        words, calibration, threshold, model, button = asked
        status, overlay, heat, entries, *_ = answers

        def ask(*values: Any, progress: Any = gr.Progress()) -> list[Any]:  # noqa: B008 (Gradio finds it by its default)
            return answer(studio, Question(*values), progress)

        settings: dict[str, Any] = {
            "inputs": [model, image, words, calibration, threshold], "outputs": answers,
            "show_progress_on": [overlay],
            "trigger_mode": "always_last", "concurrency_id": "model",
            "concurrency_limit": AT_ONCE, "api_visibility": "private",
        }  # fmt: skip
        triggers = [
            page.load,
            button.click,
            words.submit,
            calibration.release,
            threshold.release,
            model.input,
        ]
        gr.on(triggers, ask, **settings)
        scenes.click(
            lambda number: str(examples[number]), scenes, image, api_visibility="private"
        ).then(ask, **settings)
        gr.on(
            [image.upload, image.clear],
            lambda: blank(_note(_READY)),
            None,
            answers,
            api_visibility="private",
        )
        entries.click(
            select, shown, [status, heat, entries], api_visibility="private", show_progress="hidden"
        )
    page.state_session_capacity = SESSIONS
    page.queue(max_size=QUEUE_SIZE)
    blocks: gr.Blocks = page  # the type is lost in the context manager
    return blocks


def answer(studio: Studio, question: Question, progress: Any = None) -> list[Any]:
    """Values of all results for one question; what the visitor did wrong becomes one line."""
    try:
        found = studio.answer(question, progress)
        shown = found.shown
        heat, caption = heat_map(shown, shown.largest)
    except (CascadeClipError, OSError) as error:
        return blank(_note(str(error), wrong=True))
    files = [
        gr.update(value=str(path), interactive=True)
        for path in (found.index_file, found.overlay_file, found.json_file)
    ]
    return [
        _note(found.summary),
        found.overlay,
        gr.update(value=heat, label=caption),
        legend(shown, shown.largest),
        *files,
        shown,
    ]


def select(shown: Shown | None, event: gr.EventData) -> list[Any]:
    """Status, heat map and legend after a click on an entry of the legend."""
    try:
        if shown is None:
            raise SettingError("this result is not kept any more; press Segment again")
        index = event._data.get("index") if isinstance(event._data, dict) else None
        if type(index) is not int:
            raise SettingError("choose an entry of the legend")
        heat, caption = heat_map(shown, index)
    except CascadeClipError as error:
        return [_note(str(error), wrong=True), gr.skip(), gr.skip()]
    return [gr.skip(), gr.update(value=heat, label=caption), legend(shown, index)]


def blank(status: str) -> list[Any]:
    """Values of all results where there is none, so that no old result stands beside a new
    question."""
    files = [gr.update(value=None, interactive=False)] * 3
    return [status, None, gr.update(value=None, label=_HEAT), "", *files, None]


def _questions(
    examples: list[Path], models: list[str], words: str
) -> tuple[gr.Image, gr.Dataset, list[Any]]:
    """Left side: what a visitor gives."""
    image = gr.Image(
        str(examples[0]), label="Picture", type="filepath", image_mode=None, sources=["upload",
        "clipboard"], height=196,
        buttons=[], elem_id="picture",
    )  # fmt: skip
    # Gradio's own preprocessing would fail on broken files before our reader can say so (and a
    # subclass writes a .pyi beside this file).
    image.preprocess = _path_of  # type: ignore[method-assign]
    sample = gr.Image(render=False, type="filepath")
    scenes = gr.Dataset(
        components=[sample],
        samples=[[str(path)] for path in examples],
        type="index",
        layout="gallery",
        show_label=False,
        elem_id="scenes",
    )
    names = gr.Textbox(
        words, label="Class names (synonyms: sofa = couch; settee)", lines=4, max_lines=5,
        max_length=LONGEST_TEXT, placeholder="cat, grass, sofa = couch; settee", elem_id="names",
    )  # fmt: skip
    button = gr.Button("Segment", variant="primary", elem_id="segment")
    with gr.Row(elem_id="sliders"):
        calibration = gr.Slider(
            0, 0.5, 0, step=0.01, label="Calibration", min_width=140, elem_id="calibration"
        )
        threshold = gr.Slider(
            0, 1, 0, step=0.01, label="Threshold", min_width=140, elem_id="threshold"
        )
    gr.HTML(f'<p class="note">{_HINT}</p>', elem_id="hint", apply_default_css=False)
    model = gr.Dropdown(models, value=models[0], label="Model", elem_id="model")
    return image, scenes, [names, calibration, threshold, model, button]


def _answers(shown: gr.State) -> list[Any]:
    """Right side: what the visitor gets, in the order of `answer`."""
    status = gr.HTML(_note(_READY), elem_id="status", apply_default_css=False)
    with gr.Row():
        overlay = gr.Image(
            label="Result",
            interactive=False,
            buttons=["fullscreen"],
            format="png",
            height=380,
            min_width=300,
            elem_id="overlay",
        )
        heat = gr.Image(
            label=_HEAT,
            interactive=False,
            buttons=["fullscreen"],
            format="png",
            height=380,
            min_width=300,
            elem_id="heat",
        )
    entries = gr.HTML("", js_on_load=_CLICK, elem_id="legend", apply_default_css=False)
    with gr.Row(elem_id="files"):
        labels = ("\u2193 Index PNG", "\u2193 Overlay PNG", "\u2193 JSON")
        files = [
            gr.DownloadButton(
                label, interactive=False, size="sm", min_width=80, elem_id=f"file{number}"
            )
            for number, label in enumerate(labels)
        ]
    return [status, overlay, heat, entries, *files, shown]


def _note(text: str, *, wrong: bool = False) -> str:
    """The status line: one line, whatever the text."""
    return (
        '<p role="status"'
        f' class="{"wrong" if wrong else "note"}">{escape(" ".join(text.split()))}</p>'
    )


def _path_of(payload: Any) -> str | None:
    """Where an upload lies; the guard has made sure that it is one."""
    return None if payload is None else str(payload.path)


def _theme() -> gr.themes.Base:
    """Fonts of the system only."""
    sans, mono = (
        ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"),
        (
            "ui-monospace",
            "Consolas",
            "monospace",
        ),
    )
    return gr.themes.Default(
        primary_hue="teal",
        neutral_hue="slate",
        font=sans,
        font_mono=mono,
        spacing_size="sm",
        radius_size="sm",
        text_size="sm",
    )
