"""What the decoders of all kinds share, and how one is found by its name."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from cascade_clip.config import DecoderConfig, config_from_dict, find_part
from cascade_clip.errors import SettingError


@dataclass(frozen=True)
class NoSettings:
    """Settings of a decoder that has none."""


class StageDecoder(nn.Module):
    """The decoder of one stage.

    Called with class queries (B, C, D), patches (B, N, D) and the grid (rows, columns) of the N
    patches, it returns mask logits (B, C, N) in float32, whatever the autocast.
    """

    Settings: ClassVar[type[Any]] = NoSettings
    """A frozen dataclass. A field that `DecoderConfig` has too is set by users in `model.decoder`,
    any other, which needs a default, in `model.decoder.options`."""

    @classmethod
    def build(cls, width: int, settings: Any, logit_scale: float) -> StageDecoder:
        """Build a decoder for D = `width`; `logit_scale` is CLIP's own factor of cosines."""
        return cls(width, settings)

    @classmethod
    def unused_parameters(cls, width: int, settings: Any) -> int:
        """Count the weights that the published program builds beside these and never uses."""
        return 0

    @classmethod
    def unused_flops(cls, width: int, settings: Any, classes: int, patches: int) -> int:
        """Count the operations that the published program spends beside these, for one image."""
        return 0


def find_decoder(config: DecoderConfig) -> tuple[type[StageDecoder], Any]:
    """Find the decoder of `config.kind`, and its own settings.

    Raises:
        SettingError: an option that this decoder does not have, or a value of the wrong type.
    """
    decoder: type[StageDecoder] = find_part("decoders", config.kind)
    names = {item.name for item in dataclasses.fields(decoder.Settings)}
    shared = names.intersection(vars(config)) - {"kind", "options"}
    unknown = config.options.keys() - (names - shared)
    if unknown:
        raise SettingError(
            f"unknown setting model.decoder.options.{min(unknown)}; the decoder {config.kind} has"
            f" the options {sorted(names - shared)}"
        )
    values = {name: getattr(config, name) for name in shared} | config.options
    return decoder, config_from_dict(decoder.Settings, values, "model.decoder.options")
