"""Checkpoint folders: round trip, strictness, what is stored, what is refused; and import of
released files."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from archives import random_clip, write_openai_archive
from cascade_clip.checkpoints.checkpoint import load_checkpoint, read_record, save_checkpoint
from cascade_clip.checkpoints.released import import_released
from cascade_clip.errors import StorageError
from tiny_models import (
    TINY_CLIP,
    TINY_MODEL,
    TINY_SETTINGS,
    build_tiny,
    import_reference,
    read_reference,
    tensor,
    with_model,
)


@pytest.fixture
def copy(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def test_round_trip(tiny_folder: Path, tmp_path: Path) -> None:
    first = load_checkpoint(tiny_folder)
    save_checkpoint(tmp_path / "again", first)
    second = load_checkpoint(tmp_path / "again")
    assert second.config == first.config
    assert second.vocabulary == first.vocabulary
    assert second.templates == first.templates
    images, text = torch.randn(1, 3, 64, 64), torch.randn(3, 32)
    assert torch.equal(first.model(images, text), second.model(images, text))
    assert first.text_encoder is not None and second.text_encoder is not None
    assert torch.equal(first.text_encoder.encode(["a cat"]), second.text_encoder.encode(["a cat"]))
    assert {path.name for path in tiny_folder.iterdir()} == {
        "model.safetensors",
        "config.yaml",
        "checkpoint.json",
        "README.md",
    }
    assert not list(tmp_path.glob(".*"))  # no temporary folder stays


def archive_settings(tmp_path: Path, **clip: Any) -> dict[str, Any]:
    path = write_openai_archive(tmp_path / "ViT-B-16.pt", random_clip(TINY_CLIP), 64)
    return {
        **TINY_MODEL,
        "clip": {
            "name": "tiny",
            "weights": str(path),
            "architecture": TINY_CLIP,
            "sha256": "any",
            **clip,
        },
    }


def test_the_frozen_clip_is_only_referenced(tmp_path: Path) -> None:
    checkpoint = build_tiny(model=archive_settings(tmp_path))
    assert checkpoint.clip_fingerprint
    small = save_checkpoint(tmp_path / "small", checkpoint)
    full = save_checkpoint(tmp_path / "full", checkpoint, full=True)
    names = load_file(small / "model.safetensors").keys()
    assert not [
        name for name in names if name.startswith("backbone.tower.") or name.startswith("text.")
    ]
    assert {name for name in names if "taps" in name}  # random and frozen, so they must be there
    assert read_record(small)["clip_fingerprint"] == checkpoint.clip_fingerprint
    images, text = torch.randn(1, 3, 64, 64), torch.randn(3, 32)
    expected = checkpoint.model(images, text)
    (tmp_path / "ViT-B-16.pt").rename(tmp_path / "moved.pt")
    assert torch.equal(load_checkpoint(full).model(images, text), expected)  # needs no other file
    with pytest.raises(FileNotFoundError, match=r"ViT-B-16\.pt"):
        load_checkpoint(small)
    assert torch.equal(
        load_checkpoint(small, str(tmp_path / "moved.pt")).model(images, text), expected
    )
    write_openai_archive(tmp_path / "other.pt", random_clip(TINY_CLIP, seed=1), 64)
    with pytest.raises(ValueError, match="trained on another CLIP"):
        load_checkpoint(small, str(tmp_path / "other.pt"))


def damage(kind: str, folder: Path) -> None:
    weights, record, settings = (
        folder / "model.safetensors",
        folder / "checkpoint.json",
        folder / "config.yaml",
    )
    state = load_file(weights)
    actions: dict[str, Callable[[], Any]] = {
        "truncated": lambda: weights.write_bytes(weights.read_bytes()[:-1000]),
        "empty": lambda: weights.write_bytes(b""),
        "missing key": lambda: save_file(
            {name: value for name, value in state.items() if name != "queries.0.weight"}, weights
        ),
        "extra key": lambda: save_file({**state, "something.else": torch.zeros(1)}, weights),
        "shape": lambda: save_file({**state, "queries.0.weight": torch.zeros(3, 3)}, weights),
        "no file": weights.unlink,
        "record": lambda: record.write_text("{"),
        "format": lambda: record.write_text(
            json.dumps({**json.loads(record.read_text()), "format": 99})
        ),
        "unknown setting": lambda: settings.write_text("model: {stagess: [[12]]}"),
        "object in yaml": lambda: settings.write_text(
            "model: !!python/object/apply:os.system ['true']"
        ),
    }
    actions[kind]()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", r"model\.safetensors is truncated or damaged"),
        ("empty", r"model\.safetensors is truncated or damaged"),
        ("missing key", r"missing \['queries\.0\.weight'\]"),
        ("extra key", r"unexpected \['something\.else'\]"),
        ("shape", r"queries\.0\.weight \(3, 3\) for \(32, 64\)"),
        ("no file", r"'model\.safetensors'\] missing"),
        ("record", r"checkpoint\.json is damaged"),
        ("format", "format 99"),
        ("unknown setting", r"unknown setting .*model\.stagess"),
        ("object in yaml", "is not YAML"),
    ],
)
def test_damaged_folders(copy: Path, kind: str, message: str) -> None:
    damage(kind, copy)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as found:
        load_checkpoint(copy)
    assert "\n" not in str(found.value)


def test_no_folder() -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint at nowhere"):
        load_checkpoint(Path("nowhere"))


def test_a_folder_that_is_no_checkpoint_is_not_replaced(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years")
    with pytest.raises(StorageError, match="not a checkpoint"):
        save_checkpoint(tmp_path / "precious", load_checkpoint(tiny_folder))
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "years"


def write_released(folder: Path, state: Any, settings: dict[str, Any]) -> tuple[Path, Path]:
    torch.save(state, folder / "released.pth")
    (folder / "released.yaml").write_text(yaml.safe_dump(settings))
    return folder / "released.pth", folder / "released.yaml"


def released_state() -> dict[str, torch.Tensor]:
    return {name: tensor(value) for name, value in read_reference("state").items()}


@pytest.mark.parametrize("form", ["trainer", "bare", "distributed"])
def test_released_files_in_every_form(tmp_path: Path, form: str) -> None:
    """Trainer checkpoints, bare state dicts, and names with `module.` in front."""
    state: Any = released_state()
    if form == "distributed":
        state = {f"module.{name}": value for name, value in state.items()}
    state = {"state_dict": state, "meta": {}, "optimizer": {}} if form == "trainer" else state
    file, settings = write_released(tmp_path, state, TINY_SETTINGS)
    checkpoint = import_released(file, settings, tmp_path / "out")
    assert checkpoint.model.queries[0].weight.shape == (32, 64)
    assert "non-commercial" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (
            {"decode_head.q_projs.0.weight": None},
            TINY_SETTINGS,
            r"missing \['queries\.0\.weight'\]",
        ),
        (
            {"decode_head.surprise": torch.zeros(1)},
            TINY_SETTINGS,
            r"unexpected \['decode_head\.surprise'\]",
        ),
        ({}, with_model(stages=[[12]]), "aggregated stages"),
        ({}, with_model(stages=[[6, 7, 8], [12]]), "aggregated stages"),
        ({}, with_model(prompts={"tokens": 5}), r"prompts\.tokens \(12, 3, 64\) for \(12, 5, 64\)"),
        (
            {},
            {key: value for key, value in TINY_SETTINGS.items() if key != "data"},
            r"data\.classes",
        ),
    ],
)
def test_released_files_that_do_not_fit(
    tmp_path: Path, change: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    state = {
        name: value for name, value in {**released_state(), **change}.items() if value is not None
    }
    file, yaml_file = write_released(tmp_path, {"state_dict": state}, settings)
    with pytest.raises(ValueError, match=message):
        import_released(file, yaml_file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Malicious:
    """A pickle that writes a file when it is executed."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.write_text, (self.target, "executed"))


def test_pickles_are_never_executed(tmp_path: Path) -> None:
    (tmp_path / "released.yaml").write_text(yaml.safe_dump(TINY_SETTINGS))
    for name, write in (
        ("zip", torch.save),
        ("plain", lambda value, path: path.write_bytes(pickle.dumps(value))),
    ):
        file = tmp_path / f"{name}.pth"
        write({"state_dict": {"a": Malicious(tmp_path / "harm")}}, file)
        with pytest.raises(ValueError, match="never executed"):
            import_released(file, tmp_path / "released.yaml", tmp_path / "out")
    assert not (tmp_path / "harm").exists()


def test_import_can_store_a_reference_to_a_known_clip(tmp_path: Path) -> None:
    """A file whose CLIP equals the named weights is stored without it."""
    first = build_tiny(model=archive_settings(tmp_path))
    state = {}
    for name, value in first.model.state_dict().items():
        state |= {released: value for released in [to_released(name)] if released}
    tower = first.model.backbone.tower
    state["backbone.positional_embedding"] = torch.cat(
        [tower.class_position[None], tower.position_embedding.positions]
    )
    tokens = first.model.backbone.prompts.tokens.detach()
    state |= {
        "backbone.prompt_embeddings": tokens[:1],
        "backbone.deep_prompt_embeddings": tokens[1:],
    }
    settings = {**TINY_SETTINGS, "model": archive_settings(tmp_path)}
    file, yaml_file = write_released(tmp_path, {"state_dict": state}, settings)
    found = import_released(file, yaml_file, tmp_path / "out", match_clip=True)
    assert found.clip_fingerprint == first.clip_fingerprint
    assert not read_record(tmp_path / "out")["clip_stored"]
    again = load_checkpoint(tmp_path / "out")
    images, text = torch.randn(1, 3, 64, 64), torch.randn(3, 32)
    assert torch.equal(again.model(images, text), first.model.eval()(images, text))


def to_released(name: str) -> str | None:
    """Our name of a weight as the released program calls it."""
    if "position" in name or name == "backbone.prompts.tokens":
        return None
    for ours, released in (
        ("backbone.tower.visual.", "backbone."),
        ("backbone.prompts.projection.", "backbone.prompt_proj."),
        ("backbone.taps.norms.", "backbone.ln_layers."),
        ("backbone.taps.matrices", "backbone.proj_layers"),
        ("queries.", "decode_head.q_projs."),
        ("aggregations.0.weights", "decode_head.weights_s1"),
        ("aggregations.1.weights", "decode_head.weights_s2"),
        ("decoders.", "decode_head.cascade_decoders."),
    ):
        if name.startswith(ours):
            name = released + name.removeprefix(ours)
            break
    parts = {
        ".mask_attention.query.": ".layers.2.multihead_attn.q.",
        ".mask_attention.key.": ".layers.2.multihead_attn.k.",
        ".attention.query.": ".multihead_attn.q.",
        ".attention.key.": ".multihead_attn.k.",
        ".attention.value.": ".multihead_attn.v.",
        ".attention.output.": ".multihead_attn.proj.",
        ".expand.": ".linear1.",
        ".contract.": ".linear2.",
        ".attention_norm.": ".norm2.",
        ".feedforward_norm.": ".norm3.",
    }
    for ours, released in parts.items():
        name = name.replace(ours, released)
    return name


def test_imported_embeddings_stand_in_for_a_text_tower(tmp_path: Path) -> None:
    import numpy as np

    rows = read_reference("eval")["text_emb"]
    np.save(tmp_path / "text.npy", rows)
    settings = {
        **TINY_SETTINGS,
        "data": {**TINY_SETTINGS["data"], "text_embeddings": str(tmp_path / "text.npy")},
    }
    checkpoint = load_checkpoint(import_reference("state", tmp_path, settings))
    assert checkpoint.text is not None
    assert np.array_equal(checkpoint.text.numpy(), rows)
    assert dataclasses.is_dataclass(checkpoint)
