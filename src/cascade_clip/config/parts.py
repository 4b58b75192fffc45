"""Parts that a setting chooses by name: where each is, and those that other packages add.

A part of this package is one line of a table below. Another package adds one as an entry point:
the group is `cascade_clip.` and the kind, for example `cascade_clip.decoders`. Names of this
package cannot be taken over. Nothing is imported before a part is used.
"""

import difflib
import functools
import importlib
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from cascade_clip.errors import SettingError

PARTS: dict[str, dict[str, str]] = {
    "decoders": {
        "transformer": "cascade_clip.models.decoders.transformer:Decoder",
        "spectral": "cascade_clip.models.decoders.spectral:SpectralDecoder",
        "similarity": "cascade_clip.models.decoders.similarity:Similarity",
    },
    "aggregations": {
        "nga": "cascade_clip.models.aggregation:build_gaussian_sum",
        "sum": "cascade_clip.models.aggregation:build_plain_sum",
        "concat": "cascade_clip.models.aggregation:build_concatenation",
        "attention": "cascade_clip.models.aggregation:build_block_attention",
    },
    "towers": {
        "open_clip": "cascade_clip.encoders.towers:OpenClipTower",
        "timm": "cascade_clip.encoders.timm_tower:TimmTower",
    },
    "text_encoders": {"clip": "cascade_clip.encoders.text:build_clip_text"},
    "datasets": {
        "voc": "cascade_clip.data.named.voc:SPEC",
        "coco-stuff": "cascade_clip.data.named.coco_stuff:SPEC",
        "context": "cascade_clip.data.named.context:SPEC",
        "context-released": "cascade_clip.data.named.context_released:SPEC",
        "ade20k": "cascade_clip.data.named.ade20k:SPEC",
        "cityscapes": "cascade_clip.data.named.cityscapes:SPEC",
    },
    "upsamplers": {
        "bilinear": "cascade_clip.ops.upsampling:bilinear",
        "guided": "cascade_clip.ops.upsampling:guided",
    },
    "protocols": {
        "inductive": "cascade_clip.training.protocols:Inductive",
        "transductive": "cascade_clip.training.protocols:Transductive",
        "supervised": "cascade_clip.training.protocols:TrainingProtocol",
    },
}
"""Kind of part, then name, then `module:attribute`."""


def names_of(kind: str) -> tuple[str, ...]:
    """List the names of a kind of part: this package's in table order, then other packages'."""
    return (*PARTS[kind], *sorted(_added(kind)))


@functools.cache
def find_part(kind: str, name: str) -> Any:
    """Import a part.

    Raises:
        SettingError: no part of that name, with the choices and a similar name; or the package that
            offers it cannot be imported.
    """
    if name in PARTS[kind]:
        module, _, attribute = PARTS[kind][name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    added = _added(kind).get(name)
    noun = kind.removesuffix("s").replace("_", " ")
    if added is None:
        close = difflib.get_close_matches(name, names_of(kind), 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise SettingError(f"unknown {noun} {name!r}; choose one of {list(names_of(kind))}{hint}")
    try:
        return added.load()
    except (ImportError, AttributeError) as error:
        raise SettingError(f"cannot load the {noun} {name} ({added.value}): {error}") from error


def _added(kind: str) -> dict[str, EntryPoint]:
    """The parts of other packages, by name."""
    found = _installed().select(group=f"cascade_clip.{kind}")
    return {point.name: point for point in found if point.name not in PARTS[kind]}


@functools.cache
def _installed() -> Any:
    return entry_points()  # reads a file of every installed package: once is enough
