"""Named datasets: where their files are, what their masks hold, and what their licences are.

Each is a `DatasetSpec` in a file of its own, in `cascade_clip.data.named` or in another package,
and one line in the table of `cascade_clip.config.parts`.
"""

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cascade_clip.config import find_part, names_of
from cascade_clip.data.folder import MASK_ENDING, read_list
from cascade_clip.data.prepare import Recipe
from cascade_clip.errors import DataError, MissingFileError
from cascade_clip.vocabulary import Vocabulary, default_templates, load_vocabulary

Split = Literal["train", "val"]
Pairs = list[tuple[Path, Path]]


@dataclass(frozen=True)
class DatasetSpec:
    """Everything that is known about one named dataset."""

    title: str
    """Its name in messages."""
    folders: tuple[str, ...]
    """Folders below the root that may hold it, the documented one first; `.`: the root itself."""
    sign: str
    """A folder in it that shows that it is the right one."""
    pairs: Callable[[Path, Split], Pairs]
    """Lists the image and mask files of a split, in a fixed order, given the folder."""
    classes: str
    """Class list as `load_vocabulary` takes it. Masks that end in `_labelTrainIds` hold labels,
    others the mask values of the list."""
    licence: str
    """The terms of images and annotations, in one line for model cards."""
    templates: str = ""
    """Prompt templates; empty: those of the class list."""
    recipe: Recipe | None = None
    """How `data prepare` makes it from the original downloads; None: it cannot."""

    def find_pairs(self, root: str | Path, split: Split) -> Pairs:
        """Image and mask files of a split.

        Args:
            root: the folder that holds the dataset (for example the parent of `VOCdevkit`), or the
                dataset's own folder.
            split: `train` or `val`.

        Raises:
            MissingFileError: a folder, a list or a listed file is missing.
        """
        root = Path(root).expanduser()
        places = [root / folder for folder in self.folders]
        found = next((place for place in places if (place / self.sign).is_dir()), None)
        if found is None:
            place = f"{self.folders[0]}/{self.sign}"
            hint = "; `cascade-clip data prepare` writes that layout" if self.recipe else ""
            raise MissingFileError(f"{self.title} is not in {root}: looked for {place} there{hint}")
        return self.pairs(found, split)

    def load_classes(self, pairs: Pairs) -> Vocabulary:
        """The class list for these masks."""
        vocabulary = load_vocabulary(self.classes)
        converted = {mask.stem.endswith(MASK_ENDING) for _, mask in pairs}
        if len(converted) == 2:
            folder = pairs[0][1].parent
            raise DataError(f"only some masks in {folder} are {MASK_ENDING}; finish the conversion")
        return dataclasses.replace(vocabulary, raw_values=None) if True in converted else vocabulary

    @property
    def prompt_templates(self) -> str:
        """Name or file of the prompt templates."""
        return self.templates or default_templates(self.classes)


def find_dataset(name: str) -> DatasetSpec:
    """A named dataset of this package or of another one.

    Raises:
        SettingError: there is none of that name; the message lists the choices.
    """
    spec: DatasetSpec = find_part("datasets", name)
    return spec


def list_recipes() -> dict[str, Recipe]:
    """What `data prepare` can make, by the name of the dataset."""
    specs = {name: find_dataset(name) for name in names_of("datasets")}
    return {name: spec.recipe for name, spec in specs.items() if spec.recipe is not None}


def data_root(root: str) -> Path:
    """The folder of named datasets: `root`, else the variable CASCADE_CLIP_DATA, else `data`."""
    return Path(root or os.environ.get("CASCADE_CLIP_DATA") or "data")


def listed_pairs(folder: Path, list_file: str, masks: str) -> Pairs:
    """The images in `JPEGImages` that a list file names, with the masks of the same stems."""
    path = folder / list_file
    images, files = folder / "JPEGImages", folder / masks
    pairs = [(images / f"{stem}.jpg", files / f"{stem}.png") for stem in read_list(path)]
    missing = [str(file) for pair in pairs for file in pair if not file.is_file()]
    if missing:
        some = ", ".join(missing[:3])
        raise MissingFileError(f"{path} names {len(missing)} files that are missing: {some}, ...")
    return pairs
