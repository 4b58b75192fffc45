"""The built-in world: scenes, captions, its mini CLIP, and the models that the package carries."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from cascade_clip.checkpoints.checkpoint import load_checkpoint
from cascade_clip.config import DataConfig
from cascade_clip.data.registry import build_dataset, sandbox_vocabulary
from cascade_clip.data.samples import SegmentationFolder
from cascade_clip.errors import SettingError
from cascade_clip.evaluation.evaluator import evaluate
from cascade_clip.inference.loading import load_predictor
from cascade_clip.sandbox import pretrain as pretraining
from cascade_clip.sandbox.pretrain import (
    PretrainConfig,
    caption_loss,
    evaluate_presence,
    export_clip,
    pretrain,
    single_share,
    used_tokens,
)
from cascade_clip.sandbox.preview import export_world, preview_sheet
from cascade_clip.sandbox.scenes import (
    CLASS_NAMES,
    PALETTE,
    STUFF_NAMES,
    THING_NAMES,
    UNSEEN_NAMES,
    SceneConfig,
    choose_names,
    make_scene,
    make_single,
    phrase,
)
from cascade_clip.vocabulary import load_vocabulary


def test_the_world_is_as_rich_as_it_says() -> None:
    assert len(STUFF_NAMES) >= 10
    assert len(THING_NAMES) >= 14
    assert len(set(CLASS_NAMES)) == len(CLASS_NAMES) == len(set(PALETTE)) >= 24
    assert 5 <= len(UNSEEN_NAMES) <= 6
    assert set(UNSEEN_NAMES) & set(STUFF_NAMES) and set(UNSEEN_NAMES) & set(THING_NAMES)


@pytest.mark.parametrize("size", [64, 96, 128])
def test_scenes_are_a_function_of_seed_and_index(size: int) -> None:
    config = SceneConfig(size=size)
    first, again, other, next_one = (
        make_scene(*place, config) for place in ((0, 7), (0, 7), (1, 7), (0, 8))
    )
    assert first.image.shape == (size, size, 3) and first.mask.shape == (size, size)
    assert np.array_equal(first.image, again.image) and np.array_equal(first.mask, again.mask)
    assert not np.array_equal(first.image, other.image)
    assert not np.array_equal(first.image, next_one.image)


def test_every_class_occurs_and_every_pixel_has_a_label() -> None:
    seen: set[str] = set()
    for index in range(150):
        scene = make_scene(3, index)
        assert int(scene.mask.max()) < len(CLASS_NAMES)
        areas = np.bincount(scene.mask.ravel(), minlength=len(CLASS_NAMES))
        shown = {
            name
            for label, name in enumerate(CLASS_NAMES)
            if areas[label] >= SceneConfig().min_share * scene.mask.size
        }
        assert set(scene.present) == shown
        assert list(scene.present) == sorted(
            scene.present, key=lambda name: -areas[CLASS_NAMES.index(name)]
        )
        seen |= set(scene.present)
    assert seen == set(CLASS_NAMES)


def test_masks_follow_the_picture() -> None:
    """Without noise and light, the colour steps of a scene with one thing lie at the border of its
    mask."""
    config = SceneConfig(noise=0.0, light=0.0)
    near, far = [], []
    for index in range(40):
        scene = make_single(0, index, config)
        labels = scene.mask.astype(int)
        border = (np.diff(labels, axis=1) != 0)[:, 1:-1]
        if not border.any():
            continue
        step = np.abs(np.diff(scene.image.astype(int), axis=1)).sum(axis=2)[:, 1:-1]
        near.append(step[border].mean())
        far.append(step[~border].mean())
    assert len(near) > 10
    assert np.mean(near) > 4 * np.mean(far)


def test_captions_name_one_to_three_classes_that_are_there() -> None:
    rng = np.random.default_rng(0)
    counts = set()
    for index in range(200):
        scene = make_scene(0, index)
        caption = phrase(choose_names(scene.present, rng), rng)
        named = [name for name in CLASS_NAMES if name in caption]
        named = [
            name for name in named if not any(name != other and name in other for other in named)
        ]
        assert named and set(named) <= set(scene.present), caption
        counts.add(len(named))
    assert counts == {1, 2, 3}


def test_exported_world_is_a_data_set(tmp_path: Path) -> None:
    export_world(tmp_path, train=3, val=2, size=64, seed=4)
    vocabulary = load_vocabulary(str(tmp_path / "classes.txt"), str(tmp_path / "unseen.txt"))
    assert vocabulary.names == CLASS_NAMES and set(vocabulary.unseen) == set(UNSEEN_NAMES)
    data = SegmentationFolder(
        tmp_path / "images" / "train", tmp_path / "masks" / "train", vocabulary
    )
    scene = make_scene(4, 0, SceneConfig(size=64))
    sample = data.sample(0)
    assert np.array_equal(sample.labels.numpy(), scene.mask)
    assert np.array_equal(sample.image.permute(1, 2, 0).numpy(), scene.image)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    next(iter(before)).unlink()  # as after a run that was killed
    export_world(tmp_path, train=3, val=2, size=64, seed=4)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*.png")}


def test_preview(tmp_path: Path) -> None:
    preview_sheet(0, 2, 64).save(tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").width > 2 * 64


@pytest.mark.parametrize(
    ("progress", "share"), [(0.0, 1.0), (0.2, 1.0), (0.4, 0.625), (0.6, 0.25), (1.0, 0.25)]
)
def test_curriculum(progress: float, share: float) -> None:
    assert single_share(progress, (0.2, 0.6)) == pytest.approx(share)


def test_caption_loss_by_hand() -> None:
    """Two pictures and captions; both captions are true for picture 0."""
    images, captions = torch.eye(2), torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    true = torch.tensor([[True, True], [False, True]])
    loss = caption_loss(images, captions, torch.tensor(2.0).log(), torch.tensor(-1.0), true)
    logits = [1.0, 0.2, -1.0, 0.6]  # 2 * product - 1
    expected = (
        sum(
            np.log1p(np.exp(-sign * logit))
            for sign, logit in zip([1, 1, -1, 1], logits, strict=True)
        )
        / 2
    )
    assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_pretraining_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretraining, "evaluate_presence", lambda model: {})
    monkeypatch.setattr(pretraining, "used_tokens", lambda config: torch.arange(500))
    config = PretrainConfig(
        out=str(tmp_path / "whole"), steps=4, batch_size=4, save_every=2, workers=0
    )
    pretrain(config)

    step = pretraining._train_step

    def dies(*arguments: object) -> float:
        if (tmp_path / "part" / "state.pt").is_file():
            raise KeyboardInterrupt
        return step(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(pretraining, "_train_step", dies)
    part = dataclasses.replace(config, out=str(tmp_path / "part"))
    with pytest.raises(KeyboardInterrupt):
        pretrain(part)
    monkeypatch.setattr(pretraining, "_train_step", step)
    with pytest.raises(ValueError, match="other settings"):
        pretrain(dataclasses.replace(part, seed=1))
    pretrain(part)
    files = [tmp_path / name / "open_clip_model.safetensors" for name in ("whole", "part")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_exported_clip_keeps_the_tokens_that_count(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = open_clip.CLIP(**pretraining.ARCHITECTURE).eval()
    tokens = used_tokens(PretrainConfig())
    export_clip(model, tmp_path, tokens)
    loaded = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    table = loaded.token_embedding.weight
    assert int((table.abs().sum(dim=1) > 0).sum()) == len(tokens) < 500
    prompts = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(
        [f"a photo of a {name}" for name in CLASS_NAMES]
    )
    same = torch.nn.functional.cosine_similarity(
        loaded.encode_text(prompts), model.encode_text(prompts), dim=-1
    )
    assert float(same.min()) > 0.9999  # what float16 loses


def test_the_shipped_clip_knows_what_is_there() -> None:
    """Class presence on fresh scenes, seen and unseen alike, far above the share of scenes that
    show a class."""
    model = open_clip.create_model(
        f"local-dir:{Path(pretraining.__file__).parent / 'mini_clip'}"
    ).eval()
    found = evaluate_presence(model, count=200, seed=5)
    truth = np.mean(
        [
            len(make_scene(5, pretraining.FRESH + index, SceneConfig(size=64)).present)
            for index in range(50)
        ]
    ) / len(CLASS_NAMES)
    assert truth < 0.25
    assert found["all"] > 0.6
    assert found["unseen"] > 0.5


@pytest.mark.parametrize("name", ["mini", "mini-last"])
def test_shipped_models_segment_the_world(name: str) -> None:
    """Not trained on these scenes, and on no mask of an unseen class: at least three times better
    than chance."""
    predictor = load_predictor(name, device="cpu")
    assert predictor.vocabulary == sandbox_vocabulary()
    report = evaluate(predictor, build_dataset(DataConfig(name="sandbox", seed=6, limit=16)))
    chance = 1 / len(CLASS_NAMES)
    assert report.scores.seen_miou is not None and report.scores.seen_miou > 3 * chance
    assert report.scores.pixel_accuracy is not None and report.scores.pixel_accuracy > 3 * chance
    stored = load_checkpoint(name)
    assert stored.record["protocol"] == "inductive"
    assert stored.config.model.clip.name == "package:mini_clip"


def test_shipped_weights_are_small() -> None:
    folder = Path(pretraining.__file__).parent
    size = sum(
        path.stat().st_size
        for name in ("mini_clip", "mini", "mini-last")
        for path in (folder / name).iterdir()
    )
    assert size < 16 * 2**20


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps and save_every must be at least 1"),
        ({"batch_size": 1}, "batch_size at least 2"),
        ({"batch_size": 10**20}, "below 2\\^20"),
        ({"workers": -1}, "workers must be 0 or more"),
        ({"learning_rate": 0.0}, "learning_rate must lie in 0..1"),
        ({"seed": -1}, "seed in 0.."),
        ({"curriculum": (0.5, 0.2)}, "two rising parts"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        PretrainConfig(**settings)


def test_the_package_exports_functions_and_not_their_modules() -> None:
    """The import of a module sets its name in the package, over a function of that name."""
    from cascade_clip.sandbox import pretrain_clip, preview_sheet

    assert callable(pretrain_clip) and callable(preview_sheet)
    with pytest.raises(SettingError, match="seed of scenes must be 0 or more"):
        make_scene(-1, 0)
