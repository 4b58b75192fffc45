"""What a data check finds: things that are wrong, and things that are worth a note."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from cascade_clip.data.check.facts import Count, PairFacts, Tally
from cascade_clip.data.folder import LISTED, FoundFiles, listed
from cascade_clip.vocabulary import IGNORED, Vocabulary

MOSTLY = 0.6
"""Share of an image from which one class fills most of it."""
MANY_COLORS = 50
"""Unknown colours from which on smoothing is the likely cause."""
BACKGROUNDS = frozenset(
    "background bg other others rest ground sky road grass water sea ocean wall floor building"
    " vegetation forest trees tree soil land field sand snow desert table tissue clutter".split()
)
"""Names of classes that may well fill most of most images."""


@dataclass(frozen=True)
class Finding:
    """One thing that a check found."""

    level: Literal["wrong", "note"]
    kind: str
    """A short fixed name, for programs."""
    text: str
    """What it is and what to do, in one line."""


@dataclass(frozen=True)
class Evidence:
    """All that findings rest on."""

    files: FoundFiles
    facts: Sequence[PairFacts]
    tally: Tally
    vocabulary: Vocabulary

    @property
    def by_color(self) -> bool:
        """Whether any mask was read by colour."""
        return any(item.colored for item in self.facts)

    @property
    def any_class(self) -> bool:
        """Whether any pixel has a class."""
        return any(row.pixels for row in self.tally.classes)


def list_findings(evidence: Evidence) -> list[Finding]:
    """Everything that is wrong, then everything worth a note."""
    rules: tuple[Callable[[Evidence], Iterator[Finding]], ...] = (
        _files, _damage, _sizes, _colors, _unknown, _nothing, _shift, _zero, _cut, _ignored,
        _absent,
    )  # fmt: skip
    found = [finding for rule in rules for finding in rule(evidence)]
    return sorted(found, key=lambda finding: finding.level == "note")


def _files(evidence: Evidence) -> Iterator[Finding]:
    files = evidence.files
    if files.clashes:
        pairs = [f"{first.name} and {second.name}" for first, second in files.clashes]
        names = f"{_several(pairs, 'pair')}: {_some(pairs)}"
        text = f"files of one name, {names}; remove or rename one of each"
        yield Finding("wrong", "one-name", text)
    if files.images_alone:
        yield Finding("wrong", "images-without-mask", files.describe_images_alone())
    if files.masks_alone:
        masks = _several(files.masks_alone, "mask")
        text = f"{masks} without an image, not used: {listed(files.masks_alone)}"
        yield Finding("note", "masks-without-image", text)


def _damage(evidence: Evidence) -> Iterator[Finding]:
    images = [(item.image, item.image_problem) for item in evidence.facts if item.image_problem]
    masks = [(item.mask, item.mask_problem) for item in evidence.facts if item.mask_problem]
    for kind, broken in (("image", images), ("mask", masks)):
        if broken:
            others = [path for path, _ in broken[1:]]
            also = f" (also {listed(others)})" if others else ""
            text = f"{_several(broken, kind)} cannot be used: {broken[0][1]}{also}"
            yield Finding("wrong", f"unreadable-{kind}s", text)


def _sizes(evidence: Evidence) -> Iterator[Finding]:
    wrong = [item for item in evidence.facts if item.differs]
    if not wrong:
        return
    examples = [
        f"{item.mask.name} {_size(item.mask_size)}, image {_size(item.image_size)}"
        for item in wrong
    ]
    masks = _several(wrong, "mask")
    text = f"{masks} of another size (width x height) than the image: {_some(examples)}"
    turned = [item for item in wrong if item.image_size == (item.mask_size or ())[::-1]]
    if turned:
        text += f"; turned by 90 degrees: {len(turned)}; masks must be turned as EXIF turns images"
    yield Finding("wrong", "sizes", text)


def _colors(evidence: Evidence) -> Iterator[Finding]:
    """Colour pictures and a class list without colours."""
    colored = [item.mask for item in evidence.facts if item.colored]
    if colored and evidence.vocabulary.mask_colors is None:
        rows = [row for row in evidence.tally.unknown if row.text.startswith("#")]
        text = (
            f"masks that hold colours: {len(colored)} of {len(evidence.facts)}, but the class list"
            " gives none; write it as one `R G B NAME` or `#rrggbb NAME` a line; the colours"
            f" found: {_counts(rows, evidence.tally)}"
        )
        yield Finding("wrong", "colour-masks", text)


def _unknown(evidence: Evidence) -> Iterator[Finding]:
    rows = evidence.tally.unknown
    if evidence.vocabulary.mask_colors is None:
        rows = tuple(row for row in rows if not row.text.startswith("#"))
    if not rows:
        return
    kind = "colour" if rows[0].text.startswith("#") else "value"
    text = f"{_several(rows, f'mask {kind}')} without a class: {_counts(rows, evidence.tally)}"
    if len(rows) > MANY_COLORS and kind == "colour":
        hint = "so many come from smoothing or lossy compression: export masks without either"
    elif any(row.text == "255" for row in rows):
        now = evidence.vocabulary.ignore
        hint = f"255 mostly marks pixels to ignore: set --ignore 255 (now {now})"
    else:
        form = "`R G B NAME`" if kind == "colour" else "`VALUE NAME`"
        hint = f"write the class list with one {form} a line, `ignore` for what to leave out"
    yield Finding("wrong", f"unknown-{kind}s", f"{text}; {hint}")


def _nothing(evidence: Evidence) -> Iterator[Finding]:
    """Masks in which every pixel is ignored."""
    if evidence.tally.masks and not evidence.any_class and not evidence.tally.unknown:
        text = "no pixel has a class; does the class list give the mask values that count?"
        yield Finding("wrong", "no-class", text)


def _shift(evidence: Evidence) -> Iterator[Finding]:
    """Masks that count from 1 and a list that counts from 0."""
    values, names = evidence.tally.values, evidence.vocabulary.names
    counts_from_0 = evidence.vocabulary.raw_values is None and not evidence.by_color
    if not counts_from_0 or values.get(0) or not values or len(names) == evidence.vocabulary.ignore:
        return
    if values.get(len(names)):
        yield Finding(
            "wrong",
            "shifted",
            f"labels look shifted by one: mask values go up to {len(names)} and 0 never occurs, but"
            f" the list counts from 0 ({names[0]}); write it as `VALUE NAME` lines from `1"
            f" {names[0]}` on",
        )
    elif len(names) > 2 and all(values.get(value) for value in range(1, len(names))):
        text = f"{names[0]!r} (mask value 0) never occurs, others do; are labels shifted by one?"
        yield Finding("note", "zero-absent", text)


def _zero(evidence: Evidence) -> Iterator[Finding]:
    """A class at value 0 that fills the images as only a background does."""
    vocabulary = evidence.vocabulary
    if evidence.by_color or len(vocabulary) < 2:
        return
    label = dict(vocabulary.value_labels).get(0, IGNORED)
    words = set(vocabulary.names[label].casefold().replace("-", " ").split())
    if label == IGNORED or words & BACKGROUNDS:
        return
    read = [item for item in evidence.facts if item.values]
    full = [item for item in read if item.share(label) > MOSTLY]
    if 2 * len(full) > len(read):
        level: Literal["wrong", "note"] = "note" if evidence.tally.ignored.pixels else "wrong"
        yield Finding(
            level,
            "zero-is-background",
            f"mask value 0 means {vocabulary.names[label]!r} and fills over {MOSTLY:.0%} of"
            f" {len(full)} of {len(read)} masks; if 0 is the background, write `0 null` (to ignore"
            " it) or `0 background` in a list of `VALUE NAME` lines",
        )


def _cut(evidence: Evidence) -> Iterator[Finding]:
    """Class values from 255 on: cut to 8 bits, or 255 that others ignore."""
    vocabulary, values = evidence.vocabulary, evidence.tally.values
    pairs = vocabulary.value_labels
    named = {value: vocabulary.names[label] for value, label in pairs if label != IGNORED}
    if not values or not named:
        return
    if max(named) > 255 and max(values) <= 255:
        text = (
            f"class values go up to {max(named)}, but masks look cut to 8 bits; write 16-bit PNGs"
        )
        yield Finding("wrong", "cut-to-8-bits", text)
    elif values.get(255) and 255 in named:
        text = f"mask value 255 means {named[255]!r} here; mostly it marks pixels to ignore"
        yield Finding("note", "255-is-a-class", text)


def _ignored(evidence: Evidence) -> Iterator[Finding]:
    if evidence.any_class and not evidence.tally.ignored.pixels:
        text = "no pixel is ignored: every one counts as one of the classes"
        yield Finding("note", "nothing-ignored", text)
    empty = [item.mask for item in evidence.facts if item.values and set(item.labels) == {IGNORED}]
    if empty:
        text = f"{_several(empty, 'mask')} with ignored pixels alone: {listed(empty)}"
        yield Finding("note", "empty-masks", text)


def _absent(evidence: Evidence) -> Iterator[Finding]:
    names = [row.text for row in evidence.tally.classes if not row.pixels]
    if not evidence.any_class:
        return  # the reason has been named
    if names:
        text = f"{len(names)} of {len(evidence.vocabulary)} classes never occur: {_some(names, 12)}"
        yield Finding("note", "absent-classes", text)
    unseen = [name for name in names if name in evidence.vocabulary.unseen]
    if unseen:
        text = f"unseen classes that never occur cannot be scored: {_some(unseen, 12)}"
        yield Finding("note", "absent-unseen", text)


def _several(items: Sequence[object], noun: str) -> str:
    return f"{len(items)} {noun}{'' if len(items) == 1 else 's'}"


def _some(texts: Sequence[str], most: int = LISTED) -> str:
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def _counts(rows: Sequence[Count], tally: Tally) -> str:
    return _some(
        [f"{row.text} ({row.pixels:,} pixels, {row.images} of {tally.masks} masks)" for row in rows]
    )


def _size(size: tuple[int, int] | None) -> str:
    return f"{size[0]} x {size[1]}" if size else "unreadable"
