"""The data check: every kind of problem is found, all at once, and sound data sets pass."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cascade_clip.cli.main import main
from cascade_clip.data.check.checker import CheckReport, check_data, spread
from cascade_clip.data.check.facts import KEPT, PairFacts, read_facts, tally_facts
from cascade_clip.data.check.preview import choose_pairs, draw_sheet
from cascade_clip.data.folder import find_files
from cascade_clip.vocabulary import Vocabulary, load_vocabulary, parse_classes
from paths import PHOTOS

CLASSES = parse_classes("cat, dog, tree")


@pytest.fixture(autouse=True)
def single_thread() -> None:
    torch.set_num_threads(1)


def write_pair(folder: Path, name: str, mask: Any, size: tuple[int, int] | None = None) -> None:
    """An image of noise and its mask (rows of values or colours); `size` is the image's width and
    height where it differs."""
    values = np.asarray(mask)
    width, height = size or (values.shape[1], values.shape[0])
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(name)).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "images" / f"{name}.png")
    Image.fromarray(values.astype(np.uint16 if values.max() > 255 else np.uint8)).save(
        folder / "masks" / f"{name}.png"
    )


def check(folder: Path, vocabulary: Vocabulary = CLASSES, **options: Any) -> CheckReport:
    return check_data(find_files(folder / "images", folder / "masks"), vocabulary, **options)


def kinds(report: CheckReport) -> dict[str, list[str]]:
    return {
        "wrong": [finding.kind for finding in report.wrong],
        "note": [finding.kind for finding in report.notes],
    }


def text_of(report: CheckReport, kind: str) -> str:
    (found,) = (finding.text for finding in report.findings if finding.kind == kind)
    return found


def listed(folder: Path, text: str) -> Vocabulary:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classes.txt").write_text(text)
    return load_vocabulary(str(folder / "classes.txt"))


# Counts


def test_counts_are_exact(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", [[0, 0, 1, 255], [0, 0, 1, 255]])
    write_pair(tmp_path, "b", [[0, 0, 0, 2], [0, 0, 0, 0]])
    report = check(tmp_path)
    assert [(row.text, row.pixels, row.images) for row in report.tally.classes] == [
        ("cat", 11, 2),
        ("dog", 2, 1),
        ("tree", 1, 1),
    ]
    assert (report.tally.ignored.pixels, report.tally.ignored.images) == (2, 1)
    assert (report.tally.masks, report.tally.pixels, report.tally.unknown) == (2, 16, ())
    assert report.tally.share(report.tally.classes[0]) == 11 / 16
    assert report.tally.values == {0: 11, 1: 2, 2: 1, 255: 2}


def test_workers_and_limit(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    for index in range(7):
        write_pair(tmp_path, f"{index}", draws.integers(0, 3, (5, 6)))
    steps: list[tuple[int, int]] = []
    alone = check(tmp_path, step=lambda done, total: steps.append((done, total)))
    assert steps == [(done, 7) for done in range(1, 8)]
    assert check(tmp_path, workers=2).facts == alone.facts
    some = check(tmp_path, limit=3)
    assert [item.image.stem for item in some.facts] == ["0", "2", "4"]
    assert len(some.files.pairs) == 7


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(0, [0, 1, 2, 3, 4]), (1, [0]), (2, [0, 2]), (4, [0, 1, 2, 3]), (9, [0, 1, 2, 3, 4])],
)
def test_a_limit_takes_even_distances(limit: int, expected: list[int]) -> None:
    pairs = [(Path(f"{index}"), Path()) for index in range(5)]
    assert [int(image.name) for image, _ in spread(pairs, limit)] == expected


# Problems


def test_every_problem_is_found_at_once(tmp_path: Path) -> None:
    write_pair(tmp_path, "good", [[0, 1, 2, 255]] * 4)
    write_pair(tmp_path, "unknown", [[0, 1, 2, 9]] * 4)
    write_pair(tmp_path, "other", [[0, 1, 2, 255]] * 4, size=(5, 4))
    write_pair(tmp_path, "turned", [[0, 1, 2, 255, 0]] * 4, size=(4, 5))
    write_pair(tmp_path, "damaged", [[0, 1, 2, 255]] * 4)
    write_pair(tmp_path, "both", [[0, 1, 2, 255]] * 4)
    write_pair(tmp_path, "image", [[0, 1, 2, 255]] * 4)
    write_pair(tmp_path, "mask", [[0, 1, 2, 255]] * 4)
    (tmp_path / "masks" / "image.png").unlink()
    (tmp_path / "images" / "mask.png").unlink()
    (tmp_path / "images" / "good.bmp").write_bytes(b"")
    (tmp_path / "images" / "damaged.png").write_bytes(
        (tmp_path / "images" / "damaged.png").read_bytes()[:60]
    )
    for part in ("images", "masks"):
        (tmp_path / part / "both.png").write_bytes(b"hello")
    (tmp_path / "images" / "good.bmp").unlink()
    Image.new("RGB", (4, 4)).save(tmp_path / "images" / "unknown.jpg")
    report = check(tmp_path)
    assert kinds(report) == {
        "wrong": [
            "one-name",
            "images-without-mask",
            "unreadable-images",
            "unreadable-masks",
            "sizes",
            "unknown-values",
        ],
        "note": ["masks-without-image"],
    }
    assert list(report.findings) == report.wrong + report.notes  # what is wrong comes first
    assert "files of one name, 1 pair: unknown.jpg and unknown.png; remove" in text_of(
        report, "one-name"
    )
    alone = text_of(report, "images-without-mask")
    assert re.match(r"1 of 7 images in .*images have no mask: image\.png; a mask has", alone)
    assert text_of(report, "masks-without-image") == "1 mask without an image, not used: mask.png"
    assert text_of(report, "unreadable-images").startswith("2 images cannot be used: image ")
    assert "(also damaged.png)" in text_of(report, "unreadable-images")
    assert text_of(report, "unreadable-masks").startswith("1 mask cannot be used: mask ")
    sizes = text_of(report, "sizes")
    assert sizes.startswith(
        "2 masks of another size (width x height) than the image: other.png 4 x 4, image 5 x 4,"
        " turned.png 5 x 4"
    )
    assert "turned by 90 degrees: 1;" in sizes
    assert (
        "1 mask value without a class: 9 (4 pixels, 1 of 5 masks); write the class list"
        in text_of(report, "unknown-values")
    )
    values = report.to_json()
    assert (values["images"], values["masks"], values["pairs"], values["pairs_read"]) == (
        7,
        7,
        6,
        6,
    )
    assert len(values["unreadable"]) == 3 and len(values["other_size"]) == 2


def test_a_sound_data_set_passes(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", [[0, 1, 2, 255]] * 4)
    assert kinds(check(tmp_path)) == {"wrong": [], "note": []}


BACKGROUND = [[0, 0, 0, 0, 0, 0, 0, 1, 2, 2]]  # 70 % of value 0


@pytest.mark.parametrize(
    ("classes", "rows", "wrong", "notes"),
    [
        # masks count from 1
        ("cat\ndog\ntree\n", [[1, 2, 3, 255]], ["unknown-values", "shifted"], ["absent-classes"]),
        ("1 cat\n2 dog\n3 tree\n", [[1, 2, 3, 255]], [], []),  # the remedy that it names
        # 0 occurs: no shift
        ("cat\ndog\ntree\n", [[0, 2, 3, 255]], ["unknown-values"], ["absent-classes"]),
        # perhaps shifted
        ("cat\ndog\ntree\n", [[1, 2, 2, 255]], [], ["zero-absent", "absent-classes"]),
        # only one class: no sign of a shift
        ("cat\ndog\ntree\n", [[1, 1, 1, 255]], [], ["absent-classes"]),
        ("cat\ndog\ntree\n", BACKGROUND, ["zero-is-background"], ["nothing-ignored"]),
        # something is ignored elsewhere
        ("cat\ndog\ntree\n", [*BACKGROUND, [255] + [0] * 7 + [1, 2]], [], ["zero-is-background"]),
        ("road surface\ndog\ntree\n", BACKGROUND, [], ["nothing-ignored"]),  # may fill most of it
        ("0 null\n1 dog\n2 tree\n", BACKGROUND, [], []),
        # 60 % is not over 60 %
        ("cat\ndog\ntree\n", [[0, 0, 0, 0, 0, 0, 1, 1, 2, 2]], [], ["nothing-ignored"]),
        ("0 cat\n1 dog\n2 tree\n", [[0, 1, 2, 254]], ["unknown-values"], ["nothing-ignored"]),
        ("0 null\n1 dog\n", [[0, 0, 0, 0]], ["no-class"], ["empty-masks"]),  # nothing to score
        ("0 null\n1 dog\n", [[0, 0, 0, 1]], [], []),
        ("0 null\n1 dog\n", [[0, 0, 0, 7]], ["unknown-values"], []),  # the reason has been named
    ],
)
def test_values_that_look_wrong(
    classes: str, rows: list[list[int]], wrong: list[str], notes: list[str], tmp_path: Path
) -> None:
    write_pair(tmp_path, "a", rows)
    assert kinds(check(tmp_path, listed(tmp_path, classes))) == {"wrong": wrong, "note": notes}


@pytest.mark.parametrize(
    ("classes", "ignore", "rows", "wrong", "notes"),
    [
        ("cat\ndog\n", 7, [[0, 1, 7, 255]], ["unknown-values"], []),
        ("0 cat\n255 dog\n", 7, [[0, 255, 7, 7]], [], ["255-is-a-class"]),
        (
            "0 cat\n300 dog\n",
            255,
            [[0, 255, 0, 0]],
            ["cut-to-8-bits"],
            ["zero-is-background", "absent-classes"],
        ),  # 75 %, but 255 is ignored
        ("0 cat\n300 dog\n", 255, [[0, 255, 300, 300]], [], []),
    ],
)
def test_the_value_255(
    classes: str,
    ignore: int,
    rows: list[list[int]],
    wrong: list[str],
    notes: list[str],
    tmp_path: Path,
) -> None:
    write_pair(tmp_path, "a", rows)
    report = check(tmp_path, dataclasses.replace(listed(tmp_path, classes), ignore=ignore))
    assert kinds(report) == {"wrong": wrong, "note": notes}
    if wrong == ["unknown-values"]:
        assert "set --ignore 255 (now 7)" in text_of(report, "unknown-values")


def test_unseen_classes_that_never_occur(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", [[0, 1, 0, 255]])
    report = check(tmp_path, CLASSES.with_unseen(["dog", "tree"]))
    assert text_of(report, "absent-classes") == "1 of 3 classes never occur: tree"
    assert (
        text_of(report, "absent-unseen") == "unseen classes that never occur cannot be scored: tree"
    )


# Colours


def test_masks_by_colour(tmp_path: Path) -> None:
    rows = [
        [(1, 0, 0), (1, 0, 0), (0, 2, 0), (0, 0, 0)],
        [(1, 0, 0), (9, 9, 9), (9, 9, 8), (9, 9, 8)],
    ]
    write_pair(tmp_path, "a", rows)
    report = check(tmp_path, listed(tmp_path, "0 0 0 null\n1 0 0 cat\n#000200 dog\n"))
    assert [(row.text, row.pixels) for row in report.tally.classes] == [("cat", 3), ("dog", 1)]
    assert [(row.text, row.pixels) for row in report.tally.unknown] == [
        ("#090908", 2),
        ("#090909", 1),
    ]
    assert kinds(report) == {"wrong": ["unknown-colours"], "note": []}
    assert "`R G B NAME`" in text_of(report, "unknown-colours")
    report = check(tmp_path)
    assert kinds(report) == {"wrong": ["colour-masks"], "note": []}
    assert text_of(report, "colour-masks").startswith(
        "masks that hold colours: 1 of 1, but the class list gives none; "
    )
    assert "the colours found: #010000 (3 pixels, 1 of 1 masks), #090908 (2 pixels" in text_of(
        report, "colour-masks"
    )


def test_smoothed_colours_do_not_fill_the_memory(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(1, 256, (60, 60, 3))
    noise[:30] = (1, 0, 0)
    write_pair(tmp_path, "a", noise)
    report = check(tmp_path, listed(tmp_path, "0 0 0 null\n1 0 0 cat\n"))
    assert len(report.facts[0].values) == KEPT
    assert report.facts[0].labels == {0: 1800, -2: 1800}
    assert report.tally.pixels == 3600
    assert "smoothing or lossy compression" in text_of(report, "unknown-colours")


# Preview sheet


def facts(name: str, *labels: int) -> PairFacts:
    return PairFacts(
        Path(name), Path(name), image_size=(4, 4), mask_size=(4, 4), labels=dict.fromkeys(labels, 1)
    )


def test_the_sheet_shows_as_many_classes_as_it_can() -> None:
    broken = dataclasses.replace(facts("broken", 1, 2, 3, 4, 5), mask_size=None)
    items = [
        facts("a", 0),
        facts("b", 0, 1, -1),
        facts("c", 2),
        facts("d", 2, 3, 0),
        broken,
        facts("e", 3),
    ]
    assert [item.image.name for item in choose_pairs(items, 2)] == ["b", "d"]
    assert [item.image.name for item in choose_pairs(items, 3)] == ["b", "d", "e"]
    assert [item.image.name for item in choose_pairs(items, 9)] == ["a", "b", "c", "d", "e"]
    assert choose_pairs([broken]) == []


def test_the_sheet_has_the_colours_of_the_classes(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    Image.new("RGB", (40, 20), (100, 100, 100)).save(tmp_path / "images" / "a.png")
    Image.fromarray(
        np.repeat(np.array([[0, 9, 255, 1]], dtype=np.uint8), 20, 0).repeat(10, 1)
    ).save(tmp_path / "masks" / "a.png")
    report = check(tmp_path)
    sheet = draw_sheet(report.facts, report.vocabulary, report.tally)
    assert sheet is not None
    left, top = 14 + 40 + 2, 14
    # unknown is magenta, ignored grey
    expected = [CLASSES.colors[0], (255, 0, 255), (128, 128, 128), CLASSES.colors[1]]
    for place, color in enumerate(expected):
        found = sheet.getpixel((left + 10 * place + 4, top + 10))
        assert isinstance(found, tuple)
        assert (
            max(
                abs(value - (0.3 * 100 + 0.7 * part))
                for value, part in zip(found, color, strict=True)
            )
            <= 1
        )
    assert sheet.getpixel((14 + 5, top + 5)) == (100, 100, 100)  # the image beside it
    swatches = [
        sheet.getpixel((14 + 40 + 2 + 40 + 14 + 5, top + 26 * row + 12)) for row in (1, 2, 3, 4)
    ]
    assert swatches == [CLASSES.colors[0], CLASSES.colors[1], (128, 128, 128), (255, 0, 255)]


# The command


def run(*words: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main(["data", "check", *(str(word) for word in words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_photos_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = (
        "--images",
        PHOTOS / "images",
        "--masks",
        PHOTOS / "masks",
        "--classes",
        PHOTOS / "classes.txt",
    )
    code, out, _ = run(
        *folders,
        "--unseen",
        "boots, hat",
        "--limit",
        6,
        "--workers",
        0,
        "--out",
        tmp_path / "out",
        capsys=capsys,
    )
    assert code == 0, out
    assert "24 images, 24 masks, 24 pairs, 6 of them read; images from 550 x 8" in out
    assert "nothing is wrong" in out
    report = json.loads((tmp_path / "out" / "check.json").read_text())
    stems = sorted(path.stem for path in (PHOTOS / "images").iterdir())[::4]
    masks = [np.array(Image.open(PHOTOS / "masks" / f"{stem}.png")) for stem in stems]
    names = [line.split(" ", 1)[1] for line in (PHOTOS / "classes.txt").read_text().splitlines()]
    for row in report["classes"]:
        value = names.index(row["name"])
        assert row["pixels"] == sum(int((mask == value).sum()) for mask in masks)
        assert row["images"] == sum(bool((mask == value).any()) for mask in masks)
        assert row["seen"] is (row["name"] not in ("boots", "hat"))
    assert report["ignored"]["pixels"] == sum(int((mask == 0).sum()) for mask in masks)
    assert report["pixels"] == sum(mask.size for mask in masks)
    assert Image.open(tmp_path / "out" / "check.png").width > 900
    # nothing temporary is left
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["check.json", "check.png"]


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pair(tmp_path, "a", [[0, 1, 2, 9]])
    folders = ("--images", tmp_path / "images", "--masks", tmp_path / "masks", "--workers", 0)
    code, out, _ = run(*folders, "--classes", "cat, dog, tree", capsys=capsys)
    assert code == 1
    assert "wrong: 1 mask value without a class: 9" in out and "1 thing is wrong, 1 note" in out
    assert run(*folders, "--classes", "cat, dog, tree", "--ignore", 9, capsys=capsys)[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "data.images, data.masks, data.classes not set"),
        (
            ["--images", "nowhere", "--masks", "{dir}", "--classes", "voc"],
            "image folder nowhere does not exist",
        ),
        (["--images", "{dir}", "--masks", "{dir}", "--classes", "voc"], "no images in"),
        (["--images", "{dir}", "--masks", "{dir}", "--classes", "unicorns.txt"], "no images in"),
        (["--data", "voc"], "masks of SBD is not in data: looked for VOCdevkit/VOC2012"),
        (
            ["--data", "voc", "--root", "{dir}", "--masks", "x"],
            "data.masks cannot be set with data.name voc",
        ),
        (["--data", "voc", "--root", "{dir}"], "SBD is not in"),
        (["--data", "vox", "--root", "{dir}"], "vox"),
        (["--limit", "-1"], "data.limit must be 0"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CASCADE_CLIP_DATA", raising=False)
    code, _, error = run(*(word.format(dir=tmp_path) for word in words), capsys=capsys)
    assert code == 2
    assert message in error


def test_a_named_data_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("images", "annotations"):
        (tmp_path / "ade" / "ADEChallengeData2016" / part / "validation").mkdir(parents=True)
    base = tmp_path / "ade" / "ADEChallengeData2016"
    Image.new("RGB", (4, 2)).save(base / "images" / "validation" / "a.jpg")
    Image.fromarray(np.array([[0, 1, 2, 2], [0, 1, 2, 150]], dtype=np.uint8)).save(
        base / "annotations" / "validation" / "a.png"
    )
    code, out, _ = run(
        "--data", "ade20k", "--root", tmp_path, "--workers", 0, "--unseen", "flag", capsys=capsys
    )
    assert code == 0, out
    assert "1 images, 1 masks, 1 pairs, all read; images of 4 x 2" in out
    assert "wall" in out and "building" in out and "flag (unseen)" in out
    # stands for --root, as in training and evaluation
    monkeypatch.setenv("CASCADE_CLIP_DATA", str(tmp_path))
    code, out, _ = run("--data", "ade20k", "--workers", 0, capsys=capsys)
    assert code == 0 and "1 images, 1 masks, 1 pairs, all read" in out


def test_reading_none() -> None:
    assert tally_facts(read_facts([], CLASSES), CLASSES).masks == 0
