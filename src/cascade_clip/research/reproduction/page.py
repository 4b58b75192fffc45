"""The reproduction as files: a page that needs no script and no connection, the same as Markdown,
and all figures as JSON."""

from __future__ import annotations

import base64
import html
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cascade_clip.evaluation import PAGE
from cascade_clip.files import write_whole
from cascade_clip.research.reproduction.charts import describe_picture
from cascade_clip.research.reproduction.markdown import (
    build_markdown,
    closing,
    different_tests,
    entry_name,
    first_sentence,
    how_to_read,
    overview,
    title,
)
from cascade_clip.research.reproduction.sections import Section
from cascade_clip.research.reproduction.settings import World
from cascade_clip.research.reproduction.tables import Table

PAGE_FILE, MARKDOWN_FILE, RESULTS_FILE = "index.html", "reproduction.md", "results.json"
_STYLE = """<style>
:root { color-scheme: light dark; --paper: #fff; --rise: #14713f; --fall: #a92f27; --code: #f1f4f7 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ee; --soft: #a5afbc; --line: #39414c; --paper: #14181d; --rise: #62cf92;
  --fall: #ff8f85; --code: #222933 }
}
body { background: var(--paper); max-width: 1180px }
a { color: inherit }
section { scroll-margin-top: 1rem }
.numbers { font-size: .92rem }
.numbers caption { text-align: left; color: var(--soft); padding-bottom: .3rem; position: sticky;
left: 0 }
.numbers thead th { vertical-align: bottom; white-space: normal; min-width: 4.2rem }
.numbers thead th:first-child, .numbers tbody th { position: sticky; left: 0; background:
var(--paper); text-align: left;
  white-space: normal; min-width: 7rem; max-width: 14rem }
.numbers tbody th { color: var(--ink); font-weight: 500 }
.numbers td { padding-left: .8rem }
.wrap td, .wrap thead th { white-space: normal; text-align: left }
.up { color: var(--rise) }
.down { color: var(--fall) }
code { background: var(--code); border-radius: 4px; padding: .1rem .3rem; font-size: .9em;
overflow-wrap: anywhere }
figure img { background: #fff; border-radius: 8px; padding: 6px; min-width: min(100%, 30rem) }
figure .scroll img { min-width: 34rem }
.scroll:focus-visible { outline: 2px solid var(--seen) }
</style>"""


def write_page(out: Path, world: World, sections: Sequence[Section]) -> list[Path]:
    """Write index.html, reproduction.md and results.json into `out`; the pictures lie there
    already."""
    return [
        write_whole(out / PAGE_FILE, build_page(world, sections)),
        write_whole(out / MARKDOWN_FILE, build_markdown(out, world, sections)),
        write_whole(
            out / RESULTS_FILE,
            json.dumps(to_json(out, world, sections), indent=1, ensure_ascii=False, allow_nan=False)
            + "\n",
        ),
    ]


def build_page(world: World, sections: Sequence[Section]) -> str:
    """The page as one HTML file, pictures included."""
    lead, *others = how_to_read(world, sections)
    paragraphs = "".join(f"<p>{html.escape(text)}</p>" for text in others)
    body = "\n".join([_STYLE, paragraphs, _overview(sections), *map(_section, sections)])
    return PAGE.substitute(
        title=html.escape(title(world)), lead=html.escape(lead), cards=_cards(sections), body=body
    )


def to_json(out: Path, world: World, sections: Sequence[Section]) -> dict[str, Any]:
    """Everything as plain values; figures in 0..1, published ones in percent, null where one cannot
    be computed."""
    return {
        "world": world.name,
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
                "words": list(section.words),
                "pictures": [
                    Path(os.path.relpath(picture, out)).as_posix() for picture in section.pictures
                ],
            }
            for section in sections
        },
    }


def _run(seed: int, seconds: float, scores: dict[str, float]) -> dict[str, Any]:
    return {
        "seed": seed,
        "seconds": seconds,
        "scores": {name: value if math.isfinite(value) else None for name, value in scores.items()},
    }


def _cards(sections: Sequence[Section]) -> str:
    """How much was run and tested."""
    runs = {
        run.checkpoint
        for section in sections
        for found in section.results.values()
        for run in found
    }
    tests = different_tests(sections)
    done = sum(not section.is_empty for section in sections)
    cards = [
        (f"{done} of {len(sections)}", "entries", "with results"),
        (str(len(runs)), "trained models", "shared by entries"),
    ]
    for one_seed, compared, note in (
        (False, "rows", "several seeds"),
        (True, "trained models", "one seed"),
    ):
        own = [verdict.standing == "certain" for verdict in tests if verdict.one_seed is one_seed]
        if own:
            cards.append(
                (f"{sum(own)} of {len(own)}", f"differences between {compared}", f"certain, {note}")
            )
    return "".join(
        f'<div class="card"><b>{value}</b><span>{name}</span><small>{note}</small></div>'
        for value, name, note in cards
    )


def _overview(sections: Sequence[Section]) -> str:
    """The table of contents, with what each entry found."""
    links = {entry_name(section): f"#{section.entry.key}" for section in sections}
    return (
        f"<section><h2>Overview</h2>\n{_table(overview(sections), links, 'numbers wrap')}</section>"
    )


def _section(section: Section) -> str:
    note = f'<p class="key">{html.escape(section.entry.note)}</p>' if section.entry.note else ""
    tables = "".join(_table(table) for table in section.tables)
    words = (
        f"<ul>{''.join(f'<li>{html.escape(line)}</li>' for line in section.words)}</ul>"
        if section.words
        else ""
    )
    pictures = "".join(_picture(picture) for picture in section.pictures)
    head = f"<h2>{html.escape(entry_name(section))}</h2>"
    return (
        f'<section id="{section.entry.key}">{head}\n{note}{tables}{words}{pictures}<p'
        f' class="key">{_code(closing(section))}</p></section>'
    )


def _table(table: Table, links: dict[str, str] | None = None, kind: str = "numbers") -> str:
    """A table with row and column headers that scrolls sideways on narrow screens."""
    heads = "".join(f'<th scope="col">{html.escape(head)}</th>' for head in table.heads)
    rows = []
    for first, *others in table.rows:
        name = html.escape(first.text)
        if links and first.text in links:
            name = f'<a href="{links[first.text]}">{name}</a>'
        cells = "".join(
            (
                f'<td class="{cell.tone}"><b>{html.escape(cell.text)}</b></td>'
                if cell.tone
                else f"<td>{html.escape(cell.text)}</td>"
            )
            for cell in others
        )
        rows.append(f'<tr><th scope="row">{name}</th>{cells}</tr>')
    caption = html.escape(table.title)
    inner = (
        f'<table class="{kind}"><caption>{caption}</caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}">{inner}</div>'


def _picture(path: Path) -> str:
    words = describe_picture(path)
    data = base64.b64encode(path.read_bytes()).decode()
    image = f'<img alt="{html.escape(first_sentence(words))}" src="data:image/png;base64,{data}">'
    region = f'<div class="scroll" tabindex="0" role="region" aria-label="picture">{image}</div>'
    return f"<figure>{region}<figcaption>{html.escape(words)}</figcaption></figure>"


def _code(text: str) -> str:
    """Text in which `backticks` mean code, as HTML."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(text))
