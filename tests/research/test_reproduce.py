"""Reproduction: what entries ask for, which runs they share, what is made once, and what a stopped
or failing run leaves."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

import cascade_clip.inference
import cascade_clip.training
from cascade_clip.cli import reproduce as reproduce_commands
from cascade_clip.cli import terminal
from cascade_clip.cli.main import main
from cascade_clip.config import Config, DataConfig, InferenceConfig
from cascade_clip.config.serialization import config_from_dict, read_yaml
from cascade_clip.data.registry import build_dataset, sandbox_vocabulary
from cascade_clip.evaluation.bootstrap import Tallies
from cascade_clip.research.reproduction import job_process, jobs
from cascade_clip.research.reproduction.entries import (
    Entry,
    EntryRow,
    build_entry,
    find_entries,
    list_entries,
)
from cascade_clip.research.reproduction.jobs import Job, estimate_seconds, plan_jobs, run_jobs
from cascade_clip.research.reproduction.keys import Choice, Inference, training_key
from cascade_clip.research.reproduction.runs import (
    Reproduction,
    Result,
    read_choice,
    read_result,
    score,
    slug,
    write_choice,
    write_result,
)
from cascade_clip.research.reproduction.settings import (
    ReproductionSettings,
    list_settings,
    load_settings,
    merge,
)
from cascade_clip.vocabulary import load_vocabulary
from paths import ROOT, TESTS

WORLDS = ("sandbox", "coco-stuff", "context", "voc")
TALLIES = Tallies(np.array([[6, 0, 1], [2, 3, 0]]), np.array([[8, 0, 3], [4, 3, 2]]))
SEEN = np.array([True, True, False])


def tiny_world() -> ReproductionSettings:
    """The built-in world with two steps of two scenes."""
    world = load_settings("sandbox")
    train = {
        "steps": 2,
        "batch_size": 2,
        "save_every": 1,
        "log_every": 1,
        "optimizer": {"warmup_steps": 1},
    }
    return dataclasses.replace(
        world, base=merge(world.base, {"train": train, "evaluation": {"limit": 2}})
    )


def entry_of(*rows: EntryRow, key: str = "table1") -> Entry:
    return Entry(key, "", rows, rows[0].name, "coco-stuff", (0,), "table")


def plan(
    entries: Sequence[Entry],
    world: ReproductionSettings,
    seeds: Mapping[str, Sequence[int]],
    out: Path,
) -> list[Job]:
    return plan_jobs(entries, Reproduction(world, out, seeds))


def collect(
    entry: Entry, row: EntryRow, world: ReproductionSettings, seeds: Sequence[int], out: Path
) -> list[Result]:
    return Reproduction(world, out, {entry.key: seeds}).results(entry, row)


def row_of(name: str, **settings: Any) -> EntryRow:
    return EntryRow(name, {}, settings)


def finish(
    out: Path, entries: Sequence[Entry], world: ReproductionSettings, seeds: Sequence[int]
) -> None:
    """Write what runs leave, without running them."""
    for job in plan(entries, world, {entry.key: seeds for entry in entries}, out):
        (job.folder / "model").mkdir(parents=True)
        (job.folder / "model" / "checkpoint.json").write_text("{}")
        (job.folder / "metrics.csv").write_text(f"step,seconds\n{job.config.train.steps},60.0\n")
        for inference in job.inferences:
            write_result(job.folder, inference, TALLIES, SEEN)


# entries and worlds


def test_every_table_figure_and_question_is_there() -> None:
    tables = [f"table{number}" for number in (1, 4, 5, 6, 7, 8, 9, 10, 12, 14, 15, 16, 17, 18)]
    keys = [entry.key for entry in list_entries()]
    assert keys == [
        *tables,
        "figure1",
        "figure4",
        "figure6",
        "figure7",
        *(f"question{number}" for number in range(1, 9)),
    ]
    three = {
        "table1",
        "table4",
        "table6",
        "table7",
        "table8",
        "table10",
        *(key for key in keys if key.startswith("question")),
    }
    assert {entry.key: entry.seeds for entry in list_entries()} == {
        key: (0, 1, 2) if key in three else (0,) for key in keys
    }


def test_all_begins_with_the_tables_of_three_seeds() -> None:
    keys = [entry.key for entry in find_entries("all")]
    assert keys[:7] == ["table1", "table4", "table6", "table7", "table8", "table10", "table5"]
    assert set(keys[-8:]) == {f"question{number}" for number in range(1, 9)}
    assert sorted(keys) == sorted(entry.key for entry in list_entries())


def test_entries_are_found_in_the_order_given() -> None:
    assert [entry.key for entry in find_entries(" figure4, Table 1,figure4")] == [
        "figure4",
        "table1",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("tabel1", r"did you mean table1\? There are all, table1"),
        ("x", "choose from all, table1"),
        (" , ", "say what"),
    ],
)
def test_entries_that_do_not_exist(words: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_entries(words)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": [{"name": "a"}, {"name": "a"}]}, "twice"),
        ({"reference": "b"}, r"do not exist: \['b'\]"),
        ({"rows": [{"name": "a", "against": "c"}]}, r"do not exist: \['c'\]"),
        ({"kind": "poem"}, "kind must be one of"),
        ({"sigma": 1}, "sigma"),
        ({"rows": [{"name": "a", "setings": {}}]}, "row 'a'.*setings"),
        ({"rows": [{"name": "a", "published": {"voc": [1, 2]}}]}, "S, U and hIoU"),
    ],
)
def test_a_damaged_entry_is_refused(change: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_entry("table1", {"title": "", "kind": "table", "rows": [{"name": "a"}], **change})


@pytest.mark.parametrize("name", WORLDS)
def test_rows_are_valid_and_differ(name: str) -> None:
    """On every world; two rows of an entry are never the same model used in the same way."""
    world = load_settings(name)
    for entry in list_entries():
        found = [
            (
                training_key(world.training_config(row, 0)),
                world.inference(row).key,
                row.choices,
            )
            for row in entry.rows
        ]
        assert len(set(found)) == len(found), entry.key


def test_there_are_no_other_worlds() -> None:
    assert list_settings() == WORLDS
    with pytest.raises(
        ValueError, match="unknown world 'mars'; choose one of sandbox, coco-stuff, context, voc"
    ):
        load_settings("mars")


@pytest.mark.parametrize(
    ("name", "file"), [("coco-stuff", "coco"), ("voc", "voc"), ("context", "context")]
)
def test_worlds_have_the_published_settings(name: str, file: str) -> None:
    published = config_from_dict(
        Config, read_yaml(ROOT / "configs" / f"cascade-{file}-inductive.yaml")
    )
    assert load_settings(name).config(row_of("cascade")) == published
    placed = load_settings(name, "elsewhere").config(row_of("cascade"))
    assert placed.data.root == "elsewhere"
    assert placed.evaluation is not None
    assert placed.evaluation.root == "elsewhere"


METHODS = {"Frozen CLIP": "frozen", "ZegCLIP": "zegclip", "SPT-SEG": "spt"}


@pytest.mark.parametrize(("name", "file"), [("coco-stuff", "coco"), ("voc", "voc")])
@pytest.mark.parametrize("row", find_entries("table10")[0].rows, ids=lambda row: row.name)
def test_rows_of_table_10_are_the_published_files(row: EntryRow, name: str, file: str) -> None:
    method, _, protocol = row.name.partition(", ")
    kind, _, cascade = method.partition(" with the ")
    stem = f"{METHODS[kind]}{'-cascade' if cascade else ''}".replace("zegclip-cascade", "cascade")
    published = config_from_dict(
        Config, read_yaml(ROOT / "configs" / f"{stem}-{file}-{protocol or 'inductive'}.yaml")
    )
    found = load_settings(name).config(row)
    if kind == "Frozen CLIP":  # without prompts their number means nothing
        found = dataclasses.replace(
            found, model=dataclasses.replace(found.model, prompts=published.model.prompts)
        )
    assert found == published


def read_methods_page() -> dict[str, dict[str, tuple[list[float | None], dict[str, Any]]]]:
    """Table key to row name to published figures and settings, of docs/methods.md."""
    tables: dict[str, dict[str, Any]] = {}
    table = ""
    for line in (ROOT / "docs" / "methods.md").read_text(encoding="utf-8").splitlines():
        if found := re.match(r"\*\*Table (\d+)\.\*\*|## ", line):
            table = f"table{found[1]}" if found[1] else ""
        if table and (found := re.match(r"\| (.+?) \| (.+?) \| `(\{.*\})` \|$", line)):
            figures = [None if value == "-" else float(value) for value in found[2].split(" / ")]
            tables.setdefault(table, {})[found[1]] = figures, yaml.safe_load(found[3])
    return tables


def test_tables_are_those_of_the_methods_page() -> None:
    page = read_methods_page()
    assert list(page) == [entry.key for entry in list_entries() if entry.kind == "table"]
    for key, rows in page.items():
        entry = find_entries(key)[0]
        assert {
            row.name: (list(row.published[entry.published_on]), row.settings) for row in entry.rows
        } == rows, key


def test_paper_values_stand_for_others() -> None:
    world = ReproductionSettings(
        "sandbox",
        {"train": {"steps": 10}},
        {"model.prompts.tokens": {50: 8}, "train.steps": {40000: 5}},
    )
    change = {"model": {"prompts": {"tokens": 50}}, "train": {"steps": 40000, "batch_size": 40000}}
    config = world.config(row_of("a", **change), seed=3)
    assert (
        config.model.prompts.tokens,
        config.train.steps,
        config.train.batch_size,
        config.train.seed,
    ) == (8, 5, 40000, 3)
    assert world.config(row_of("a", model={"prompts": {"tokens": 51}})).model.prompts.tokens == 51
    assert world.config(row_of("a")).train.steps == 10
    literal = EntryRow("a", {}, change, {"sandbox": {"model": {"prompts": {"tokens": 50}}}})
    assert world.config(literal).model.prompts.tokens == 50
    assert world.config(literal).train.batch_size == Config().train.batch_size


@pytest.mark.parametrize("name", WORLDS)
def test_longer_and_halved_training_keep_their_proportions(name: str) -> None:
    world = load_settings(name)
    full = world.config(row_of("a")).train.steps
    found = [world.config(row).train.steps / full for row in find_entries("figure7")[0].rows]
    assert found == [0.5, 1.0, 1.6, 2.0]
    transductive = next(
        row
        for row in find_entries("table10")[0].rows
        if row.name == "ZegCLIP with the cascade, transductive"
    )
    assert world.config(transductive).train.steps == full / 2


# runs


@pytest.mark.parametrize(
    "change",
    [
        {"train": {"seed": 5}},
        {
            "train": {
                "device": "cpu",
                "log_every": 3,
                "preview_every": 0,
                "save_every": 7,
                "micro_batch": 1,
            }
        },
        {"data": {"root": "elsewhere", "workers": 7}},
        {"inference": {"window": 100, "stride": 50}},
        {"evaluation": {"name": "sandbox"}},
        {"model": {"stages": [[6, 7, 8], [9, 10, 11], [12]]}},  # the default said aloud
    ],
)
def test_what_does_not_change_a_training(change: dict[str, Any]) -> None:
    assert training_key(config_from_dict(Config, change)) == training_key(Config())


@pytest.mark.parametrize(
    "change",
    [
        {"train": {"steps": 5}},
        {"train": {"loss": {"dice": 2}}},
        {"data": {"seed": 5}},
        {"data": {"size": 64}},
        {"model": {"stages": [[12]]}},
        {"train": {"precision": "bf16"}},
    ],
)
def test_what_makes_another_training(change: dict[str, Any]) -> None:
    assert training_key(config_from_dict(Config, change)) != training_key(Config())


def test_names_of_folders_stay() -> None:
    """Results of earlier versions must be found again."""
    config = config_from_dict(Config, {"model": {"stages": [[12]]}, "train": {"steps": 5}})
    assert training_key(config) == KEY_OF_TRAINING
    assert (
        Inference(
            InferenceConfig(window=64, stride=64), DataConfig("sandbox", limit=2), "inductive"
        ).key
        == KEY_OF_INFERENCE
    )
    assert slug("6-8, 9-11, without the last block") == "6-8-9-11-without-the-last-block"


KEY_OF_TRAINING, KEY_OF_INFERENCE = "ba1af266", "4812ea31"


def test_scores_rest_on_inference_and_evaluation() -> None:
    def key(protocol: str = "inductive", limit: int = 2, root: str = "", **settings: Any) -> str:
        return Inference(
            InferenceConfig(**settings), DataConfig("sandbox", limit=limit, root=root), protocol
        ).key

    assert key() == key(class_chunk=3, max_memory=9, window_batch=2) == key(root="x")
    assert len({key(), key(limit=3), key(stride=40), key(calibration=0.2), key("supervised")}) == 5
    assert Inference(InferenceConfig(), DataConfig(), "transductive").calibration == 0
    assert Inference(InferenceConfig(), DataConfig(), "inductive").calibration == 0.1


def test_rows_and_tables_share_runs() -> None:
    """Tables 1 and 4 have the baseline and the cascade in common."""
    planned = plan(
        find_entries("table1,table4"),
        load_settings("sandbox"),
        {"table1": (0, 1), "table4": (0,)},
        Path("out"),
    )
    found = [(job.name, job.config.train.seed, job.entries) for job in planned]
    fusion = "multi-layer fusion into one decoder"
    both, one = ("table1", "table4"), ("table1",)
    assert found == [
        *[("baseline", 0, both), (fusion, 0, one), ("Cascade-CLIP", 0, both)],
        *[("baseline", 1, one), (fusion, 1, one), ("Cascade-CLIP", 1, one)],
        ("cascaded decoders without NGA", 0, ("table4",)),
    ]
    assert len({job.folder for job in planned}) == 7
    assert planned[0].folder.parent == planned[3].folder.parent
    assert re.fullmatch(r"out/runs/baseline-[0-9a-f]{8}/seed-1", planned[3].folder.as_posix())


def test_rows_that_differ_in_inference_share_the_training() -> None:
    planned = plan(
        find_entries("question4,table1"),
        load_settings("sandbox"),
        {"question4": (0,), "table1": (0,)},
        Path("out"),
    )
    assert [len(job.inferences) for job in planned] == [6, 0, 1, 1]
    assert {inference.calibration for inference in planned[0].inferences} == {
        0.0,
        0.05,
        0.1,
        0.15,
        0.2,
        0.3,
    }
    assert planned[0].config.inference.calibration == 0.1  # what the checkpoint carries


def test_a_choice_needs_a_second_training() -> None:
    """Whose data hide the held-out classes as well; the values to choose from are scored with the
    first training."""
    world, entry = (
        load_settings("sandbox"),
        entry_of(EntryRow("chosen", {}, {}, choices=(0.05, 0.2))),
    )
    first, second = plan([entry], world, {"table1": (1,)}, Path("out"))
    assert [one.calibration for one in first.inferences] == [0.05, 0.2]
    assert not second.inferences
    assert not first.choices
    assert (first.config.train.seed, second.config.train.seed) == (1, 1)
    assert dataclasses.replace(second.config, data=first.config.data) == first.config
    (choice,) = second.choices
    assert choice.values == (0.05, 0.2)
    assert choice.held_out == world.held_out.names
    assert choice.data.seed not in (first.config.data.seed, first.inferences[0].data.seed)


@pytest.mark.parametrize(
    ("name", "classes"),
    [("sandbox", ""), ("coco-stuff", "coco-stuff"), ("voc", "voc"), ("context", "context")],
)
def test_held_out_classes_are_seen_ones(name: str, classes: str) -> None:
    """The second training hides the unseen classes and these, nothing else, and every name
    exists."""
    world = load_settings(name)
    vocabulary = load_vocabulary(classes) if classes else sandbox_vocabulary()
    assert set(world.held_out.names) <= set(vocabulary.seen)
    hidden = [part.strip() for part in world.held_out.unseen.split(",")]
    assert hidden == [*vocabulary.unseen, *world.held_out.names]
    row = EntryRow("chosen", {}, {}, choices=(0.0,))
    choice = world.choice(row)
    assert choice is not None
    assert choice.data != world.config(row).evaluation


def test_the_chosen_calibration_is_used(tmp_path: Path) -> None:
    """Every seed with its own choice; a seed without one has no result."""
    world, row = tiny_world(), EntryRow("chosen", {}, {}, choices=(0.05, 0.2))
    entry = entry_of(row)
    finish(tmp_path, [entry], world, (0, 1))
    assert collect(entry, row, world, (0, 1), tmp_path) == []
    for job in plan([entry], world, {"table1": (0,)}, tmp_path):
        for choice in job.to_choose:
            write_choice(job.folder, choice, {"chosen": 0.2})
    (found,) = collect(entry, row, world, (0, 1), tmp_path)
    assert (found.seed, found.calibration) == (0, 0.2)
    assert [job.done for job in plan([entry], world, {"table1": (0, 1)}, tmp_path)] == [
        True,
        True,
        True,
        False,
    ]


def test_a_run_is_found_under_the_name_it_was_made_with(tmp_path: Path) -> None:
    config, place = Config(), Reproduction(tiny_world(), tmp_path, {})
    assert (
        place.run_folder(row_of("3 decoders"), config).name == f"3-decoders-{training_key(config)}"
    )
    made = tmp_path / "runs" / f"cascade-clip-{training_key(config)}"
    made.mkdir(parents=True)
    assert place.run_folder(row_of("3 decoders"), config) == made


def test_the_seeds_of_a_training_share_a_folder(tmp_path: Path) -> None:
    """Table 5 needs the first seed of the cascade under another name than Table 1, which needs
    all."""
    world, seeds = load_settings("sandbox"), {"table5": (0,), "table1": (0, 1, 2)}
    entries = find_entries("table5,table1")
    planned = plan(entries, world, seeds, tmp_path)
    folders: dict[str, set[Path]] = {}
    for job in planned:
        folders.setdefault(training_key(job.config), set()).add(job.folder.parent)
    assert {len(found) for found in folders.values()} == {1}
    for job in planned:
        (job.folder / "model").mkdir(parents=True)
        (job.folder / "model" / "checkpoint.json").write_text("{}")
        for inference in job.inferences:
            write_result(job.folder, inference, TALLIES, SEEN)
    for entry in entries:
        for row in entry.rows:
            assert [
                found.seed for found in collect(entry, row, world, seeds[entry.key], tmp_path)
            ] == list(seeds[entry.key])
    assert all(job.done for job in plan(entries[::-1], world, seeds, tmp_path))


def test_seeds_in_two_folders_are_all_found(tmp_path: Path) -> None:
    """As earlier versions left them: a seed that only the second folder has, and one that both
    have, scored in the second alone."""
    world, entry = tiny_world(), entry_of(row_of("z"))
    key = training_key(world.training_config(entry.rows[0], 0))
    finish(tmp_path, [entry], world, (0, 1))
    (tmp_path / "runs" / f"a-{key}" / "seed-1").mkdir(parents=True)
    (tmp_path / "runs" / f"a-{key}" / "seed-2").mkdir()
    found = collect(entry, entry.rows[0], world, (0, 1, 2), tmp_path)
    assert [(one.seed, one.checkpoint.parent.parent.name) for one in found] == [
        (0, f"z-{key}"),
        (1, f"z-{key}"),
    ]
    assert [job.done for job in plan([entry], world, {"table1": (0, 1, 2)}, tmp_path)] == [
        True,
        True,
        False,
    ]


def test_scores_by_hand() -> None:
    """Sums: 8 of 12, 3 of 3, 1 of 5; 20 units of union and 12 right pixels are 16 pixels."""
    found = score(TALLIES, SEEN)
    seen, unseen = (8 / 12 + 1) / 2, 1 / 5
    expected = {
        "S": seen,
        "U": unseen,
        "hIoU": 2 * seen * unseen / (seen + unseen),
        "mIoU": (8 / 12 + 1 + 1 / 5) / 3,
    }
    assert found == pytest.approx({**expected, "pixel accuracy": 12 / 16})
    nothing = score(Tallies(np.zeros((1, 3), np.int64), np.zeros((1, 3), np.int64)), SEEN)
    assert all(np.isnan(value) for value in nothing.values())


def test_results_are_kept_whole_or_not_at_all(tmp_path: Path) -> None:
    inference = Inference(InferenceConfig(), DataConfig("sandbox"), "inductive")
    assert read_result(tmp_path, inference, 4) is None
    (tmp_path / "stage1").mkdir()
    (tmp_path / "stage1" / "metrics.csv").write_text("step,seconds\n5,1.5\n10,2.5\n")
    (tmp_path / "metrics.csv").write_text("step,seconds\n10,4.0\n15,")  # cut off by a kill
    write_result(tmp_path, inference, TALLIES, SEEN)
    found = read_result(tmp_path, inference, 4)
    assert found is not None
    assert (found.seed, found.seconds, found.checkpoint) == (4, 6.5, tmp_path / "model")
    assert found.scores == pytest.approx(score(TALLIES, SEEN))
    np.testing.assert_array_equal(found.tallies.union, TALLIES.union)
    np.testing.assert_array_equal(found.tallies.intersection, TALLIES.intersection)
    assert found.seen.tolist() == SEEN.tolist()
    other = dataclasses.replace(inference, settings=InferenceConfig(calibration=0.2))
    assert read_result(tmp_path, other, 4) is None
    counts = next(tmp_path.glob("tallies-*.npz"))
    counts.write_bytes(counts.read_bytes()[:-30])
    assert read_result(tmp_path, inference, 4) is None
    assert not list(tmp_path.glob(".*"))


def test_figures_without_a_value_come_back_as_such(tmp_path: Path) -> None:
    inference = Inference(InferenceConfig(), DataConfig("sandbox"), "inductive")
    write_result(tmp_path, inference, TALLIES, np.ones(3, bool))
    found = read_result(tmp_path, inference, 0)
    assert found is not None
    assert np.isnan(found.scores["U"])
    assert json.loads(next(tmp_path.glob("scores-*.json")).read_text())["scores"]["U"] is None


def test_only_what_exists_is_collected(tmp_path: Path) -> None:
    world, entry = tiny_world(), entry_of(row_of("a"), row_of("b", inference={"calibration": 0.3}))
    finish(tmp_path, [entry_of(entry.rows[0])], world, (2, 0))
    assert [
        result.seed for result in collect(entry, entry.rows[0], world, (0, 1, 2), tmp_path)
    ] == [0, 2]
    # trained, not scored this way
    assert collect(entry, entry.rows[1], world, (0, 1, 2), tmp_path) == []
    with pytest.raises(ValueError, match="'c' is no row of table1"):
        collect(entry, row_of("c"), world, (0,), tmp_path)


# one run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Job]:
    """One tiny run, really made."""
    out = tmp_path_factory.mktemp("reproduction")
    (job,) = plan(
        [entry_of(row_of("last", model={"stages": [[12]]}))], tiny_world(), {"table1": (0,)}, out
    )
    job_process.run_job(job)
    return out, job


def test_a_run_trains_and_scores(made: tuple[Path, Job]) -> None:
    out, job = made
    assert job.done
    assert (job.steps, job.steps_done) == (2, 2)
    entry = entry_of(row_of("other name", model={"stages": [[12]]}))
    (found,) = collect(entry, entry.rows[0], tiny_world(), (0,), out)
    assert found.tallies.union.shape == (2, 26)
    assert found.seen.sum() == 20
    assert found.tallies.union.sum() + found.tallies.intersection.sum() == 2 * 2 * 64 * 64
    assert found.seconds > 0
    assert (found.checkpoint / "checkpoint.json").is_file()


def test_what_exists_is_not_made_again(
    made: tuple[Path, Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, job = made
    before = {
        path: path.stat().st_mtime_ns for path in job.folder.iterdir() if path.name != ".lock"
    }
    monkeypatch.setattr(cascade_clip.training, "fit", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(
        cascade_clip.inference,
        "load_predictor",
        lambda *_, **__: pytest.fail("scored again"),
    )
    job_process.run_job(job)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_another_inference_is_scored_without_training(
    made: tuple[Path, Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a calibration of 1 no seen class is ever given: its union with nothing is what the
    labels hold of it."""
    _, job = made
    monkeypatch.setattr(cascade_clip.training, "fit", lambda *_, **__: pytest.fail("trained again"))
    other = dataclasses.replace(
        job.inferences[0], settings=dataclasses.replace(job.inferences[0].settings, calibration=1.0)
    )
    job_process.run_job(dataclasses.replace(job, inferences=(*job.inferences, other)))
    found = read_result(job.folder, other, 0)
    assert found is not None
    dataset = build_dataset(other.data, "val")
    labelled = np.stack(
        [
            np.bincount(dataset.sample(index).labels.ravel().numpy(), minlength=26)
            for index in range(2)
        ]
    )
    np.testing.assert_array_equal(found.tallies.union[:, found.seen], labelled[:, found.seen])
    assert found.tallies.intersection[:, found.seen].sum() == 0


def test_a_model_chooses_a_calibration(made: tuple[Path, Job]) -> None:
    """By a model that was trained with the held-out classes hidden; of equal values the first is
    taken."""
    out, job = made
    world = tiny_world()
    hidden = dataclasses.replace(job.config.data, unseen=world.held_out.unseen)
    choice = Choice(
        job.inferences[0].settings, job.inferences[0].data, world.held_out.names, (0.3, -2.0, 2.0)
    )
    folder = out / "runs" / "hidden" / "seed-0"
    one = Job("hidden", folder, dataclasses.replace(job.config, data=hidden), (), choices=(choice,))
    assert Job.from_json(one.to_json()) == one
    assert not one.done
    job_process.run_job(one)
    assert one.done
    assert read_choice(folder, choice) in choice.values
    kept = json.loads(next(folder.glob("calibration-*.json")).read_text())
    assert kept["held_out"] == list(world.held_out.names)
    assert [row["calibration"] for row in kept["rows"]] == [-2.0, 0.3, 2.0]


def test_a_job_goes_to_another_process_unchanged(made: tuple[Path, Job]) -> None:
    _, job = made
    assert dataclasses.replace(Job.from_json(job.to_json()), entries=job.entries) == job


# many runs


def pretend(
    monkeypatch: pytest.MonkeyPatch, script: Mapping[str, str]
) -> list[subprocess.Popen[bytes]]:
    """Replace runs by small programs: the job's name chooses the text of a Python program; `done`
    means that its results are there."""
    started: list[subprocess.Popen[bytes]] = []

    def start(job: Job, *, one_core: bool) -> subprocess.Popen[bytes]:
        job.folder.mkdir(parents=True, exist_ok=True)
        text = script[job.name]
        if text == "done":
            finish(
                job.folder.parent.parent.parent,
                [entry_of(row_of(job.name, train={"steps": job.config.train.steps}))],
                tiny_world(),
                (0,),
            )
            text = ""
        with (job.folder / "log.txt").open("ab") as log:
            started.append(
                subprocess.Popen([sys.executable, "-S", "-c", text], stdout=log, stderr=log)
            )
        return started[-1]

    monkeypatch.setattr(jobs, "_start", start)
    return started


def three_jobs(out: Path) -> list[Job]:
    rows = [row_of(name, train={"steps": steps}) for name, steps in (("a", 3), ("b", 4), ("c", 5))]
    return plan([entry_of(*rows)], tiny_world(), {"table1": (0,)}, out)


def test_a_failing_run_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = three_jobs(tmp_path)
    planned[0].folder.mkdir(parents=True)
    (planned[0].folder / "log.txt").write_text("an older line\n")
    pretend(
        monkeypatch,
        {"a": "print('first'); print('no data'); raise SystemExit(1)", "b": "done", "c": ""},
    )
    told: list[str] = []
    seen: list[tuple[float, int]] = []
    failures = run_jobs(
        planned,
        1,
        one_core=True,
        failed=lambda one: told.append(one.job.name),
        moved=lambda *at: seen.append(at),
    )
    assert [failure.job.name for failure in failures] == told == ["a", "c"]
    assert failures[0].reason == "no data"
    assert "without a word" in failures[1].reason  # it ended well and left nothing
    assert seen[-1] == (3, 3)


def test_no_more_runs_at_a_time_than_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import time; time.sleep(0.5); raise SystemExit(1)"
    started = pretend(monkeypatch, dict.fromkeys("abc", program))
    most = 0

    def moved(made: float, done: int) -> None:
        nonlocal most
        most = max(most, sum(process.poll() is None for process in started))

    run_jobs(three_jobs(tmp_path), 2, one_core=True, failed=lambda _: None, moved=moved)
    assert len(started) == 3
    assert most == 2


def test_an_interrupted_command_stops_its_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = pretend(monkeypatch, dict.fromkeys("abc", "import time; time.sleep(60)"))

    def interrupt(made: float, done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs(three_jobs(tmp_path), 2, one_core=True, failed=lambda _: None, moved=interrupt)
    assert [process.returncode for process in started] == [-signal.SIGTERM, -signal.SIGTERM]


def test_time_left_follows_finished_runs(tmp_path: Path) -> None:
    """A finished run of 3 steps took 60 s; b has 4 steps and c made 2 of its 5."""
    planned = three_jobs(tmp_path)
    assert estimate_seconds(planned) == {}
    finish(tmp_path, [entry_of(row_of("a", train={"steps": 3}))], tiny_world(), (0,))
    planned[2].folder.mkdir(parents=True)
    (planned[2].folder / "metrics.csv").write_text("step,seconds\n2,9.0\n")
    assert estimate_seconds(planned) == {
        planned[1].folder: pytest.approx(80.0),
        planned[2].folder: pytest.approx(60.0),
    }


# the command


def test_the_plan_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal.console, "width", 200)
    entry = find_entries("table1")[0]
    finish(
        tmp_path, [dataclasses.replace(entry, rows=entry.rows[:1])], load_settings("sandbox"), (0,)
    )
    monkeypatch.setattr(jobs, "run_jobs", lambda *_, **__: pytest.fail("trained"))
    assert main(["reproduce", "table1", "--out", str(tmp_path), "--plan", "--jobs", "2"]) == 0
    text = capsys.readouterr().out
    assert "1 of 9 runs are done; 8 to do, about 4.0 min of training, 2 at a time" in text
    assert re.search(r"baseline +│ +0 │ table1 +│ done", text)
    assert not (tmp_path / "index.html").exists()


def test_the_plan_names_what_trains_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", "table12", "--out", str(tmp_path), "--plan"]) == 0
    assert capsys.readouterr().out.strip() == "nothing to train for table12"


def test_missing_data_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(jobs, "run_jobs", lambda *_, **__: pytest.fail("trained"))
    words = [
        "reproduce",
        "table5",
        "--world",
        "voc",
        "--root",
        str(tmp_path / "none"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(words) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    assert main([*words, "--plan"]) == 0  # needs no data
    finish(
        tmp_path / "out", find_entries("table5"), load_settings("voc", str(tmp_path / "none")), (0,)
    )
    assert main(words) == 0  # nothing is left to make


def test_showing_a_folder_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", "table1", "--out", str(tmp_path / "typo"), "--show"]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert not (tmp_path / "typo").exists()


def test_results_are_printed_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal.console, "width", 250)
    finish(tmp_path, find_entries("table1"), load_settings("sandbox"), (0, 1))
    monkeypatch.setattr(jobs, "run_jobs", lambda *_, **__: pytest.fail("trained"))
    assert (
        main(["reproduce", "table1,table9", "--out", str(tmp_path), "--seeds", "0,1", "--plan"])
        == 0
    )
    assert "6 of 8 runs are done" in capsys.readouterr().out
    assert main(["reproduce", "table1", "--out", str(tmp_path), "--seeds", "0,1"]) == 0
    text = capsys.readouterr().out
    assert "40.1 / 39.5 / 39.8" in text
    assert "83.3 ± 0.0" in text  # S of the tallies above
    assert {path.name for path in tmp_path.iterdir()} >= {
        "runs",
        "index.html",
        "reproduction.md",
        "results.json",
    }


def test_what_is_there_is_shown_without_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(jobs, "run_jobs", lambda *_, **__: pytest.fail("trained"))
    assert main(["reproduce", "table9", "--out", str(tmp_path), "--seeds", "4", "--show"]) == 0
    assert (
        f"not run: shared, independent; cascade-clip reproduce table9 --seeds 4 --out {tmp_path}"
        in capsys.readouterr().out
    )
    assert "cascade-clip reproduce table9 --seeds 4" in (tmp_path / "index.html").read_text()


def test_a_failed_run_gives_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row.name for row in find_entries("table9")[0].rows]
    pretend(monkeypatch, dict.fromkeys(rows, "raise SystemExit('no disk')"))
    assert main(["reproduce", "table9", "--out", str(tmp_path)]) == 1
    found = capsys.readouterr()
    assert re.search(r"shared, seed 0, failed: no disk \(.*shared-[0-9a-f]{8}/seed-0\)", found.err)
    assert (
        f"not run: shared, independent; cascade-clip reproduce table9 --out {tmp_path}" in found.out
    )
    assert "2/2 runs have ended" in found.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tabel1"], "did you mean table1"),
        (["table1", "--world", "mars"], "unknown world 'mars'"),
        (["table1", "--seeds", "a"], "--seeds must be whole numbers"),
        (["table1", "--jobs", "-1"], "--jobs must be 0"),
        (["table1", "--out", __file__], "is a file and no folder"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", *words, "--plan"]) == 2
    assert message in capsys.readouterr().err


def test_choices_are_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal.console, "width", 250)
    (entry,) = find_entries("question4")
    planned = plan([entry], load_settings("sandbox"), {"question4": (0,)}, tmp_path)
    finish(tmp_path, [entry], load_settings("sandbox"), (0,))
    for job in planned:
        for choice in job.choices:
            write_choice(job.folder, choice, {"chosen": 0.2})
    assert main(["reproduce", "question4", "--out", str(tmp_path), "--seeds", "0", "--show"]) == 0
    text = capsys.readouterr().out
    assert text.count("(seed 0)") == 1
    assert "chosen without unseen labels: 0.2 (seed 0)." in text


@pytest.mark.parametrize(
    ("quota", "free", "cores", "at_once"),
    [
        ("max 100000", 99.0, 8, 8),
        ("", 99.0, 8, 8),  # no such file
        ("350000 100000", 99.0, 3, 3),
        ("50000 100000", 99.0, 1, 1),
        ("900000 100000", 99.0, 8, 8),
        ("max 100000", 3.7, 8, 3),
        ("max 100000", 0.5, 8, 1),
    ],
)
def test_cores_and_memory_bound_the_runs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    quota: str,
    free: float,
    cores: int,
    at_once: int,
) -> None:
    if quota:
        (tmp_path / "cpu.max").write_text(quota + "\n")
    monkeypatch.setattr(reproduce_commands, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(
        "psutil.virtual_memory", lambda: SimpleNamespace(available=int(free * 2**30))
    )
    assert reproduce_commands.count_cores() == cores
    assert reproduce_commands.count_jobs() == at_once


def test_a_row_without_all_seeds_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (entry,) = find_entries("table9")
    finish(tmp_path, [entry], load_settings("sandbox"), (0, 1))
    missing = plan([entry], load_settings("sandbox"), {"table9": (0, 1)}, tmp_path)[-1]
    assert (missing.name, missing.config.train.seed) == ("independent", 1)
    for path in missing.folder.glob("scores-*"):
        path.unlink()
    assert main(["reproduce", "table9", "--out", str(tmp_path), "--seeds", "0,1", "--show"]) == 0
    command = f"cascade-clip reproduce table9 --seeds 0,1 --out {tmp_path}"
    text = capsys.readouterr().out
    assert f"incomplete: independent (without seed 1); {command}" in text
    assert "not run" not in text
    words = (
        "Incomplete rows (1): independent (without seed 1). This command makes what is missing:"
        f" `{command}`"
    )
    assert words in (tmp_path / "reproduction.md").read_text()


def test_showing_counts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "cascade_clip.research.reproduction.counts.count_cost", lambda *_: pytest.fail("counted")
    )
    monkeypatch.setattr(
        "cascade_clip.research.reproduction.counts.measure_speed", lambda *_: pytest.fail("timed")
    )
    assert main(["reproduce", "table12", "--out", str(tmp_path), "--show"]) == 0
    assert (
        f"not counted; cascade-clip reproduce table12 --out {tmp_path}" in capsys.readouterr().out
    )
    assert not (tmp_path / "costs").exists()


@pytest.mark.slow
def test_a_killed_command_goes_on(tmp_path: Path) -> None:
    """The command is killed during its second run: the run ends with it, the next command makes
    what is missing and repeats nothing."""
    program = (
        "import sys; sys.path[:0] = sys.argv[2:]; from pathlib import Path; from test_reproduce"
        " import *; run_jobs(three_jobs(Path(sys.argv[1])), 1, one_core=True, failed=print,"
        " moved=lambda *_: None)"
    )
    words = [sys.executable, "-c", program, str(tmp_path), str(TESTS / "research"), str(TESTS)]
    command = subprocess.Popen(words)
    planned = three_jobs(tmp_path)
    end = time.monotonic() + 120
    while not (planned[1].folder / "config.yaml").is_file() and time.monotonic() < end:
        time.sleep(0.05)
    command.kill()
    command.wait()
    time.sleep(3)  # the run sees that its command is gone
    assert [job.done for job in planned] == [True, False, False]
    kept = {path: path.stat().st_mtime_ns for path in planned[0].folder.glob("*.json")}
    assert len(kept) == 2  # run.json and the scores
    subprocess.run(words, check=True)
    assert [job.done for job in planned] == [True, True, True]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert os.path.getsize(planned[1].folder / "metrics.csv") > 0
