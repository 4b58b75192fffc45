"""Reads every image and mask of a dataset, and reports all that contradicts the class list."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cascade_clip.data.check.facts import Count, PairFacts, Tally, read_facts, tally_facts
from cascade_clip.data.check.findings import Evidence, Finding, list_findings
from cascade_clip.data.check.preview import draw_sheet
from cascade_clip.data.folder import FoundFiles
from cascade_clip.files import write_json, write_whole
from cascade_clip.vocabulary import Vocabulary


@dataclass(frozen=True)
class CheckReport:
    """What a check found."""

    files: FoundFiles
    facts: tuple[PairFacts, ...]
    """One entry for each pair that was read."""
    tally: Tally
    vocabulary: Vocabulary
    findings: tuple[Finding, ...]

    @property
    def wrong(self) -> list[Finding]:
        """Things that need work before training or scoring."""
        return [finding for finding in self.findings if finding.level == "wrong"]

    @property
    def notes(self) -> list[Finding]:
        """Things that are worth knowing."""
        return [finding for finding in self.findings if finding.level == "note"]

    def to_json(self) -> dict[str, Any]:
        """The report as plain values."""
        tally, seen = self.tally, self.vocabulary.seen_mask
        classes = [
            {**self._row(row), "label": label, "seen": seen[label]}
            for label, row in enumerate(tally.classes)
        ]
        return {
            "images": self.files.images,
            "masks": self.files.masks,
            "pairs": len(self.files.pairs),
            "pairs_read": len(self.facts),
            "images_without_mask": [str(path) for path in self.files.images_alone],
            "masks_without_image": [str(path) for path in self.files.masks_alone],
            "unreadable": {
                str(path): text
                for item in self.facts
                for path, text in ((item.image, item.image_problem), (item.mask, item.mask_problem))
                if text
            },
            "other_size": [str(item.mask) for item in self.facts if item.differs],
            "pixels": tally.pixels,
            "classes": classes,
            "ignored": self._row(tally.ignored),
            "unknown": [self._row(row) for row in tally.unknown],
            "findings": [vars(finding) for finding in self.findings],
        }

    def _row(self, row: Count) -> dict[str, Any]:
        share = round(self.tally.share(row), 8)
        return {"name": row.text, "pixels": row.pixels, "share": share, "images": row.images}

    def save(self, folder: Path) -> list[Path]:
        """Write `check.json` and, where a pair can be shown, a preview `check.png`, atomically."""
        sheet = draw_sheet(self.facts, self.vocabulary, self.tally)
        written = [write_whole(folder / "check.png", sheet.save)] if sheet is not None else []
        return [*written, write_json(folder / "check.json", self.to_json())]


def check_data(
    files: FoundFiles,
    vocabulary: Vocabulary,
    limit: int = 0,
    workers: int = 0,
    step: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Read pairs of image and mask, and compare what they hold with the class list.

    Args:
        files: what the folders hold.
        vocabulary: the class list, with what mask values or colours mean.
        limit: pairs to read, taken at even distances; 0 means all.
        workers: processes that read; 0 reads in this one.
        step: called with (done, total).

    Raises:
        ValueError: the ignore value of the class list is also that of a class.
    """
    facts = tuple(read_facts(spread(files.pairs, limit), vocabulary, workers, step))
    tally = tally_facts(facts, vocabulary)
    findings = list_findings(Evidence(files, facts, tally, vocabulary))
    return CheckReport(files, facts, tally, vocabulary, tuple(findings))


def spread(pairs: Sequence[tuple[Path, Path]], limit: int) -> list[tuple[Path, Path]]:
    """At most `limit` of the pairs at even distances, the first among them; 0 means all."""
    if not 0 < limit < len(pairs):
        return list(pairs)
    return [pairs[place * len(pairs) // limit] for place in range(limit)]
