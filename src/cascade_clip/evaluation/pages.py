"""HTML pages from templates: one frame with cards, tables and images for every page we write.

A page is one file that needs no script and no connection, so images are embedded in it. The frame
and its parts are in `templates/`; other rooms keep their own templates in a folder of that name.
"""

import base64
import io
import re
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

import matplotlib
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from PIL import Image

from cascade_clip.results import SUMMARY_METRICS, format_duration, format_percent


def render(template: str, **values: Any) -> str:
    """Fill in a template; in HTML text is escaped.

    Args:
        template: file in this package, such as `evaluation/templates/report.html`.
        values: what it shows.
    """
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("cascade_clip", ""),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=format_percent, duration=format_duration, code=mark_code)
    return environment


def mark_code(text: str) -> Markup:
    """Escape a text in which `backticks` mean code."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text))))


def summary_cards(summary: Mapping[str, float | None]) -> list[tuple[str, str, str]]:
    """Value, name and note of every summary metric, for the cards of a page."""
    return [
        (format_percent(summary.get(metric.key)), *metric.label.partition(": ")[::2])
        for metric in SUMMARY_METRICS
    ]


def embed_figure(figure: Figure, kind: Literal["png", "svg"] = "png", dpi: int = 110) -> str:
    """Draw a figure as the `src` of an image."""
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else None
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # text stays text
        figure.savefig(buffer, dpi=dpi, format=kind, metadata=metadata)
    return embed(buffer.getvalue(), "svg+xml" if kind == "svg" else kind)


def embed_image(image: Image.Image) -> str:
    """Encode an image as JPEG, as the `src` of an image."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=85)
    return embed(buffer.getvalue(), "jpeg")


def embed(data: bytes, kind: str) -> str:
    """Write the bytes of an image file of a kind such as `png` as the `src` of an image."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
