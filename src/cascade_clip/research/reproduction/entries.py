"""What can be reproduced: an entry per table, figure and open question, from YAML in `entries/`."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from cascade_clip.config import read_yaml
from cascade_clip.errors import SettingError

FOLDER = Path(__file__).parent / "entries"
Kind = Literal["table", "figure", "question", "count"]
Figures = tuple[float | None, float | None, float | None]
"""S, U and hIoU in percent; None where none was printed."""


@dataclass(frozen=True)
class EntryRow:
    """One method of an entry."""

    name: str  # unique in the entry; in tables the name that docs/methods.md uses
    published: dict[str, Figures]  # dataset to the values that the paper prints for it
    settings: dict[str, Any]
    """Changes to the dataset's base settings; with only `inference`, the training is shared."""
    settings_on: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Dataset to the settings that replace `settings` there, taken literally."""
    against: str = ""  # row that this one is compared with; empty: the entry's reference
    choices: tuple[float, ...] = ()
    """Calibrations of which one is chosen without labels of unseen classes, by a second model from
    whose training some of the seen classes are hidden too. Empty: the one in the settings."""


@dataclass(frozen=True)
class Entry:
    """A table, a figure or a question."""

    key: str  # how the command calls it: `table1`, `figure4`, `question3`
    title: str  # what it is about
    rows: tuple[EntryRow, ...]
    """Its methods, in the paper's order; empty where nothing has to be trained."""
    reference: str
    """Row that the others are compared with; may be empty where every row has its `against`."""
    published_on: str  # dataset whose published values are shown beside those of the sandbox
    seeds: tuple[int, ...]  # seeds on the sandbox unless others are asked for
    kind: Kind
    """`table`: scores; `figure`: plots; `question`: scores nobody published; `count`: no scores."""
    note: str = ""  # our reading of it

    def row(self, name: str) -> EntryRow:
        """Return the row of a name.

        Raises:
            KeyError: there is none.
        """
        return {row.name: row for row in self.rows}[name]

    def reference_of(self, row: EntryRow) -> EntryRow | None:
        """Return the row that `row` is compared with; None where it stands for itself."""
        name = row.against or self.reference
        return None if name in ("", row.name) else self.row(name)


@cache
def list_entries() -> tuple[Entry, ...]:
    """List every entry: tables, then figures, then questions, each by its number."""

    def place(entry: Entry) -> tuple[int, int]:
        word = entry.key.rstrip("0123456789")
        return ("table", "figure", "question").index(word), int(entry.key[len(word) :])

    listed = [entry for path in FOLDER.glob("*.yaml") for entry in read_yaml(path).items()]
    return tuple(sorted((build_entry(*entry) for entry in listed), key=place))


def find_entries(listed: str) -> tuple[Entry, ...]:
    """Find the entries in a list such as `table1,figure4`; `all` puts those with most seeds first.

    Raises:
        ValueError: a name that does not exist, or none.
    """
    known = {entry.key: entry for entry in list_entries()}
    names = [one.casefold().replace(" ", "") for one in listed.split(",") if one.strip()]
    if names == ["all"]:
        entries = known.values()
        return tuple(sorted(entries, key=lambda one: (one.kind == "question", -len(one.seeds))))
    choices = f"all, {', '.join(known)}"
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}? There are" if close else "choose from"
            raise SettingError(f"nothing to reproduce is called {name!r}; {hint} {choices}")
    if not names:
        raise SettingError(f"say what to reproduce: {choices}")
    return tuple(known[name] for name in dict.fromkeys(names))


def build_entry(key: str, values: Mapping[str, Any]) -> Entry:
    """Build an entry from its YAML mapping.

    Raises:
        ValueError: an unknown or missing key, a row twice, a reference that is not a row.
    """
    given = {"published_on": "coco-stuff", "seeds": [0], "reference": "", "rows": [], **values}
    rows = tuple(_build_row(key, row) for row in given.pop("rows"))
    try:
        entry = Entry(key=key, rows=rows, seeds=tuple(given.pop("seeds")), **given)
    except TypeError as error:
        raise SettingError(f"entry {key}: {error}") from error
    names = [row.name for row in rows]
    if len(set(names)) != len(names):
        raise SettingError(f"entry {key} names a row twice: {names}")
    wanted = {entry.reference, *(row.against for row in rows)} - {"", *names}
    if wanted:
        raise SettingError(f"entry {key} compares with rows that do not exist: {sorted(wanted)}")
    if entry.kind not in get_args(Kind):
        kinds = list(get_args(Kind))
        raise SettingError(f"entry {key}: kind must be one of {kinds}, got {entry.kind!r}")
    return entry


def _build_row(key: str, values: Mapping[str, Any]) -> EntryRow:
    given = {"settings": {}, **values, "choices": tuple(values.get("choices", ()))}
    published: dict[str, Any] = {}
    for dataset, figures in given.pop("published", {}).items():
        if len(figures) != 3:
            raise SettingError(f"entry {key}: published are S, U and hIoU, got {figures}")
        published[dataset] = tuple(figures)
    try:
        return EntryRow(published=published, **given)
    except TypeError as error:
        raise SettingError(f"entry {key}, row {values.get('name')!r}: {error}") from error
