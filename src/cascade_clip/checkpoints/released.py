"""Import of state dicts that the released Cascade-CLIP and ZegCLIP programs wrote.

A released state dict says nothing about heads, stages, windows, class names or split: those come
from a YAML file beside it.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from cascade_clip.checkpoints.checkpoint import (
    Checkpoint,
    load_config,
    load_strictly,
    refuse_non_finite,
    save_checkpoint,
)
from cascade_clip.config import Config
from cascade_clip.encoders import (
    LoadedClip,
    build_text_encoder,
    fingerprint_weights,
    load_clip,
    load_embeddings,
    read_state,
)
from cascade_clip.errors import CheckpointError, MissingFileError, SettingError, WeightsError
from cascade_clip.models import Segmenter, build_segmenter
from cascade_clip.vocabulary import default_templates, load_templates, load_vocabulary

_LAYER = r"decode_head\.(?:cascade_decoders\.(\d+)|decoder_1)\.layers\.(\d+)\."
_DEAD = re.compile(_LAYER + r"self_attn\.|" + _LAYER + r"norm1\.|decode_head\.loss_decode\.")
"""Weights that reach no output: self-attention, its norm, and a buffer sized by class count."""

_PARTS = {
    "multihead_attn.q": "attention.query",
    "multihead_attn.k": "attention.key",
    "multihead_attn.v": "attention.value",
    "multihead_attn.proj": "attention.output",
    "linear1": "expand",
    "linear2": "contract",
    "norm2": "attention_norm",
    "norm3": "feedforward_norm",
}
_LAST_PARTS = {"multihead_attn.q": "mask_attention.query", "multihead_attn.k": "mask_attention.key"}
_PROMPTS = ("backbone.prompt_embeddings", "backbone.deep_prompt_embeddings")
_LICENCE = (
    "unclear: the authors' README says CC BY-NC 4.0, their LICENSE file MIT; treat as"
    " non-commercial"
)


def read_released(path: Path) -> dict[str, Tensor]:
    """Read the state dict in a released `.pth` or `.safetensors` file; nothing in it is executed.

    Raises:
        MissingFileError: no such file.
        CheckpointError: damaged, not a state dict, or a pickle that holds more than tensors.
    """
    if not path.is_file():
        raise MissingFileError(f"no file {path}")
    try:
        state = read_state(path)
    except (WeightsError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a plain PyTorch state dict: {error}") from error
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def convert_released(
    state: Mapping[str, Tensor], config: Config
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Rename a released state dict: the segmenter's own names, and the text tower's (empty when it
    holds none).

    Weights that reach no output are dropped by name; a name that is neither known nor known to be
    dead stays as it is, so that loading names it.
    """
    model: dict[str, Tensor] = {}
    text: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith("text_encoder."):
            text[name.removeprefix("text_encoder.")] = tensor
        elif name == "backbone.positional_embedding":
            model["backbone.tower.class_position"] = tensor[0]
            model["backbone.tower.position_embedding.positions"] = tensor[1:]
        elif not _DEAD.match(name):
            new = _rename(name, config)
            if new is not None:
                model[new] = tensor
    prompts = [state[name] for name in _PROMPTS if name in state]
    if prompts:
        model["backbone.prompts.tokens"] = torch.cat(prompts)  # (depth, P, W)
    return model, text


def _rename(name: str, config: Config) -> str | None:
    """The name in a Segmenter, or None for what is dead or put together elsewhere."""
    if name in _PROMPTS:
        return None
    layer = re.match(_LAYER + r"(.+)\.(weight|bias)$", name)
    if layer:
        return _rename_layer(layer, config.model.decoder.layers)
    projection = re.match(r"decode_head\.q_projs?\.(?:(\d+)\.)?(weight|bias)$", name)
    if projection:
        return f"queries.{projection[1] or 0}.{projection[2]}"
    weights = re.match(r"decode_head\.weights_s(\d+)$", name)
    if weights:
        return f"aggregations.{_aggregated_stage(int(weights[1]), config)}.weights"
    for old, new in (
        ("backbone.prompt_proj.", "backbone.prompts.projection."),
        ("backbone.ln_layers.", "backbone.taps.norms."),
        ("backbone.proj_layers", "backbone.taps.matrices"),
        ("backbone.prompt_norm.", "backbone.prompt_norm."),
        ("backbone.", "backbone.tower.visual."),
    ):
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _aggregated_stage(number: int, config: Config) -> int:
    """The stage index of `weights_s1`, `weights_s2`: stages of one block have no weights."""
    several = [index for index, stage in enumerate(config.model.stages) if len(stage) > 1]
    if number > len(several):
        raise SettingError(
            f"the file holds weights of {number} aggregated stages, but model.stages"
            f" {config.model.stages} has {len(several)}"
        )
    return several[number - 1]


def _rename_layer(found: re.Match[str], layers: int) -> str | None:
    decoder, layer, part, kind = int(found[1] or 0), int(found[2]), found[3], found[4]
    if layer == layers - 1:  # of the last layer only query and key reach an output
        if part in _LAST_PARTS:
            return f"decoders.{decoder}.{_LAST_PARTS[part]}.{kind}"
        if part in _PARTS:
            return None
    return f"decoders.{decoder}.layers.{layer}.{_PARTS.get(part, part)}.{kind}"


def import_released(
    file: Path, config_file: Path, out: Path, *, match_clip: bool = False
) -> Checkpoint:
    """Turn a released state dict into a checkpoint folder.

    Args:
        file: the released `.pth` or `.safetensors`.
        config_file: YAML with what the file does not say: model.clip, stages, heads, prompt tokens,
            data.classes, data.unseen, window.
        out: checkpoint folder to write.
        match_clip: compare the file's CLIP with the weights that `model.clip` names, and store only
            a reference when they are equal; otherwise CLIP is stored in full.

    Raises:
        FileNotFoundError, ValueError: as `read_released`; names or shapes that do not fit the YAML.
    """
    config = load_config(config_file)
    released = read_released(file)
    refuse_non_finite(released, file)
    state, text_state = convert_released(released, config)
    if not config.data.classes:
        raise SettingError(
            f"{config_file} must name the class list: data.classes, and data.unseen for the split"
        )
    vocabulary = load_vocabulary(config.data.classes, config.data.unseen)
    named, tokenizer = config.model.clip, bool(text_state)
    clip = load_clip(dataclasses.replace(named, weights="random", tokenizer=tokenizer))
    if clip.text is not None:
        _load_text(clip, text_state, file)
    encoder = build_text_encoder(clip)
    model = build_segmenter(config.model, clip)
    load_strictly(model, state, file)
    fingerprint = _matching_fingerprint(config, model, text_state) if match_clip else ""
    text, given = None, config.data.text_embeddings
    if encoder is None and not fingerprint and given:
        text = load_embeddings(Path(given), len(vocabulary.names), model.joint_width)
    record = {
        "imported_from": file.name,
        "protocol": config.train.protocol,
        "steps": config.train.steps,
        "licence": _LICENCE,
    }
    checkpoint = Checkpoint(
        model.eval(),
        encoder,
        config,
        vocabulary,
        load_templates(config.data.templates or default_templates(config.data.classes)),
        fingerprint,
        clip.architecture,
        text,
        record,
    )
    save_checkpoint(out, checkpoint)
    return checkpoint


def _load_text(clip: LoadedClip, state: Mapping[str, Tensor], file: Path) -> None:
    assert clip.text is not None
    names = clip.text.state_dict().keys()
    renamed = {
        f"text.{name}" if f"text.{name}" in names else name: tensor
        for name, tensor in state.items()
    }
    missing, unexpected = clip.text.load_state_dict(renamed, strict=False)
    missing = [name for name in missing if name not in ("logit_scale", "logit_bias")]
    if missing or unexpected:
        keys = f"missing {missing[:5]}, unexpected {unexpected[:5]}"
        raise CheckpointError(f"the text tower in {file} does not fit model.clip: {keys}")


def _matching_fingerprint(
    config: Config, model: Segmenter, text_state: Mapping[str, Tensor]
) -> str:
    """The fingerprint of the CLIP that the settings name if the towers equal it, else empty."""
    clip = load_clip(config.model.clip)
    known = {} if clip.text is None else clip.text.state_dict()
    text = {name.removeprefix("text."): tensor for name, tensor in known.items()}
    same_text = all(
        name in text and torch.equal(text[name], tensor.float())
        for name, tensor in text_state.items()
    )
    towers = (build_segmenter(config.model, clip).backbone.tower, model.backbone.tower)
    own, imported = (fingerprint_weights(tower.state_dict()) for tower in towers)
    return clip.fingerprint if own == imported and same_text else ""
