"""HTML from the templates of this package."""

import html
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def escape(value: Any) -> Markup:
    """Return text that stays text in HTML and in Gradio's templates ($, braces and backticks)."""
    if isinstance(value, Markup):
        return value
    codes = {ord(letter): f"&#{ord(letter)};" for letter in "${}`"}
    return Markup(html.escape(str(value)).translate(codes))


_TEMPLATES = Environment(
    loader=PackageLoader("cascade_clip.serving"), autoescape=True, finalize=escape,
    undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
)  # fmt: skip


def render(template: str, **values: Any) -> str:
    """Return a template filled with values, each of which is escaped."""
    return _TEMPLATES.get_template(template).render(values)
