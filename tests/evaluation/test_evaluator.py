"""Evaluation is the predictor over a data set, counted once; the report says what it rests on."""

from __future__ import annotations

import dataclasses
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cascade_clip.cli.main import main
from cascade_clip.cli.options import FolderOptions, InferenceOptions
from cascade_clip.config import DataConfig, InferenceConfig
from cascade_clip.data.registry import SandboxScenes, build_dataset, describe_data
from cascade_clip.data.samples import LabelledFiles, Sample
from cascade_clip.evaluation.evaluator import default_calibration, evaluate
from cascade_clip.evaluation.fingerprints import hash_checkpoint, hash_dataset
from cascade_clip.inference.loading import load_predictor
from cascade_clip.inference.predictor import Predictor
from cascade_clip.vocabulary import Vocabulary, load_vocabulary


@pytest.fixture
def predictor(tiny_folder: Path) -> Predictor:
    return load_predictor(tiny_folder, device="cpu")


def test_report_equals_a_count_by_hand(predictor: Predictor) -> None:
    dataset = SandboxScenes(3, seed=0, size=64)
    steps: list[tuple[int, int]] = []
    report = evaluate(
        predictor,
        dataset,
        calibration=0.0,
        progress=lambda done, total: steps.append((done, total)),
    )
    target = predictor.bind(dataset.vocabulary)
    predictions = np.stack(
        [
            predictor.label_map(dataset.sample(index).image, target).labels.numpy()
            for index in range(3)
        ]
    )
    truth = np.stack([dataset.sample(index).labels.numpy() for index in range(3)])
    assert report.scores.pixel_accuracy == pytest.approx(float((predictions == truth).mean()))
    for index, iou in enumerate(report.scores.iou):
        both, either = (
            ((predictions == index) & (truth == index)).sum(),
            ((predictions == index) | (truth == index)).sum(),
        )
        assert np.isnan(iou) if either == 0 else iou == pytest.approx(both / either)
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert report.images == 3


def test_embeddings_can_stand_in_for_the_text_tower(predictor: Predictor) -> None:
    dataset = SandboxScenes(1, seed=0, size=64)
    rows = torch.randn(len(dataset.vocabulary), 32)
    given, again, own = (
        evaluate(predictor, dataset, text=text).counts for text in (rows, rows, None)
    )
    assert np.array_equal(given, again)  # so that a difference means something
    assert not np.array_equal(given, own)


@pytest.mark.parametrize(
    ("protocol", "expected"), [("inductive", 0.1), ("transductive", 0.0), ("supervised", 0.0)]
)
def test_calibration_follows_the_protocol(
    predictor: Predictor, protocol: str, expected: float
) -> None:
    checkpoint = dataclasses.replace(predictor.checkpoint, record={"protocol": protocol})
    assert default_calibration(checkpoint) == expected


def test_the_report_says_its_assumptions(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "evaluate",
        str(tiny_folder),
        "--data",
        "sandbox",
        "--limit",
        "2",
        "--calibration",
        "0.2",
        "--out",
        str(tmp_path / "report.json"),
    ]
    assert main(words) == 0
    out = " ".join(capsys.readouterr().out.split())
    for text in (
        "2 images",
        "star (unseen)",
        "hIoU",
        "all 26 class names compete",
        "one confusion matrix",
        "training protocol of the model: inductive",
    ):
        assert text in out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["images"] == 2
    assert len(report["classes"]) == 26
    assert set(report["summary"]) == {"seen_miou", "unseen_miou", "hiou", "miou", "pixel_accuracy"}


def test_sandbox_as_a_data_set() -> None:
    dataset = build_dataset(
        DataConfig(name="sandbox", seed=4, limit=5, size=64, unseen="grass, star")
    )
    assert len(dataset) == 5
    assert dataset.vocabulary.unseen == ("grass", "star")
    sample = dataset.sample(4)
    assert sample.image.shape == (3, 64, 64) and sample.labels.shape == (64, 64)
    with pytest.raises(IndexError, match="scene 5 is not among the 5"):
        dataset.sample(5)
    with pytest.raises(ValueError, match="unicorn"):
        build_dataset(DataConfig(name="sandbox", unseen="unicorn"))


def test_unseen_names_of_the_sandbox_come_from_a_file_too(tmp_path: Path) -> None:
    (tmp_path / "unseen, of mine.txt").write_text("grass\nstar\n")
    dataset = build_dataset(
        DataConfig(name="sandbox", unseen=str(tmp_path / "unseen, of mine.txt"))
    )
    assert dataset.vocabulary.unseen == ("grass", "star")
    assert build_dataset(DataConfig(name="sandbox", unseen="none")).vocabulary.unseen == ()
    # as older checkpoints store it
    assert len(build_dataset(DataConfig(name="sandbox", ignore=255, limit=4))) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"name": "sandbox", "images": "i", "masks": "m", "classes": "c"},
            r"data\.images, data\.masks, data\.classes cannot .* sandbox",
        ),
        (
            {"name": "sandbox", "root": "r", "split": "val", "ignore": 0},
            r"data\.root, data\.split, data\.ignore cannot be set",
        ),
        (
            {"name": "folder", "root": "r", "images": "i", "masks": "m", "classes": "a, b"},
            r"^data\.root cannot be set .* folder",
        ),
        (
            {"name": "folder", "split": "val", "images": "i", "masks": "m", "classes": "a, b"},
            r"^data\.split cannot be set",
        ),
        ({"name": "voc", "images": "i"}, r"data\.images cannot be set with data\.name voc"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_dataset(DataConfig(**settings), "val")


def test_across_data_sets_every_class_counts_as_seen_for_calibration(predictor: Predictor) -> None:
    """The published cross-data-set figures subtract nothing; on the training's own names the
    protocol decides."""
    dataset = SandboxScenes(1, seed=0, size=64)
    assert evaluate(predictor, dataset).calibration == 0.0
    dataset.vocabulary = predictor.vocabulary
    dataset.sample = lambda index: Sample(
        torch.zeros(3, 64, 64, dtype=torch.uint8), torch.zeros(64, 64, dtype=torch.int64), Path("x")
    )  # type: ignore[method-assign]
    assert evaluate(predictor, dataset).calibration == 0.1


def test_the_split_of_the_model_holds_where_the_data_set_names_none(predictor: Predictor) -> None:
    dataset = SandboxScenes(1, seed=0, size=64)
    dataset.vocabulary = dataset.vocabulary.with_unseen([])
    report = evaluate(predictor, dataset)  # the model holds out grass
    assert [
        name for name, seen in zip(report.scores.names, report.scores.seen, strict=True) if not seen
    ] == ["grass"]
    assert any("1 of them count as unseen: grass" in line for line in report.assumptions)


def test_the_split_of_the_model_holds_in_any_case_of_letters(predictor: Predictor) -> None:
    dataset = SandboxScenes(1, seed=0, size=64)
    names = tuple(name.title() for name in dataset.vocabulary.names)
    dataset.vocabulary = Vocabulary(
        names, tuple((name,) for name in names), dataset.vocabulary.colors
    )
    report = evaluate(predictor, dataset)
    assert [
        name for name, seen in zip(report.scores.names, report.scores.seen, strict=True) if not seen
    ] == ["Grass"]
    assert "1 of them count as unseen: Grass" in report.assumptions


def test_unseen_classes_that_the_model_was_trained_on_are_named(predictor: Predictor) -> None:
    """The model saw masks of cat and dog; grass it did not."""
    dataset = SandboxScenes(1, seed=0, size=64)
    names = ("Dog", "grass", "tree", "cat", *dataset.vocabulary.names[4:])
    names = tuple(dict.fromkeys([*names, *(f"thing {number}" for number in range(30))]))[
        : len(dataset.vocabulary)
    ]
    dataset.vocabulary = Vocabulary(
        names, tuple((name,) for name in names), dataset.vocabulary.colors, ("Dog", "grass", "tree")
    )
    line = "1 of these unseen classes had masks in the model's own training: Dog"
    assert line in evaluate(predictor, dataset).assumptions
    supervised = dataclasses.replace(predictor.checkpoint, record={"protocol": "supervised"})
    predictor.checkpoint = supervised
    assert (
        "2 of these unseen classes had masks in the model's own training: Dog, grass"
        in evaluate(predictor, dataset).assumptions
    )
    dataset.vocabulary = dataset.vocabulary.with_unseen(["tree"])
    assert not any("own training" in text for text in evaluate(predictor, dataset).assumptions)


def test_none_unseen_counts_every_class_as_seen(tiny_folder: Path, tmp_path: Path) -> None:
    values = run_words(tiny_folder, tmp_path / "a.json", "--unseen", "none")
    assert all(entry["seen"] for entry in values["classes"])  # although the model holds out grass
    assert values["summary"]["unseen_miou"] is None
    assert "0 of them count as unseen" in values["assumptions"]


def run_words(folder: Path, out: Path, *words: str) -> dict[str, Any]:
    """The report of the command with some more words."""
    assert (
        main(
            [
                "evaluate",
                str(folder),
                "--data",
                "sandbox",
                "--limit",
                "1",
                "--out",
                str(out),
                *words,
            ]
        )
        == 0
    )
    values: dict[str, Any] = json.loads(out.read_text())
    return values


def test_flags_replace_the_settings_of_the_checkpoint(tiny_folder: Path, tmp_path: Path) -> None:
    plain = run_words(tiny_folder, tmp_path / "a.json")
    assert (
        plain["inference"]["window"],
        plain["inference"]["stride"],
        plain["inference"]["flip"],
    ) == (64, 43, False)
    assert (
        "images at their own size, windows of 64 pixels every 43, fp32; no test-time augmentation"
        in plain["assumptions"]
    )
    found = run_words(
        tiny_folder,
        tmp_path / "b.json",
        "--window",
        "48",
        "--stride",
        "40",
        "--flip",
        "--scales",
        "0.5, 1",
        "--precision",
        "bf16",
    )
    assert [
        found["inference"][name] for name in ("window", "stride", "flip", "scales", "precision")
    ] == [48, 40, True, [0.5, 1.0], "bf16"]
    assert any(
        "windows of 48 pixels every 40, bf16; test-time augmentation: scales 0.5, 1, mirrored too"
        in line
        for line in found["assumptions"]
    )
    assert found["confusion"] != plain["confusion"]


def test_clip_alone_is_evaluated_too(tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    words = [
        "evaluate",
        "clip:mini",
        "--data",
        "sandbox",
        "--limit",
        "1",
        "--against",
        "clip:mini",
        "--calibration",
        "0.1",
    ]
    assert main([*words, "--out", str(out)]) == 0
    values = json.loads(out.read_text())
    assert values["checkpoint"]["name"] == "clip:mini" and values["checkpoint"]["sha256"] == ""
    assert len(values["checkpoint"]["clip_sha256"]) == 64
    assert "training protocol of the model: training-free" in values["assumptions"]
    assert any(
        line.startswith("0.1 subtracted from the scores of seen classes: of none")
        for line in values["assumptions"]
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scales", "1; 2"], "--scales must be numbers separated by commas"),
        (["--scales", "0"], "scales must be positive"),
        (["--window", "16"], r"stride must lie in 1..window \(16\)"),
        (["--window", "0"], "window must be at least 1, got 0"),
        (["--stride", "0"], r"stride must lie in 1..window \(64\), got 0"),
        (["--threshold", "nothing"], "threshold"),
        (["--pictures", "-1", "--out", "report"], "0 or more"),
    ],
)
def test_wrong_flags_are_refused(
    tiny_folder: Path,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", str(tiny_folder), "--data", "sandbox", "--limit", "1", *words]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_pixels_without_a_class_of_the_data_set_are_errors(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """Background words and a threshold take pixels away from the classes; the last column of the
    matrix counts them."""
    nothing = run_words(tiny_folder, tmp_path / "a.json", "--threshold", "1")
    confusion = np.array(nothing["confusion"])
    assert confusion[:, -1].sum() == confusion.sum() == 128 * 128
    assert nothing["pixel_accuracy"] == 0.0
    assert any(
        "background policy: threshold 1; a labelled pixel that gets no class" in line
        for line in nothing["assumptions"]
    )
    words = run_words(tiny_folder, tmp_path / "b.json", "--background", "scenery")
    confusion = np.array(words["confusion"])
    assert confusion.shape == (26, 27) and confusion.sum() == 128 * 128
    assert confusion[:, -1].sum() > 0
    assert any(
        "background policy: words (cloud, wall, ceiling" in line for line in words["assumptions"]
    )


def test_a_threshold_of_0_is_a_threshold() -> None:
    stored = InferenceConfig(threshold=0.5, background="sky")
    assert InferenceOptions(threshold=0).apply(stored).threshold == 0
    assert InferenceOptions().apply(stored) == stored


def test_none_switches_off_the_policy_of_a_checkpoint(tiny_folder: Path, tmp_path: Path) -> None:
    stored = InferenceConfig(threshold=0.5, background="sky")
    assert InferenceOptions(threshold="none").apply(stored) == InferenceConfig(background="sky")
    assert InferenceOptions(background="None").apply(stored) == InferenceConfig(threshold=0.5)
    values = run_words(
        tiny_folder, tmp_path / "a.json", "--background", "none", "--threshold", "none"
    )
    assert (values["inference"]["background"], values["inference"]["threshold"]) == ("", None)
    assert "no background policy: every pixel gets a class name" in values["assumptions"]


def test_the_report_says_where_model_and_data_come_from(tiny_folder: Path, tmp_path: Path) -> None:
    values = run_words(tiny_folder, tmp_path / "a.json", "--seed", "7")
    assert values["checkpoint"] == {
        "name": str(tiny_folder),
        "sha256": hash_checkpoint(tiny_folder),
        "clip_sha256": "",
    }
    assert values["data"]["sha256"] == hash_dataset(SandboxScenes(1, 7, 128))
    assert (values["data"]["settings"]["name"], values["data"]["settings"]["seed"]) == (
        "sandbox",
        7,
    )
    assert "1 scenes of the built-in world, seed 7" in values["assumptions"]
    assert values["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert values["inference"]["templates"] == ["a photo of a {}"]


def test_only_the_wished_number_of_images_is_kept(predictor: Predictor) -> None:
    dataset = SandboxScenes(5, seed=0, size=64)
    report = evaluate(predictor, dataset, keep=1)
    single = [evaluate(predictor, Only(dataset, index), keep=1).worst[0].miou for index in range(5)]
    assert [record.index for record in report.worst] == [int(np.argmin(single))]
    assert report.worst[0].miou == min(single) and report.best[0].miou == max(single)
    assert report.best[0].name == f"scene-0-{report.best[0].index}"
    assert evaluate(predictor, dataset).worst == ()


class Only:
    """One image of a data set."""

    def __init__(self, dataset: SandboxScenes, index: int) -> None:
        self.vocabulary, self.dataset, self.index = dataset.vocabulary, dataset, index

    def __len__(self) -> int:
        return 1

    def sample(self, index: int) -> Sample:
        return self.dataset.sample(self.index + index)


def test_images_without_labels_are_no_worst_images(predictor: Predictor) -> None:
    dataset = SandboxScenes(2, seed=0, size=64)
    empty = Sample(
        torch.zeros(3, 64, 64, dtype=torch.uint8), torch.full((64, 64), -1), Path("empty")
    )
    scene = dataset.sample(1)
    dataset.sample = lambda index: (empty, scene)[index]  # type: ignore[method-assign]
    report = evaluate(predictor, dataset, keep=2)
    assert [record.index for record in report.worst + report.best] == [1]
    assert report.counts.sum() == 64 * 64


def test_a_report_file_is_whole_or_not_there(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = evaluate(predictor, SandboxScenes(1, seed=0, size=64))
    path = report.save(tmp_path / "report.json")
    before = path.read_text()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        report.save(path)
    assert path.read_text() == before
    assert [found.name for found in tmp_path.iterdir()] == ["report.json"]


def test_flags_say_which_data() -> None:
    assert FolderOptions(data="voc", root="r", split="train", limit=3).to_config() == DataConfig(
        name="voc", root="r", split="train", limit=3, seed=2
    )
    assert FolderOptions(data="sandbox").to_config().limit == 300
    assert FolderOptions(data="sandbox", limit=4, seed=9).to_config() == DataConfig(
        name="sandbox", limit=4, seed=9
    )
    assert FolderOptions(images="i", masks="m", classes="c").to_config().limit == 0


def test_a_named_data_set_is_looked_for_below_its_root(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["evaluate", str(tiny_folder), "--data", "voc", "--root", str(tmp_path / "here")]) == 2
    )
    assert str(tmp_path / "here") in capsys.readouterr().err


def write_folder(folder: Path, count: int, mask: Callable[[int], np.ndarray]) -> list[str]:
    """Grey images of 64 pixels with masks, and the flags that name them."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for index in range(count):
        Image.new("RGB", (64, 64), (90, 90, 90)).save(folder / "images" / f"{index}.png")
        Image.fromarray(mask(index)).save(folder / "masks" / f"{index}.png")
    return ["--images", str(folder / "images"), "--masks", str(folder / "masks")]


@pytest.mark.parametrize(
    ("limit", "line"),
    [
        (0, "all 3 images"),
        (2, "the first 2 of 3 images, as a limit was set"),
        (3, "all 3 images"),
        (9, "all 3 images"),
    ],
)
def test_a_limit_is_named_where_it_cuts(
    limit: int, line: str, predictor: Predictor, tmp_path: Path
) -> None:
    write_folder(tmp_path, 3, lambda index: np.full((64, 64), index, dtype=np.uint8))
    config = DataConfig(
        images=str(tmp_path / "images"),
        masks=str(tmp_path / "masks"),
        classes="cat, dog, grass",
        limit=limit,
    )
    assert line in evaluate(predictor, build_dataset(config)).assumptions


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (
            "cat\ndog\n",
            (
                "0 images, 2 class names, none unseen; mask values counted from 0 in the order of"
                " the list, value 255 ignored"
            ),
        ),
        ("0 null\n7 cat\n", "mask values as the class list says, values 0, 255 ignored"),
        (
            "0 0 0 null\n1 2 3 cat\n",
            "none unseen; mask colours as the class list says, colour #000000 ignored",
        ),
        ("1 2 3 cat\n4 5 6 dog\n", "mask colours as the class list says, no colour is ignored"),
        (
            (
                '{"names": ["cat"], "raw_values": {"0": null, "1": "cat"}, "mask_colors":'
                ' {"#ffffff": "cat", "#000000": null}, "ignore": 9}'
            ),
            (
                "mask values as the class list says, values 0, 9 ignored; mask colours as the class"
                " list says, colour #000000 ignored"
            ),
        ),
    ],
)
def test_what_was_inferred_of_the_masks_is_said(lines: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / ("list.json" if lines.startswith("{") else "list.txt")
    path.write_text(lines)
    assert describe_data(LabelledFiles([], load_vocabulary(str(path)))).endswith(text)


def test_the_command_says_what_it_found(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = write_folder(tmp_path / "data", 1, lambda _: np.full((64, 64), 255, dtype=np.uint8))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of matplotlib, without a class to draw
        assert (
            main(
                [
                    "evaluate",
                    str(tiny_folder),
                    *folders,
                    "--classes",
                    "cat, dog",
                    "--out",
                    str(tmp_path / "report"),
                ]
            )
            == 0
        )
    out = " ".join(capsys.readouterr().out.split())
    assert (
        "1 images, 2 class names, none unseen; mask values counted from 0 in the order of the list,"
        " value 255 ignored" in out
    )


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("file", "file is a file and no folder"),
        ("file/below/a.json", "file is a file and no folder"),
        ("folder.json", "is a folder"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_first(
    out: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.json").mkdir()
    # before the model is looked for
    assert main(["evaluate", "nowhere", "--data", "sandbox", "--out", str(tmp_path / out)]) == 2
    assert message in capsys.readouterr().err
