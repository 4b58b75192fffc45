"""What every page is made with: escaping, code in text and embedded images."""

from __future__ import annotations

import base64
import io

import pytest
from jinja2 import UndefinedError
from PIL import Image

from cascade_clip.evaluation.pages import embed_image, mark_code, render, summary_cards

FRAME = "evaluation/templates/base.html"


def test_text_is_escaped_and_names_may_be_anything() -> None:
    page = render(FRAME, title="<b>&'\"", lead="{{ 1 }}", cards=[("<1>", "a&b", "")])
    assert "<title>&lt;b&gt;&amp;&#39;&#34;</title>" in page
    assert "{{ 1 }}" in page  # values are no templates
    assert '<div class="card"><b>&lt;1&gt;</b><span>a&amp;b</span></div>' in page


def test_a_missing_value_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="title"):
        render(FRAME)


def test_backticks_are_code() -> None:
    assert mark_code("run `a <b>` & `c`") == "run <code>a &lt;b&gt;</code> &amp; <code>c</code>"


def test_images_are_in_the_page() -> None:
    kind, _, data = embed_image(Image.new("RGBA", (5, 3), "red")).partition(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (5, 3)


def test_cards_of_a_summary() -> None:
    cards = summary_cards({"seen_miou": 0.5, "hiou": None})
    assert cards[0] == ("50.00", "S", "mIoU of seen classes")
    assert cards[2] == ("-", "hIoU", "")
    assert len(cards) == 5
