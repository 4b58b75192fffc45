"""The page that describes the service: plain HTML from its OpenAPI document, with a form to try it;
nothing is fetched from elsewhere."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0"
    " 1rem;color:#1f2933}table{border-collapse:collapse;width:100%}td,th{border:1px solid"
    " #cbd2d9;padding:.3rem"
    " .6rem;text-align:left;vertical-align:top}code,pre{background:#f1f3f5;padding:.1rem"
    " .3rem}pre{padding:.6rem;overflow-x:auto}label{display:block;margin:.4rem 0}"
)
_FORMATS = "".join(f"<option>{name}</option>" for name in ("overlay", "png", "json", "coco"))
_FORM = (
    '<form action="/segment" method="post" enctype="multipart/form-data"><label>Picture <input'
    ' type="file" name="image" required></label><label>Class names <input name="classes" size="50"'
    ' required placeholder="cat, grass, sofa = couch; settee"></label><label>Background words'
    ' <input name="background" size="40"></label><label>Threshold <input name="threshold"'
    ' type="number" min="0" max="1" step="any"></label><label>Calibration <input'
    ' name="calibration" type="number" min="0" max="1" step="any"></label><label>Format <select'
    f' name="format">{_FORMATS}</select></label><button>Segment</button></form>'
)
_CURL = (
    'curl -F image=@photo.jpg -F "classes=cat, grass" http://127.0.0.1:8000/segment -o labels.png'
)


def describe_service(document: Mapping[str, Any]) -> str:
    """HTML of an OpenAPI document: operations, fields of forms, and what the statuses mean."""
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport"'
        f' content="width=device-width">'
        f"<title>{html.escape(document['info']['title'])}</title><style>{_STYLE}</style>",
        f"<h1>{html.escape(document['info']['title'])}</h1>",
        f"<p>{html.escape(document['info'].get('description', ''))}"
        ' The machine-readable form is <a href="/openapi.json">/openapi.json</a>.</p>',
        f"<pre>{html.escape(_CURL)}</pre><h2>Try it</h2>{_FORM}",
    ]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts.append(
                f"<h2><code>{method.upper()} {html.escape(path)}</code></h2>"
                f"<p>{html.escape(operation.get('summary', ''))}</p>"
            )
            parts.append(_fields(document, operation))
            answers = {
                status: answer.get("description", "")
                for status, answer in operation["responses"].items()
            }
            parts.append(
                _table(
                    ("status", "meaning"),
                    [(status, text) for status, text in sorted(answers.items())],
                )
            )
    return "\n".join(parts) + "\n</html>\n"


def _fields(document: Mapping[str, Any], operation: Mapping[str, Any]) -> str:
    content = operation.get("requestBody", {}).get("content", {})
    if not content:
        return ""
    schema = next(iter(content.values()))["schema"]
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    required = schema.get("required", [])
    rows = [
        (
            name,
            "required" if name in required else f"optional, {value.get('default') or 'none'}",
            value.get("description", ""),
        )
        for name, value in schema["properties"].items()
    ]
    return _table(("field", "", "meaning"), rows)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [
        "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"
        for tag, row in [("th", head), *(("td", row) for row in rows)]
    ]
    return f"<table>{''.join(lines)}</table>"
