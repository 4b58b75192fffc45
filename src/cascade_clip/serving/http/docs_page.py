"""The page that describes the service, made from its OpenAPI document, with a form to try it;
nothing is fetched from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cascade_clip.serving.pages import render


def describe_service(document: Mapping[str, Any]) -> str:
    """Return the HTML of an OpenAPI document: operations, form fields, and what the statuses
    mean."""
    operations = [
        {
            "method": method.upper(),
            "path": path,
            "summary": operation.get("summary", ""),
            "fields": _fields(document, operation),
            "statuses": [
                (status, response.get("description", ""))
                for status, response in sorted(operation["responses"].items())
            ],
        }
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    return render("service.html", operations=operations, **document["info"])


def _fields(
    document: Mapping[str, Any], operation: Mapping[str, Any]
) -> list[tuple[str, str, str]]:
    """Name, default and meaning of the form fields of an operation."""
    content = operation.get("requestBody", {}).get("content", {})
    if not content:
        return []
    schema = next(iter(content.values()))["schema"]
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    required = schema.get("required", [])
    return [
        (
            name,
            "required" if name in required else f"optional, {value.get('default') or 'none'}",
            value.get("description", ""),
        )
        for name, value in schema["properties"].items()
    ]
