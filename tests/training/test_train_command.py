"""`cascade-clip train` as it is typed: what lies in the run folder, the ways of showing it, looking
ahead, and starting from weights."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from cascade_clip.checkpoints.checkpoint import load_checkpoint, read_record
from cascade_clip.cli.main import main
from cascade_clip.cli.train import TrainingSession, TrainOptions, start_from, train
from cascade_clip.config import AugmentConfig, Config, ModelConfig
from cascade_clip.config.serialization import config_from_dict, config_to_dict
from cascade_clip.data.registry import build_dataset
from cascade_clip.results.segmentation import Segmentation
from cascade_clip.training.dry_run import count_images, measure_activations
from cascade_clip.training.fit import fit, prepare
from cascade_clip.training.prediction_previews import PreviewWriter, Row, draw_preview
from cascade_clip.training.progress import read_metrics
from cascade_clip.training.provenance import describe_batch, read_git
from cascade_clip.training.run_report import build_run_page, changed_settings
from cascade_clip.training.task import SegmentationTask
from tiny_models import TINY_MODEL

NAMES = ("cat", "dog", "grass", "sky")


def write_data(root: Path, names: tuple[str, ...] = NAMES, count: int = 6) -> Path:
    """Images with masks of some classes in blocks, the uppermost rows without a label."""
    generator = np.random.default_rng(len(names))
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for index in range(count):
        mask = (
            generator.integers(0, len(names), (3, 4)).repeat(24, 0).repeat(24, 1).astype(np.uint8)
        )
        mask[:4] = 255
        pixels = (mask[..., None] * 50 + generator.integers(0, 50, (*mask.shape, 3))).astype(
            np.uint8
        )
        Image.fromarray(mask).save(root / "masks" / f"{index}.png")
        Image.fromarray(pixels).save(root / "images" / f"{index}.png")
    (root / "classes.txt").write_text("\n".join(names))
    return root


def settings(
    data: Path, unseen: str = "sky", model: dict[str, Any] | None = None, **train: Any
) -> dict[str, Any]:
    folders = {
        "images": str(data / "images"),
        "masks": str(data / "masks"),
        "classes": str(data / "classes.txt"),
        "unseen": unseen,
        "workers": 0,
    }
    return {
        "model": {**TINY_MODEL, **(model or {})},
        "data": folders,
        "evaluation": {**folders, "limit": 3},
        "train": {
            "steps": 4,
            "batch_size": 4,
            "micro_batch": 2,
            "augment": {"scale": [128, 64], "crop": 64},
            "optimizer": {"warmup_steps": 2, "learning_rate": 1e-3},
            "device": "cpu",
            "save_every": 2,
            "log_every": 1,
            **train,
        },
        "inference": {"window": 64, "stride": 48},
    }


def write_settings(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("command-data"))


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whole run, in quiet mode."""
    folder = tmp_path_factory.mktemp("command")
    config = write_settings(folder / "settings.yaml", settings(data, preview_every=2))
    assert main(["train", str(config), "--out", str(folder / "run"), "--quiet"]) == 0
    return folder / "run"


def test_a_run_folder_holds_what_the_docs_say(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert names >= {
        "config.yaml",
        "run.json",
        "log.txt",
        "metrics.csv",
        "tensorboard",
        "previews",
        "model",
        "report.json",
    }
    assert names >= {"evaluation.html", "report.html"}
    assert sorted(path.name for path in (run / "previews").iterdir()) == [
        "step-000002.png",
        "step-000004.png",
    ]
    with Image.open(run / "previews" / "step-000004.png") as preview:
        assert preview.width > 900
    assert [row["step"] for row in read_metrics(run / "metrics.csv")] == [1, 2, 3, 4]


def test_provenance_is_in_folder_and_checkpoint(run: Path) -> None:
    found = json.loads((run / "run.json").read_text())
    assert found["config"] == yaml.safe_load((run / "config.yaml").read_text())
    assert found["seed"] == 0
    assert found["split"] == {"seen": ["cat", "dog", "grass"], "unseen": ["sky"]}
    assert found["vocabulary"]["names"] == list(NAMES)
    assert found["batch"] == {"devices": 1, "per_device": 2, "accumulation": 2, "effective": 4}
    assert re.fullmatch(r"[0-9a-f]{64}", found["data"]["sha256"])
    assert found["data"]["images"] == 6
    (start,) = found["starts"]
    assert start["command"]
    assert (
        start["versions"]["torch"] == torch.__version__.partition("+")[0]
        or start["versions"]["torch"]
    )
    assert start["hardware"]["cpu"]
    record = read_record(run / "model")
    assert record["run"] == {
        name: value
        for name, value in found.items()
        if name not in ("config", "vocabulary", "split")
    }
    assert (
        record["evaluation"]["summary"] == json.loads((run / "report.json").read_text())["summary"]
    )


def test_the_log_has_every_message(run: Path) -> None:
    lines = (run / "log.txt").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [A-Z]+ ", line) for line in lines)
    text = "\n".join(lines)
    for wanted in ("command: ", "step 4/4 loss ", "step-000002.png", "3 images: S ", "report.html"):
        assert wanted in text


def test_the_report_is_one_file(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert page.count("data:image/svg+xml;base64,") == 3
    assert page.count("data:image/jpeg;base64,") == 2
    assert re.findall(r'(?:src|href)="(?!data:)([^"]*)"', page) == ["evaluation.html"]
    assert "<script" not in page
    loss = read_metrics(run / "metrics.csv")[-1]["loss"]
    summary = json.loads((run / "report.json").read_text())["summary"]
    for wanted in (
        f"{loss:.4g}",
        f"{100 * summary['pixel_accuracy']:.2f}",
        "4 of 4 steps",
        "train.optimizer.learning_rate",
        "0.001",
    ):
        assert wanted in page
    assert "train.log_every" in page  # 1, the default is 10
    assert "train.seed" not in page  # the default


def test_the_report_of_a_run_that_has_only_begun(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no run"):
        build_run_page(tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config_to_dict(Config())))
    page = build_run_page(tmp_path)
    assert "0 of 20,000 steps" in page
    assert "data:image" not in page


def test_changed_settings() -> None:
    config = config_from_dict(
        Config, {"train": {"steps": 7}, "evaluation": {"limit": 3}, "model": {"stages": [[12]]}}
    )
    assert changed_settings(config) == [
        ("model.stages", "[[12]]"),
        ("evaluation.limit", "3"),
        ("train.steps", "7"),
    ]


def test_previews_leave_the_weights_alone(data: Path, tmp_path: Path) -> None:
    """With dropout, bit for bit: neither the random state nor the modes of the parts change."""
    model = {
        "prompts": {"tokens": 3, "dropout": 0.1},
        "decoder": {"heads": 4, "feedforward": 128, "dropout": 0.1},
    }
    config = config_from_dict(Config, settings(data, model=model, steps=3))
    fit(config, tmp_path / "without")
    modes: list[list[bool]] = []
    states: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Watched(PreviewWriter):
        def predict(self, checkpoint: Any, device: Any) -> Any:
            torch.rand(3)  # as a model would that draws in inference too
            return super().predict(checkpoint, device)

        def write(self, out: Path, checkpoint: Any, device: Any, step: int) -> Path:
            before, random = (
                [part.training for part in checkpoint.model.modules()],
                torch.get_rng_state(),
            )
            path = super().write(out, checkpoint, device, step)
            modes.extend([before, [part.training for part in checkpoint.model.modules()]])
            states.append((random, torch.get_rng_state()))
            return path

    fit(config, tmp_path / "with", callbacks=[Watched(build_dataset(config.data), 1, images=2)])
    assert len(list((tmp_path / "with" / "previews").iterdir())) == 3
    assert modes[0] == modes[1]
    assert any(modes[0])
    assert all(torch.equal(*pair) for pair in states)
    first, second = (
        load_checkpoint(tmp_path / name / "model").model.state_dict()
        for name in ("without", "with")
    )
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_how_often_previews_are_written(data: Path, tmp_path: Path) -> None:
    config = config_from_dict(Config, settings(data))
    dataset = build_dataset(config.data)
    written: list[int] = []

    class Counted(PreviewWriter):
        def write(self, out: Path, checkpoint: Any, device: Any, step: int) -> Path:
            written.append(step)
            return out

    def steps(every: int | None, total: int, first_process: bool = True) -> list[int]:
        from types import SimpleNamespace

        written.clear()
        task = SimpleNamespace(checkpoint=None, device=torch.device("cpu"))
        for step in range(1, total + 1):
            trainer = SimpleNamespace(
                global_step=step,
                max_steps=total,
                is_global_zero=first_process,
                default_root_dir=str(tmp_path),
            )
            Counted(dataset, every).on_train_batch_end(trainer, task, None, None, 0)
        return list(written)

    assert steps(None, 40) == list(range(4, 41, 4))  # a tenth of the run
    assert steps(15, 40) == [15, 30, 40]  # and the last
    assert steps(0, 40) == []
    assert steps(15, 40, first_process=False) == []
    assert PreviewWriter(dataset, images=3).places == [0, 2, 4]
    assert PreviewWriter(dataset, images=9).places == [0, 1, 2, 3, 4, 5]


def test_a_preview_counts_labelled_pixels() -> None:
    colors = ((255, 0, 0), (0, 255, 0))
    truth = Segmentation(np.array([[0, 0, 1], [1, -1, -1]]), ("cat", "dog"), colors)
    prediction = Segmentation(np.array([[0, 1, 1], [1, 0, 1]]), ("cat", "dog"), colors)
    row = Row(np.zeros((2, 3, 3), np.uint8), truth, prediction)
    assert row.accuracy == 0.75
    legend = draw_preview([row], ["dog"], "step 1").axes[3].get_legend()
    assert legend is not None
    assert legend.get_title().get_text() == "75 % of the pixels right"
    # dog covers half of the prediction
    assert [text.get_text() for text in legend.get_texts()] == ["dog *", "cat"]
    found = [patch.get_facecolor()[:3] for patch in legend.get_patches()]  # type: ignore[attr-defined]
    assert found == [(0, 1, 0), (1, 0, 0)]
    unlabelled = dataclasses.replace(
        row, truth=Segmentation(np.full((2, 3), -1), ("cat", "dog"), colors)
    )
    assert unlabelled.accuracy is None


def test_json_lines(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_settings(
        tmp_path / "settings.yaml", settings(data, log_every=2, preview_every=3)
    )
    assert main(["train", str(config), "--out", str(tmp_path / "run"), "--json-lines"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    shown = [event["event"] for event in events if event["event"] != "message"]
    assert shown == [
        "start",
        "step",
        "preview",
        "step",
        "preview",
        "wrote",
        "evaluation",
        "wrote",
        "end",
    ]
    losses = [event["loss"] for event in events if event["event"] == "step"]
    assert losses == pytest.approx(
        [row["loss"] for row in read_metrics(tmp_path / "run" / "metrics.csv")]
    )
    assert main(["train", str(config), "--out", str(tmp_path / "run"), "--json-lines"]) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out)["event"] == "error"
    assert "--resume" in captured.err


def test_quiet_shows_the_last_lines(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_settings(tmp_path / "settings.yaml", settings(data, steps=1))
    assert main(["train", str(config), "--out", str(tmp_path / "run"), "--quiet"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0] == f"wrote {tmp_path / 'run' / 'model'}"
    assert re.fullmatch(r"3 images: S \S+  U \S+  hIoU \S+  mIoU \S+  pAcc \S+", lines[1])
    assert lines[2:] == [f"wrote {tmp_path / 'run' / 'report.html'}"]
    assert captured.err == ""


def test_dry_run(data: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its one step is the first one of the run; it writes nothing."""
    config = write_settings(tmp_path / "settings.yaml", settings(data))
    words = ["train", str(config), "--out", str(tmp_path / "run"), "--dry-run"]
    assert main(words) == 0
    assert not (tmp_path / "run").exists()
    text = capsys.readouterr().out
    loss = read_metrics(run / "metrics.csv")[0]["loss"]
    assert f"loss {loss:.4f}, " in text
    checkpoint = load_checkpoint(run)
    trained = sum(value.numel() for value in checkpoint.model.parameters() if value.requires_grad)
    assert f"{trained:,} trained\n" in text
    for wanted in (
        "4 images = 1 devices x 2 at once x 2 passes",
        "4 steps, 2.67 epochs",
        "6 images, 3 classes seen, 1 unseen",
    ):
        assert wanted in text
    assert main([*words, "--json-lines"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["event"] == "dry_run"
    assert found["loss"] == pytest.approx(loss, rel=1e-6)
    assert found["memory"]["gradients"] == 4 * trained
    assert found["memory"]["optimizer"] == 8 * trained
    assert found["counts"]["per_class"]["sky"] == sum(
        (np.array(Image.open(path)) == 3).any() for path in (data / "masks").iterdir()
    )
    assert found["cost"]["trained"] == trained


def test_the_step_of_a_dry_run_is_the_first_of_the_run(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where crops are drawn again, and where the inductive half with a batch of its own comes
    first."""
    train = {
        "augment": {"scale": [128, 64], "crop": 48, "largest_share": 0.3},
        "protocol": "transductive",
        "first_batch_size": 2,
    }
    values = settings(data)
    values["train"] |= train
    config = write_settings(tmp_path / "settings.yaml", values)
    assert (
        main(["train", str(config), "--out", str(tmp_path / "run"), "--dry-run", "--json-lines"])
        == 0
    )
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["epochs"] == pytest.approx((4 * 2 + 4 * 4) / 6)
    fit(config_from_dict(Config, values), tmp_path / "run")
    first = read_metrics(tmp_path / "run" / "stage1" / "metrics.csv")[0]
    assert found["loss"] == pytest.approx(first["loss"], rel=1e-6)


def test_early_errors_are_events_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(
            [
                "train",
                "--out",
                str(tmp_path / "x"),
                "--json-lines",
                "--init-from",
                str(tmp_path / "nowhere"),
            ]
        )
        == 2
    )
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["error"] and "nowhere" in events[0]["text"]


def test_dry_run_of_both_stages(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_settings(tmp_path / "settings.yaml", settings(data, protocol="transductive"))
    assert main(["train", str(config), "--out", str(tmp_path / "run"), "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "2 x 4 steps (inductive half, then self-training), 5.33 epochs" in text


def test_activations_grow_with_the_images_at_once(data: Path) -> None:
    config = config_from_dict(Config, settings(data))
    checkpoint = prepare(config, build_dataset(config.data))
    task = SegmentationTask.of(checkpoint)
    images, labels = torch.randn(4, 3, 64, 64), torch.randint(0, 4, (4, 64, 64))
    one, four = (measure_activations(task, images[:count], labels[:count]) for count in (1, 4))
    assert 2.5 < four / one <= 4.5
    assert one > 0


def test_images_are_counted_per_class(data: Path) -> None:
    dataset = build_dataset(config_from_dict(Config, settings(data)).data)
    found = count_images(dataset)
    masks = [np.array(Image.open(data / "masks" / f"{index}.png")) for index in range(6)]
    assert found.per_class == {
        name: sum(int((mask == value).any()) for mask in masks) for value, name in enumerate(NAMES)
    }
    assert (found.images, found.looked_at, found.seen, found.unseen) == (6, 6, 3, 1)


def test_other_data_and_classes_start_from_a_checkpoint(run: Path, tmp_path: Path) -> None:
    """Weights, model and inference settings are the checkpoint's; the class names are the new
    ones."""
    other = write_data(tmp_path / "other", ("tree", "road", "cat", "lamp", "door", "wall"))
    values = settings(other, unseen="lamp", steps=1, preview_every=0)
    values.pop("model")
    values.pop("inference")
    values["train"]["optimizer"] = {"learning_rate": 1e-30}  # nothing moves
    values["train"]["optimizer"]["weight_decay"] = 0.0
    config = write_settings(tmp_path / "settings.yaml", values)
    assert (
        main(
            [
                "train",
                str(config),
                "--out",
                str(tmp_path / "run"),
                "--init-from",
                str(run),
                "--quiet",
            ]
        )
        == 0
    )
    first, second = load_checkpoint(run), load_checkpoint(tmp_path / "run")
    assert second.vocabulary.names == ("tree", "road", "cat", "lamp", "door", "wall")
    assert second.vocabulary.unseen == ("lamp",)
    assert second.config.model == first.config.model
    assert second.config.inference == first.config.inference
    assert second.config.train.init_from == str(run)
    for name, value in first.model.state_dict().items():
        assert torch.allclose(value, second.model.state_dict()[name], atol=1e-6), name


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"prompts": {"tokens": 4}}, r"model\.prompts\.tokens is 4, the checkpoint has 3"),
        (
            {"stages": [[12]]},
            (
                r"model\.stages is \[\[12\]\], the checkpoint has \[\[6, 7, 8\], \[9, 10, 11\],"
                r" \[12\]\]"
            ),
        ),
        (
            {"decoder": {"layers": 2, "heads": 4, "feedforward": 128}},
            r"model\.decoder\.layers is 2, the checkpoint has 3",
        ),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(
    run: Path, data: Path, model: dict[str, Any], message: str
) -> None:
    config = config_from_dict(Config, settings(data, model=model))
    with pytest.raises(ValueError, match=message) as found:
        start_from(config, str(run))
    assert "\n" not in str(found.value)


def test_start_from_keeps_what_is_said(run: Path, data: Path) -> None:
    plain = config_from_dict(Config, settings(data))
    assert start_from(plain, "") == plain
    twice = dataclasses.replace(plain, train=dataclasses.replace(plain.train, init_from=str(run)))
    assert start_from(twice, str(run)).train.init_from == str(run)
    with pytest.raises(ValueError, match="two checkpoints"):
        start_from(twice, "mini")
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        start_from(plain, "nowhere")
    assert start_from(Config(), "mini").model != ModelConfig()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--quiet", "--json-lines"), "contradict"),
        (("--dry-run", "--seeds", "0,1"), "leave out --seeds"),
        (("--seeds", "0,0"), "twice"),
        (("--train.preview_every", "-1"), "preview_every"),
    ],
)
def test_bad_words(
    data: Path,
    tmp_path: Path,
    words: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = write_settings(tmp_path / "settings.yaml", settings(data))
    assert main(["train", str(config), "--out", str(tmp_path / "run"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("key", "words", "notes"),
    [
        ("preview_every", ["--train.preview_every=0"], []),
        ("preview_every", ["--train.sheet_every=0"], ["flag --train.sheet_every"]),
        ("sheet_every", ["--train.preview_every", "0"], ["setting train.sheet_every"]),
        (
            "sheet_every",
            ["--train.sheet_every", "0"],
            ["flag --train.sheet_every", "setting train.sheet_every"],
        ),
    ],
)
def test_the_old_name_of_a_setting_is_accepted(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    key: str,
    words: list[str],
    notes: list[str],
) -> None:
    """In the file and as a flag, which overrides the file under either name; each is noted."""
    found: list[int | None] = []
    monkeypatch.setattr(
        TrainingSession, "train", lambda self, _: found.append(self.config.train.preview_every)
    )
    config = write_settings(tmp_path / "settings.yaml", settings(data, **{key: 2}))
    with caplog.at_level("INFO", "cascade_clip"):
        assert main(["train", str(config), "--out", str(tmp_path / "run"), *words]) == 0
    assert found == [0]
    said = [message for message in caplog.messages if "is now called" in message]
    assert len(said) == len(notes)
    assert all(note in message for note, message in zip(notes, said, strict=True))


def test_the_report_shows_previews_of_both_folders(tmp_path: Path) -> None:
    """A run that version 0.1 began has its first previews in `sheets`."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"train": {"sheet_every": 5}}))
    for folder, step in (("sheets", 5), ("sheets", 10), ("previews", 15), ("previews", 20)):
        (tmp_path / folder).mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / folder / f"step-{step:06}.png")
    page = build_run_page(tmp_path)
    assert re.findall(r'alt="predictions, (.*?)"', page) == ["step-000005", "step-000020"]
    assert "train.preview_every" in page and "sheet_every" not in page


def test_a_run_that_goes_on_says_so(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A second start is added to run.json; other data than at the first one is warned of."""
    import shutil

    shutil.copytree(data, tmp_path / "data")
    config = write_settings(
        tmp_path / "settings.yaml", settings(tmp_path / "data", preview_every=0)
    )
    words = ["train", str(config), "--out", str(tmp_path / "run"), "--quiet"]
    assert main(words) == 0
    shutil.rmtree(tmp_path / "run" / "model")  # as if it had been killed before the end
    Image.fromarray(np.zeros((72, 96), np.uint8)).save(tmp_path / "data" / "masks" / "0.png")
    assert main([*words, "--resume", "auto"]) == 0
    assert len(json.loads((tmp_path / "run" / "run.json").read_text())["starts"]) == 2
    assert len(read_record(tmp_path / "run" / "model")["run"]["starts"]) == 2
    assert "not what this run began with" in caplog.text
    assert (tmp_path / "run" / "log.txt").read_text().count("command: ") == 2


def test_git_state(tmp_path: Path) -> None:
    assert read_git(tmp_path) is None

    def git(*words: str) -> str:
        names = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        return subprocess.run(
            ["git", *names, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "-q")
    assert read_git(tmp_path) is None  # no commit yet
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-qm", "first")
    assert read_git(tmp_path) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "other").write_text("not tracked")
    assert read_git(tmp_path) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "file").write_text("two")
    assert read_git(tmp_path) == {"commit": git("rev-parse", "HEAD"), "dirty": True}


def test_no_git_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_git() is None


def test_batch_of_several_devices() -> None:
    train = config_from_dict(
        Config, {"train": {"batch_size": 16, "devices": 2, "micro_batch": 4}}
    ).train
    assert describe_batch(train) == {
        "devices": 2,
        "per_device": 4,
        "accumulation": 2,
        "effective": 16,
    }


def test_devices_are_a_short_flag() -> None:

    found: list[Config] = []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingSession, "look_ahead", lambda self: found.append(self.config))
        train(
            Config(), out=Path("unused"), options=TrainOptions(devices=4, num_nodes=2, dry_run=True)
        )
        train(Config(), out=Path("unused"), options=TrainOptions(dry_run=True))
    assert [(config.train.devices, config.train.num_nodes) for config in found] == [(4, 2), (1, 1)]


def test_crops_come_from_the_checkpoint_where_nothing_else_is_set() -> None:
    start = start_from(Config(), "mini")
    assert start.train.augment.crop == 128
    own = dataclasses.replace(Config().train, augment=AugmentConfig(crop=64))
    assert start_from(dataclasses.replace(Config(), train=own), "mini").train.augment.crop == 64


def test_a_warm_up_as_long_as_the_run_is_said(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for warmup, said in ((2, True), (1, False)):
        caplog.clear()
        values = settings(data, steps=2, optimizer={"warmup_steps": warmup})
        fit(config_from_dict(Config, values), tmp_path / str(warmup))
        assert ("the learning rate stays low" in caplog.text) is said
