"""The reproduction as files: an HTML page that needs no script and no connection, the same as
Markdown, and all values as JSON."""

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cascade_clip.evaluation import embed, render
from cascade_clip.files import write_whole
from cascade_clip.research.reproduction.charts import describe_picture
from cascade_clip.research.reproduction.overview import (
    closing,
    entry_name,
    how_to_read,
    overview,
    summary_of_runs,
    title,
)
from cascade_clip.research.reproduction.runs import Reproduction
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
    return render(
        f"{_TEMPLATES}/page.html",
        **values,
        lead=lead,
        cards=summary_of_runs(sections),
        paragraphs=paragraphs,
        links={entry_name(section): f"#{section.entry.key}" for section in sections},
    )


def build_markdown(out: Path, settings: ReproductionSettings, sections: Sequence[Section]) -> str:
    """Build the Markdown file; plots are linked from the folder `out`."""
    values = _values(settings, sections, lambda path: _relative(path, out))
    paragraphs = how_to_read(settings, sections)
    return render(f"{_TEMPLATES}/page.md", **values, paragraphs=paragraphs)


def _values(
    settings: ReproductionSettings, sections: Sequence[Section], source: Callable[[Path], str]
) -> dict[str, Any]:
    """What HTML and Markdown show; of every plot its description, a short one and its source."""
    return {
        "title": title(settings),
        "overview": overview(sections),
        "sections": [
            {
                "shown": section,
                "name": entry_name(section),
                "closing": closing(section),
                "pictures": [
                    (text, text.split(". ")[0].rstrip("."), source(path))
                    for path, text in zip(
                        section.pictures, map(describe_picture, section.pictures), strict=True
                    )
                ],
            }
            for section in sections
        ],
    }


def to_json(
    out: Path, settings: ReproductionSettings, sections: Sequence[Section]
) -> dict[str, Any]:
    """Write everything as plain values; ours in 0..1, published ones in percent, null where one
    cannot be computed."""
    return {
        "world": settings.name,
        "entries": {
            section.entry.key: {
                "title": section.entry.title,
                "note": section.entry.note,
                "command": section.command,
                "rows": [
                    {
                        "name": row.name,
                        "published": {name: list(found) for name, found in row.published.items()},
                        "settings": row.settings,
                        "runs": [
                            _run(run.seed, run.seconds, run.scores)
                            for run in section.results.get(row.name, ())
                        ],
                    }
                    for row in section.entry.rows
                ],
                "verdicts": [verdict.to_json() for verdict in section.verdicts],
                "words": list(section.wording),
                "pictures": [_relative(picture, out) for picture in section.pictures],
            }
            for section in sections
        },
    }


def _run(seed: int, seconds: float, scores: dict[str, float]) -> dict[str, Any]:
    finite = {name: value if math.isfinite(value) else None for name, value in scores.items()}
    return {"seed": seed, "seconds": seconds, "scores": finite}


def _relative(path: Path, out: Path) -> str:
    return Path(os.path.relpath(path, out)).as_posix()
