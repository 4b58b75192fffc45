"""Flags that several commands share: the dataset, the class names, the inference settings."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cascade_clip.config import DataConfig, DataName, InferenceConfig
from cascade_clip.errors import SettingError

if TYPE_CHECKING:
    from cascade_clip.inference import BoundClasses, LoadOptions, Predictor
    from cascade_clip.vocabulary import Vocabulary


@dataclass(frozen=True)
class FolderOptions:
    """A labelled dataset."""

    data: DataName = "folder"
    """`folder`: the two folders below; `sandbox`: fresh built-in scenes; or a named dataset."""
    root: str = ""
    """Folder that holds the named dataset; by default $CASCADE_CLIP_DATA, else `data`."""
    split: Literal["", "train", "val"] = ""
    """Part of the named dataset; by default val."""
    images: str = ""
    """Folder of images."""
    masks: str = ""
    """Folder of index masks with the same file stems."""
    classes: str = ""
    """Class list, a file or a packaged list (voc, coco-stuff, context, ade20k, cityscapes)."""
    unseen: str = ""
    """Unseen class names: a file, comma-separated names, a packaged split, or `none` of them."""
    text_embeddings: str = ""
    """File (.npy) of text embeddings, one row a class, to use instead of the text tower."""
    limit: int = 0
    """Use the first N images only; 0 means all (300 of the sandbox)."""
    ignore: int | None = None
    """Mask value of pixels without a label; by default the one of the class list, mostly 255."""
    seed: int = 2
    """Which scenes of the sandbox."""

    def to_config(self) -> DataConfig:
        """Return the settings of the dataset."""
        chosen = {name: value for name, value in dataclasses.asdict(self).items() if name != "data"}
        if self.data == "sandbox":
            chosen["limit"] = self.limit or 300
        return DataConfig(name=self.data, **chosen)


@dataclass(frozen=True)
class NameOptions:
    """Which pixels get which class name."""

    calibration: float = 0.0
    """Subtracted from the scores of class names that were seen in training."""
    background: str = ""
    """Background words ("sky, wall, tree"), a file of them, or `scenery`: they compete with the
    class names and all mean `background`; `none`: no background words; by default the
    checkpoint's."""
    threshold: float | Literal["none"] | None = None
    """Pixels whose best score (0..1) is lower are unlabelled, or `background` where that is one of
    the class names; `none`: every pixel gets a name; by default the checkpoint's."""

    def bind(self, predictor: Predictor, classes: Vocabulary | None) -> BoundClasses:
        """Bind class names to a model; by default its own."""
        return predictor.bind(
            classes, self.calibration, background=self.background or None, threshold=self.threshold
        )


@dataclass(frozen=True)
class InferenceOptions:
    """What replaces the inference settings of a checkpoint."""

    window: int | None = None
    """Side of the window in pixels; by default the checkpoint's."""
    stride: int | None = None
    """Step between windows in pixels; by default the checkpoint's."""
    flip: bool = False
    """Test-time augmentation: average the scores with those of the mirrored image."""
    scales: str = ""
    """Test-time augmentation: average over sizes, parts of the window, such as "0.75, 1, 1.25"."""
    combine: Literal["sum", "confidence"] | None = None
    """How stages become a mask, `sum` or by `confidence` per patch; by default the checkpoint's."""
    upsampler: Literal["bilinear", "guided"] | None = None
    """From patches to pixels: `bilinear`, or `guided` by colours; by default the checkpoint's."""
    guide_radius: int | None = None
    """Of --upsampler guided: radius of its filter in patches; by default the checkpoint's."""
    guide_epsilon: float | None = None
    """Of --upsampler guided: variance of colours (0..1) up to which its filter takes an area as
    plain; by default the checkpoint's."""
    background: str = ""
    """Background words ("sky, wall"), a file of them, or `scenery`: they compete and all mean
    `background`; `none`: no background words; by default the checkpoint's."""
    threshold: float | Literal["none"] | None = None
    """Least score (0..1) that names a pixel; `none`: all get one; by default the checkpoint's."""

    def apply(self, settings: InferenceConfig) -> InferenceConfig:
        """Return the checkpoint's settings with the ones that are given here."""
        from cascade_clip.inference import without_none

        given = given_flags(dataclasses.asdict(self))
        if self.scales:
            given["scales"] = read_numbers(self.scales, "--scales", "0.75, 1, 1.25")
        if self.background:
            given["background"] = without_none(self.background) or ""
        if self.threshold is not None:
            given["threshold"] = without_none(self.threshold)
        return dataclasses.replace(settings, **given)

    def load(self, model: str, loading: LoadOptions) -> Predictor:
        """Load a model, with these inference settings."""
        predictor = loading.load(model)
        return predictor.with_settings(self.apply(predictor.settings))


DEFAULT_INFERENCE = InferenceOptions()
DEFAULT_NAMES = NameOptions()


def read_classes(text: str) -> Vocabulary | None:
    """Read the class names of a flag: names, a file of them, or a packaged list; None without."""
    from cascade_clip.vocabulary import load_words

    return load_words(text) if text else None


def given_flags(values: dict[str, Any]) -> dict[str, Any]:
    """Return the flags that were given."""
    return {
        name: value
        for name, value in values.items()
        if value not in (None, "") and value is not False
    }


def read_numbers(text: str, flag: str, example: str) -> tuple[float, ...]:
    """Read numbers separated by commas.

    Raises:
        SettingError: a part that is not a number.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        message = f'{flag} must be numbers separated by commas, such as "{example}", got {text!r}'
        raise SettingError(message) from None
