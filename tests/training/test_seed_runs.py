"""Several seeds: what is run, what is skipped, mean and deviation."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from cascade_clip.cli.train import TrainingSession, TrainOptions, train
from cascade_clip.config import Config
from cascade_clip.config.serialization import config_from_dict, config_to_dict
from cascade_clip.results import SUMMARY_METRICS
from cascade_clip.training.seed_runs import (
    NAMES,
    SeedRuns,
    Spread,
    parse_seeds,
    seeds_line,
)

CONFIG = config_from_dict(
    Config, {"data": {"name": "sandbox"}, "evaluation": {"name": "sandbox", "limit": 3}}
)
HIOU = {0: 0.1, 1: 0.2, 2: 0.4}


TWO_STEPS = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, steps=2))


def write_run(folder: Path, hiou: float | None) -> None:
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "checkpoint.json").write_text("{}")
    summary = {metric.key: 0.5 for metric in SUMMARY_METRICS} | {"hiou": hiou}
    (folder / "report.json").write_text(json.dumps({"summary": summary}))


@pytest.mark.parametrize(
    ("text", "expected"), [("0,1,2", (0, 1, 2)), ("7", (7,)), (" 3 , 1", (3, 1))]
)
def test_seeds_are_read(text: str, expected: tuple[int, ...]) -> None:
    assert parse_seeds(text) == expected


@pytest.mark.parametrize("text", ["", "a", "1,", "-1", "1.5", "0,1,0", "0 1"])
def test_seeds_are_checked(text: str) -> None:
    with pytest.raises(ValueError, match="--seeds"):
        parse_seeds(text)


@pytest.mark.parametrize(
    ("values", "mean", "deviation"),
    [
        # squares 0.16/9 + 0.01/9 + 0.25/9 = 0.42/9, divided by 2, root
        ((0.1, 0.2, 0.4), 0.7 / 3, 0.152752523),
        ((0.3, 0.3), 0.3, 0.0),
        ((0.3,), 0.3, None),  # one seed says nothing about the spread
        ((0.3, None), None, None),  # a figure that a seed does not have has no mean
    ],
)
def test_mean_and_deviation(
    values: tuple[float | None, ...], mean: float | None, deviation: float | None
) -> None:
    found = Spread(values)
    assert found.mean == (None if mean is None else pytest.approx(mean))
    assert found.deviation == (None if deviation is None else pytest.approx(deviation))


def test_a_run_without_checkpoint_or_report_is_not_finished(tmp_path: Path) -> None:
    runs = SeedRuns(CONFIG, tmp_path)
    assert runs.results(3) is None
    write_run(tmp_path / "seed-3", 0.25)
    assert runs.results(3) == {"S": 0.5, "U": 0.5, "hIoU": 0.25, "mIoU": 0.5, "pAcc": 0.5}
    (tmp_path / "seed-3" / "report.json").write_text('{"summary": {')
    assert runs.results(3) is None
    (tmp_path / "seed-3" / "report.json").unlink()
    assert runs.results(3) is None


def test_other_settings_need_another_folder(tmp_path: Path) -> None:
    SeedRuns(CONFIG, tmp_path / "out").claim()
    SeedRuns(CONFIG, tmp_path / "out").claim()
    with pytest.raises(ValueError, match="other settings"):
        SeedRuns(TWO_STEPS, tmp_path / "out").claim()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("{}")
    with pytest.raises(ValueError, match="single run"):
        SeedRuns(CONFIG, tmp_path / "run").claim()


def test_seeds_of_an_older_version_are_the_same_run(tmp_path: Path) -> None:
    """`seeds.json` holds settings under their old names."""
    train = dataclasses.replace(CONFIG.train, preview_every=3)
    runs = SeedRuns(dataclasses.replace(CONFIG, train=train), tmp_path)
    runs.claim()
    path = tmp_path / "seeds.json"
    text = path.read_text()
    assert '"preview_every": 3' in text
    path.write_text(text.replace('"preview_every": 3', '"sheet_every": 3'))
    runs.claim()
    path.write_text(text.replace('"preview_every": 3', '"sheet_every": 4'))
    with pytest.raises(ValueError, match="other settings"):
        runs.claim()


def test_what_is_written(tmp_path: Path) -> None:
    figures = {
        seed: dict.fromkeys(NAMES, 0.5) | {"hIoU": value, "U": None} for seed, value in HIOU.items()
    }
    path = SeedRuns(CONFIG, tmp_path).write(figures)
    found = json.loads(path.read_text())
    expected = config_to_dict(CONFIG)
    del expected["train"]["seed"]
    assert found["config"] == expected
    assert found["seeds"]["2"]["hIoU"] == 0.4
    assert found["mean"]["hIoU"] == pytest.approx(0.7 / 3)
    assert found["standard_deviation"]["hIoU"] == pytest.approx(0.152752523)
    assert found["mean"]["U"] is None
    assert (
        seeds_line(figures)
        == "S 50.00 +- 0.00  U - +- -  hIoU 23.33 +- 15.28  mIoU 50.00 +- 0.00  pAcc 50.00 +- 0.00"
    )
    assert [file.name for file in tmp_path.iterdir()] == ["seeds.json"]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str, str]]:
    """Replaces training by files with the figures of the seed; lists what was run."""
    runs: list[tuple[int, str, str]] = []

    def fake(session: TrainingSession, resume: str) -> None:
        seed = session.config.train.seed
        runs.append((seed, session.out.name, resume))
        if seed == 1 and len(runs) == 2:
            raise KeyboardInterrupt
        write_run(session.out, HIOU[seed])

    monkeypatch.setattr(TrainingSession, "train", fake)
    return runs


def test_the_same_command_goes_on(
    tmp_path: Path, ran: list[tuple[int, str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """The interrupted seed is resumed, the finished one is not repeated."""
    options = TrainOptions(seeds="0,1,2")
    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, out=tmp_path, options=options)
    assert train(CONFIG, out=tmp_path, options=options) == 0
    assert ran == [
        (0, "seed-0", "auto"),
        (1, "seed-1", "auto"),
        (1, "seed-1", "auto"),
        (2, "seed-2", "auto"),
    ]
    out = capsys.readouterr().out
    assert "seed 0 (1 of 3): finished already" in out
    assert "std (n - 1)" in out
    assert "hIoU 23.33 +- 15.28" in out
    assert json.loads((tmp_path / "seeds.json").read_text())["standard_deviation"][
        "hIoU"
    ] == pytest.approx(0.152752523)
    assert (tmp_path / "seed-2").is_dir()


def test_more_seeds_later(tmp_path: Path, ran: list[tuple[int, str, str]]) -> None:
    train(CONFIG, out=tmp_path, options=TrainOptions(seeds="0"))
    train(CONFIG, out=tmp_path, options=TrainOptions(seeds="0,2"))
    assert [seed for seed, _, _ in ran] == [0, 2]
    assert set(json.loads((tmp_path / "seeds.json").read_text())["seeds"]) == {"0", "2"}


def test_seeds_need_an_evaluation(tmp_path: Path, ran: list[tuple[int, str, str]]) -> None:
    config = config_from_dict(Config, {"data": {"name": "sandbox"}})
    with pytest.raises(ValueError, match="set evaluation"):
        train(config, out=tmp_path / "out", options=TrainOptions(seeds="0,1"))
    assert not (tmp_path / "out").exists()
    assert ran == []
