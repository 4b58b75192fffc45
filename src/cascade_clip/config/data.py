"""Settings of a dataset."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cascade_clip.config.parts import names_of
from cascade_clip.config.values import check, check_least

if TYPE_CHECKING:  # names that other packages add are known only when the program runs
    DataName = str
    FilesName = str
else:
    FilesName = Literal[("folder", *names_of("datasets"))]
    DataName = Literal[("folder", "sandbox", *names_of("datasets"))]


@dataclass(frozen=True)
class DataConfig:
    """Which dataset, and where its images, masks and class names are."""

    name: DataName = "folder"
    """`folder`: the two folders below; `sandbox`: the built-in world; or a dataset below `root`."""
    root: str = ""
    """Folder that holds the named dataset, in the layout of `cascade-clip data prepare`. Empty:
    the environment variable CASCADE_CLIP_DATA, else `data`."""
    split: Literal["", "train", "val"] = ""
    """Part of the named dataset. Empty: `train` to train on, `val` to evaluate on."""
    images: str = ""
    """Folder of images."""
    masks: str = ""
    """Folder of index masks with the same file stems (8- or 16-bit PNG)."""
    classes: str = ""
    """Class list (a named dataset has its own): a file with one name a line in label order (`sofa
    = couch; settee` adds synonyms) or with `VALUE NAME` lines, or a packaged list by name (voc,
    coco-stuff, context, ...)."""
    unseen: str = ""
    """Unseen class names: a file with one name a line, names separated by commas, a packaged split
    by name, or `none`: all are seen. Empty: the split that the class list brings."""
    ignore: int | None = None
    """Mask value of pixels without a label; null: that of the class list, else 255."""
    templates: str = ""
    """Prompt templates: `single`, `paper15`, `imagenet80` (the 80 that CLIP used for ImageNet), or
    a text file with one template a line, `{}` standing for the name. Empty: those that the paper
    uses for a packaged class list, else `single`."""
    text_embeddings: str = ""
    """A .npy file (classes, width) to use instead of the text tower, rows in label order."""
    limit: int = 0
    """Use the first N images only; 0 means all (in the sandbox: 100,000 scenes)."""
    seed: int = 0
    """Which scenes of the sandbox; other seeds give fresh ones."""
    size: int = 128
    """Side of the sandbox's scenes, in pixels."""
    workers: int = 2
    """Processes that load and augment images."""

    def __post_init__(self) -> None:
        names = ("folder", "sandbox", *names_of("datasets"))
        check(self.name in names, f"data.name must be one of {list(names)}, got {self.name!r}")
        check_least("data", self, size=16, limit=0, workers=0)
