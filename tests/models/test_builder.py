"""How parts are chosen and checked, and which settings make weights of two models not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cascade_clip.config import (
    ClipConfig,
    InferenceConfig,
    ModelConfig,
    TrainConfig,
    config_from_dict,
)
from cascade_clip.encoders import load_clip, outline_clip
from cascade_clip.errors import SettingError
from cascade_clip.models import find_differences
from cascade_clip.models.decoders import find_decoder
from cascade_clip.models.decoders.spectral import SpectralSettings
from tiny_models import TINY_CLIP, TINY_MODEL


def build_config(**changes: Any) -> ModelConfig:
    decoder = {**TINY_MODEL["decoder"], **changes.pop("decoder", {})}
    return config_from_dict(ModelConfig, {**TINY_MODEL, "decoder": decoder, **changes})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"decoder": {"dropout": 0.5, "low_share": 0.5}, "drop_path": 0.1}, []),  # no weights
        ({"aggregation": {"kind": "sum"}}, []),  # the same weights from another start
        ({"aggregation": {"kind": "concat"}, "drop_path": 0.1}, ["aggregation.kind"]),
        ({"decoder": {"feedforward": 64, "dropout": 0.5}}, ["decoder.feedforward"]),
        ({"decoder": {"heads": 2}}, ["decoder.heads"]),  # equal shapes, another meaning
        ({"stages": [[5, 7, 8], [9, 10, 11], [12]]}, ["stages"]),  # here too
        ({"stages": [[9, 10, 11], [6, 7, 8], [12]]}, ["stages"]),
        ({"position_grid": None, "stage_weights": "learned"}, ["stage_weights"]),  # null: 4 x 4
        ({"position_grid": [2, 4]}, ["position_grid"]),
        # 5 heads cannot be built, with either model
        ({"decoder": {"heads": 5, "layers": 2}}, ["decoder.heads", "decoder.layers"]),
    ],
)
def test_settings_because_of_which_weights_do_not_fit(
    changes: dict[str, Any], expected: list[str]
) -> None:
    assert sorted(find_differences(build_config(**changes), build_config())) == expected


def test_differences_have_both_values() -> None:
    found = find_differences(build_config(decoder={"layers": 2}), build_config())
    assert found == {"decoder.layers": (2, 3)}


def test_an_outline_has_the_shapes_of_the_tower_and_reads_no_weights(tmp_path: Path) -> None:
    missing = ClipConfig("tiny", str(tmp_path / "missing.pt"), TINY_CLIP)
    outline = outline_clip(missing).visual.state_dict()
    own = load_clip(ClipConfig("tiny", "random", TINY_CLIP, tokenizer=False)).visual.state_dict()
    assert {name: value.shape for name, value in outline.items()} == {
        name: value.shape for name, value in own.items()
    }
    assert {value.device.type for value in outline.values()} == {"meta"}


def test_a_decoder_gets_its_own_settings() -> None:
    _, settings = find_decoder(build_config(decoder={"kind": "spectral", "window": 2}).decoder)
    assert settings == SpectralSettings(3, 4, 128, 0.0, window=2, low_share=0.9, gate_leak=0.1)


@pytest.mark.parametrize(
    "name", ["bias", "layers"]
)  # layers is no option, but model.decoder.layers
def test_options_that_a_decoder_does_not_have(name: str) -> None:
    config = build_config(decoder={"options": {name: 1}})
    with pytest.raises(SettingError, match=rf"setting model\.decoder\.options\.{name}; .*\[\]$"):
        find_decoder(config.decoder)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (ModelConfig, {"decoder": {"kind": "x"}}, r"decoder\.kind must be one of \['transformer'"),
        (ModelConfig, {"aggregation": {"kind": "x"}}, r"aggregation\.kind must be one of \['nga'"),
        (ClipConfig, {"text_encoder": "x"}, r"text_encoder must be one of \['clip'\]"),
        (InferenceConfig, {"upsampler": "x"}, r"upsampler must be one of \['bilinear'"),
        (TrainConfig, {"protocol": "x"}, r"protocol must be one of \['inductive'"),
    ],
)
def test_unknown_names_are_refused(kind: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        config_from_dict(kind, values)


def test_unknown_names_are_refused_in_python_too() -> None:
    for build in (
        lambda: TrainConfig(protocol="x"),
        lambda: InferenceConfig(upsampler="x"),
        lambda: ClipConfig(text_encoder="x"),
    ):
        with pytest.raises(SettingError, match="must be one of"):
            build()
