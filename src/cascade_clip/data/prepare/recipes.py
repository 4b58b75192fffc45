"""What `data prepare` knows about a dataset: its downloads, their files, and their number."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from cascade_clip.data.folder import MASK_ENDING

Convert = Callable[[Any], bytes]
ReadList = Callable[[str], list[str]]
"""Reads the stems in a list file below the dataset's folder."""
Lists = Mapping[str, Collection[str]]
"""List file below the dataset's folder, and the stems in it."""


@dataclass(frozen=True)
class Rule:
    """What becomes of the files of one kind."""

    pattern: str
    """End of the paths it takes, with wildcards: `JPEGImages/*.jpg`."""
    target: str
    """Folder below the dataset's folder."""
    count: int
    """Least number of files."""
    convert: Convert | None = None
    """From the content of the file to that of a PNG; None copies."""
    ending: str = ""
    """Put behind the stem of a converted file."""

    def takes(self, name: PurePosixPath) -> bool:
        """Whether this is the rule of a file; files that a conversion wrote earlier have none."""
        return name.match(self.pattern) and not name.stem.endswith(MASK_ENDING)

    def target_of(self, name: PurePosixPath) -> str:
        """Where the file goes, below the dataset's folder."""
        file = name.name if self.convert is None else f"{name.stem}{self.ending}.png"
        return f"{self.target}/{file}"


@dataclass(frozen=True)
class Download:
    """One file that the user downloads, or a folder with what was in it."""

    file: str
    url: str
    terms: str
    rules: tuple[Rule, ...]
    size: int = 0
    """Exact bytes; 0: not known."""
    about: str = ""
    """Size in words where it is not known exactly."""
    digest: str = ""
    """`sha256:...` or `md5:...`; empty: none is published."""
    places: tuple[str, ...] = ()
    """Other places in the raw folder: the files unpacked, or where mmsegmentation has the file."""
    lists: Callable[[ReadList, Collection[str]], Lists] | None = None
    """Lists to write, given a reader of earlier lists and the stems of the masks converted here."""


@dataclass(frozen=True)
class Check:
    """A list, or two folders, whose images and masks must all be there."""

    images: str
    masks: str
    """Empty: images alone."""
    count: int
    """Exact number of pairs; the least one without a list."""
    listed: str = ""
    """List file; empty: every image of the folder."""
    ending: str = ""


@dataclass(frozen=True)
class Recipe:
    """From the downloads of a dataset to its folder."""

    folder: str
    """The folder that is made, below the output folder."""
    needs: tuple[tuple[Download, ...], ...]
    """Downloads that are needed, in this order; of several in one place the first that is there."""
    checks: tuple[Check, ...]
