"""Two reports side by side: what is compared, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cascade_clip.cli.main import main
from cascade_clip.evaluation.report_diff import (
    Row,
    check_same_data,
    compare,
    compare_figures,
    read_report,
)


def make_report(
    name: str,
    iou: dict[str, float | None],
    unseen: tuple[str, ...] = ("c",),
    images: int = 4,
    sha256: str = "ab",
) -> dict[str, Any]:
    return {
        "images": images,
        "summary": {
            "seen_miou": 0.5,
            "unseen_miou": None,
            "hiou": None,
            "miou": 0.25,
            "pixel_accuracy": 1.0,
        },
        "classes": [
            {"name": label, "seen": label not in unseen, "iou": value, "accuracy": None}
            for label, value in iou.items()
        ],
        "data": {"settings": None, "sha256": sha256},
        "checkpoint": {"name": name, "sha256": ""},
    }


def test_classes_with_the_largest_differences_come_first() -> None:
    first = make_report("runs/a", {"a": 0.1, "b": 0.9, "c": 0.5, "d": 0.3, "e": None})
    second = make_report("runs/b", {"a": 0.2, "b": 0.1, "c": 0.9, "d": 0.3, "e": 0.5})
    found = compare(first, second, count=2)
    assert found.titles == ("a", "b")
    assert [(row.label, row.first, row.second) for row in found.classes] == [
        ("b", 0.9, 0.1),
        ("c *", 0.5, 0.9),
    ]
    everything = compare(first, second)
    # d has not changed, e cannot be compared
    assert [row.label for row in everything.classes] == ["b", "c *", "a"]
    assert [row.label for row in found.figures][:2] == [
        "S: mIoU of seen classes",
        "U: mIoU of unseen classes",
    ]


def test_differences_have_the_sign_of_the_change() -> None:
    assert Row("", 0.5, 0.75).difference == 0.25
    assert Row("", 0.75, 0.5).difference == -0.25
    assert Row("", None, 0.5).difference is None
    rows = compare_figures({"seen_miou": 0.5}, {"seen_miou": 0.25, "hiou": 1.0})
    assert [row.difference for row in rows] == [-0.25, None, None, None, None]
    assert (rows[2].first, rows[2].second) == (None, 1.0)


@pytest.mark.parametrize(
    ("first", "second", "agrees"),
    [
        (0.5, 0.5625, True),  # exactly the tolerance
        (0.5, 0.563, False),
        (0.5625, 0.5, True),
        (None, None, True),
        (None, 0.5, False),
        (0.5, None, False),
    ],
)
def test_agreement(first: float | None, second: float | None, agrees: bool) -> None:
    assert Row("", first, second).agrees(0.0625) is agrees


@pytest.mark.parametrize(
    ("names", "titles"),
    [
        # the last parts are the same
        (("runs/a/model", "runs/b/model"), ("runs/a/model", "runs/b/model")),
        (("runs/a", "runs/a"), ("runs/a (before)", "runs/a (now)")),
        (("", "mini"), ("unnamed", "mini")),
    ],
)
def test_titles_tell_the_two_apart(names: tuple[str, str], titles: tuple[str, str]) -> None:
    assert (
        compare(make_report(names[0], {"c": 0.1}), make_report(names[1], {"c": 0.1})).titles
        == titles
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": 5}, r"different data .*a: 5 images, data-set hash ab; b: 4 images"),
        ({"sha256": "cd"}, "different data .*hash cd"),
        ({"sha256": ""}, "hash unknown"),
        ({"unseen": ("a",)}, r"count other classes as unseen.*\(a, c\)"),
    ],
)
def test_other_images_or_splits_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare(
            make_report("a", {"a": 0.1, "c": 0.1}, **change), make_report("b", {"a": 0.1, "c": 0.1})
        )


def test_the_data_can_be_checked_before_anything_runs() -> None:
    report = make_report("a", {"c": 0.1})
    check_same_data(report, 4, "ab")
    with pytest.raises(ValueError, match="now: 4 images, data-set hash cd"):
        check_same_data(report, 4, "cd")


def test_what_is_no_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="writes one"):
        read_report(tmp_path / "none.json")
    file = tmp_path / "report.json"
    file.write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        read_report(file)
    file.write_text(json.dumps({"images": 3}))
    with pytest.raises(ValueError, match="not a report of this version"):
        read_report(file)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"images": "4"}, "images"),
        ({"images": True}, "images"),
        ({"summary": []}, "summary"),
        ({"summary": {"miou": "high"}}, "summary"),
        ({"classes": None}, "classes"),
        ({"classes": ["a"]}, "classes"),
        ({"classes": [{"name": "a", "seen": True}]}, "classes"),  # no IoU
        ({"classes": [{"name": "a", "seen": 1, "iou": None}]}, "classes"),
        ({"classes": [{"seen": True, "iou": 0.5}]}, "classes"),
        ({"data": None, "checkpoint": None}, "data, checkpoint"),
    ],
)
def test_a_report_with_other_values_is_refused(
    change: dict[str, Any], named: str, tmp_path: Path
) -> None:
    file = tmp_path / "report.json"
    report = make_report("a", {"a": 0.1, "c": None})
    file.write_text(json.dumps(report))
    assert read_report(file) == report
    file.write_text(json.dumps(report | change))
    with pytest.raises(
        ValueError, match=rf"not a report of this version: {named} hold other values"
    ):
        read_report(file)


def test_a_malformed_report_is_no_defect(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "report.json"
    file.write_text('{"images": 2, "summary": {}, "classes": [], "data": null, "checkpoint": null}')
    assert (
        main(
            [
                "evaluate",
                str(tiny_folder),
                "--data",
                "sandbox",
                "--limit",
                "2",
                "--against",
                str(file),
            ]
        )
        == 2
    )
    assert "data, checkpoint hold other values" in capsys.readouterr().err


@pytest.mark.parametrize("names", [["a"], ["a", "d"], ["c", "a"], ["a", "c", "d"]])
def test_reports_of_other_classes_are_refused(names: list[str]) -> None:
    """The data-set hash tells them apart, unless somebody wrote into the file."""
    with pytest.raises(ValueError, match="list other classes"):
        compare(make_report("a", {"a": 0.1, "c": 0.1}), make_report("b", dict.fromkeys(names, 0.1)))


def test_against_a_report_and_against_a_checkpoint(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(tiny_folder), "--data", "sandbox", "--limit", "1"]
    assert main([*words, "--out", str(tmp_path / "first")]) == 0
    for against in (tmp_path / "first" / "report.json", tmp_path / "first", tiny_folder):
        capsys.readouterr()
        assert main([*words, "--against", str(against)]) == 0
        out = capsys.readouterr().out
        assert "side by side" in out and "+0.00" in out and "differs most" not in out
    assert (
        main(
            [
                *words,
                "--calibration",
                "0.9",
                "--out",
                str(tmp_path / "second"),
                "--against",
                str(tmp_path / "first"),
            ]
        )
        == 0
    )
    assert "beside" in (tmp_path / "second" / "report.html").read_text()
    capsys.readouterr()
    for given, text in (
        (["--limit", "2"], "rest on different data"),
        (["--seed", "3"], "rest on different data"),
    ):
        assert main([*words, *given, "--against", str(tmp_path / "first")]) == 2
        assert text in capsys.readouterr().err
    assert main([*words, "--against", str(tmp_path / "none")]) == 2
    assert "no checkpoint at" in capsys.readouterr().err
