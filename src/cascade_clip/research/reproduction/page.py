"""The reproduction as a self-contained HTML page, the same as Markdown, and all values as JSON."""

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cascade_clip.evaluation import embed, render
from cascade_clip.files import write_whole
from cascade_clip.research.reproduction.charts import describe_picture
from cascade_clip.research.reproduction.entries import EntryRow
from cascade_clip.research.reproduction.overview import (
    closing,
    entry_name,
    how_to_read,
    overview,
    summary_of_runs,
    title,
)
from cascade_clip.research.reproduction.runs import Reproduction, Result
from cascade_clip.research.reproduction.sections import Section
from cascade_clip.research.reproduction.settings import ReproductionSettings

PAGE_FILE, MARKDOWN_FILE, RESULTS_FILE = "index.html", "reproduction.md", "results.json"
_TEMPLATES = "research/reproduction/templates"


def write_page(reproduction: Reproduction, sections: Sequence[Section]) -> list[Path]:
    """Write index.html, reproduction.md and results.json; the plots are there already."""
    out, settings = reproduction.out, reproduction.settings
    values = to_json(out, settings, sections)
    text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return [
        write_whole(out / PAGE_FILE, build_page(settings, sections)),
        write_whole(out / MARKDOWN_FILE, build_markdown(out, settings, sections)),
        write_whole(out / RESULTS_FILE, text),
    ]


def build_page(settings: ReproductionSettings, sections: Sequence[Section]) -> str:
    """Build the page as one HTML file, plots included."""
    lead, *paragraphs = how_to_read(settings, sections)
    values = _values(settings, sections, lambda path: embed(path.read_bytes(), "png"))
    values |= {"lead": lead, "paragraphs": paragraphs, "cards": summary_of_runs(sections)}
    links = {entry_name(section): f"#{section.entry.key}" for section in sections}
    return render(f"{_TEMPLATES}/page.html", **values, links=links)


def build_markdown(out: Path, settings: ReproductionSettings, sections: Sequence[Section]) -> str:
    """Build the Markdown file; plots are linked from the folder `out`."""
    values = _values(settings, sections, lambda path: _relative(path, out))
    paragraphs = how_to_read(settings, sections)
    return render(f"{_TEMPLATES}/page.md", **values, paragraphs=paragraphs)


def _values(
    settings: ReproductionSettings, sections: Sequence[Section], source: Callable[[Path], str]
) -> dict[str, Any]:
    """What HTML and Markdown show; of every plot its description, a short one and its source."""
    shown = []
    for section in sections:
        texts = [(path, describe_picture(path)) for path in section.pictures]
        pictures = [(text, text.split(". ")[0].rstrip("."), source(path)) for path, text in texts]
        words = {"name": entry_name(section), "closing": closing(section)}
        shown.append({"shown": section, "pictures": pictures, **words})
    return {"title": title(settings), "overview": overview(sections), "sections": shown}


def to_json(
    out: Path, settings: ReproductionSettings, sections: Sequence[Section]
) -> dict[str, Any]:
    """Write plain values: ours in 0..1, published ones in percent, null where not computable."""
    entries = {
        section.entry.key: {
            "title": section.entry.title,
            "note": section.entry.note,
            "command": section.command,
            "rows": [_row(row, section.results.get(row.name, ())) for row in section.entry.rows],
            "verdicts": [verdict.to_json() for verdict in section.verdicts],
            "words": list(section.wording),
            "pictures": [_relative(picture, out) for picture in section.pictures],
        }
        for section in sections
    }
    return {"world": settings.name, "entries": entries}


def _row(row: EntryRow, results: Sequence[Result]) -> dict[str, Any]:
    runs: list[dict[str, Any]] = []
    for run in results:
        known = {name: one if math.isfinite(one) else None for name, one in run.scores.items()}
        runs.append({"seed": run.seed, "seconds": run.seconds, "scores": known})
    published = {name: list(found) for name, found in row.published.items()}
    return {"name": row.name, "published": published, "settings": row.settings, "runs": runs}


def _relative(path: Path, out: Path) -> str:
    return Path(os.path.relpath(path, out)).as_posix()
