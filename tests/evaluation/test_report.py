"""The HTML report and what it shows: confusions in words and as a picture, the worst and the best
images."""

from __future__ import annotations

import base64
import io
import json
import re
import warnings
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cascade_clip.cli.main import main
from cascade_clip.data.samples import Sample
from cascade_clip.evaluation.evaluator import Report
from cascade_clip.evaluation.examples import ExampleImages, ImageMetrics, ImageRecord, image_metrics
from cascade_clip.evaluation.metrics import ConfusionMatrix, compute_metrics
from cascade_clip.evaluation.report import (
    MOST_CLASSES,
    Confusion,
    build_page,
    draw_confusion,
    largest_confusions,
)
from cascade_clip.vocabulary import build_palette


def make_report(
    counts: np.ndarray, names: list[str] | None = None, seen: list[bool] | None = None
) -> Report:
    matrix = ConfusionMatrix(len(counts))
    matrix.counts = torch.from_numpy(counts)
    names = names or [f"c{index}" for index in range(len(counts))]
    found = compute_metrics(matrix, names, seen or [True] * len(counts))
    return Report(
        found, 3, 0.0, ("nothing is <assumed>",), counts, build_palette(len(counts)), {}, "d" * 64
    )


def make_record(index: int, miou: float) -> ImageRecord:
    empty = np.zeros((2, 2), dtype=np.int16)
    return ImageRecord(
        index, f"{index}.png", miou, 0.5, np.zeros((2, 2, 3), dtype=np.uint8), empty, empty
    )


def read_cells(page: str) -> list[str]:
    """The text of every table cell."""

    class Cells(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.found: list[str] = []
            self.inside = False

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag in ("td", "th"):
                self.found.append("")
                self.inside = True

        def handle_endtag(self, tag: str) -> None:
            self.inside = self.inside and tag not in ("td", "th")

        def handle_data(self, data: str) -> None:
            if self.inside:
                self.found[-1] += data

    cells = Cells()
    cells.feed(page)
    return cells.found


# Confusions


def test_largest_confusions_are_shares_of_the_true_class() -> None:
    # the last column has no prediction
    counts = np.array([[90, 10, 0, 0], [0, 1, 1, 2], [0, 0, 0, 0]])
    assert largest_confusions(counts, ["a", "b", "c"]) == [
        Confusion("b", "(no class)", 0.5, 2),
        Confusion("b", "c", 0.25, 1),
        Confusion("a", "b", 0.1, 10),
    ]
    assert [item.true for item in largest_confusions(counts, ["a", "b", "c"], count=1)] == ["b"]
    assert largest_confusions(np.array([[4, 0, 0], [0, 5, 0]]), ["a", "b"]) == []


def test_the_confusion_picture_divides_rows_and_leaves_absent_classes_out() -> None:
    counts = np.array([[3, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    axis = draw_confusion(make_report(counts, ["a", "b", "c"], [True, False, True])).axes[0]
    # b is predicted, c is nowhere
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b *"]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["a", "b *"]
    assert np.asarray(axis.images[0].get_array()).tolist() == [[0.75, 0.25], [0.0, 0.0]]
    counts[0, 3] = 4
    axis = draw_confusion(make_report(counts, ["a", "b", "c"])).axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["a", "b", "(no class)"]
    assert np.asarray(axis.images[0].get_array()).tolist() == [[0.375, 0.125, 0.5], [0.0, 0.0, 0.0]]


def test_many_classes_are_cut_to_those_with_the_most_pixels() -> None:
    classes = MOST_CLASSES + 5
    counts = np.concatenate(
        [np.diag(np.arange(1, classes + 1)), np.zeros((classes, 1), dtype=np.int64)], axis=1
    )
    axis = draw_confusion(make_report(counts)).axes[0]
    labels = [label.get_text() for label in axis.get_yticklabels()]
    # in label order, without the five rarest
    assert labels == [f"c{index}" for index in range(5, classes)]


def test_the_page_says_when_classes_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = np.array([[4, 0, 0, 0], [0, 5, 0, 0], [0, 0, 0, 0]])
    assert "with the most pixels" not in build_page(make_report(counts))
    monkeypatch.setattr("cascade_clip.evaluation.report.MOST_CLASSES", 1)
    assert "The 1 classes with the most pixels of 2." in build_page(make_report(counts))


def test_a_page_without_a_single_labelled_pixel_draws_no_matrix() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page = build_page(make_report(np.zeros((3, 4), dtype=np.int64)))
    assert "as no pixel has a label" in page and "data:image" not in page


# Worst and best images


def test_image_scores_count_the_classes_in_the_labels() -> None:
    matrix = ConfusionMatrix(4)
    matrix.update(np.array([[0, 0, 1, 2, 2]]), np.array([[0, 0, 1, 1, -1]]))
    found = image_metrics(matrix)
    assert found is not None
    # class 2 is predicted alone: it costs class 1, and is no entry of the mean
    assert found.miou == pytest.approx((1 + 1 / 2) / 2)
    assert found.pixel_accuracy == 3 / 4
    assert image_metrics(ConfusionMatrix(4)) is None


@pytest.mark.parametrize("keep", [0, 1, 2, 3, 10])
def test_examples_are_the_extremes_and_no_more(keep: int) -> None:
    order = np.random.default_rng(0).permutation(9)
    figures = [round(0.1 * (index // 2), 1) for index in range(9)]  # pairs of equal ones
    examples = ExampleImages(keep)
    for index in order:
        if examples.wants(int(index), figures[index]):
            examples.add(make_record(int(index), figures[index]))
        assert len(examples.records) <= 2 * keep
    expected = min(keep, 5), min(keep, 4)  # 9 images: none is shown twice
    assert [record.index for record in examples.worst] == list(range(expected[0]))
    assert [record.index for record in examples.best] == list(range(8, 8 - expected[1], -1))


def test_galleries_of_parts_merge_into_that_of_the_whole() -> None:
    records = [
        make_record(index, figure)
        for index, figure in enumerate([0.5, 0.1, 0.9, 0.1, 0.7, 0.9, 0.2])
    ]
    whole, merged = ExampleImages(2), ExampleImages(2)
    whole.extend(records)
    for rank in range(3):
        part = ExampleImages(2)
        part.extend(records[rank::3])
        merged.extend(part.records)
    merged.extend(whole.records)  # what is there already is not taken twice
    assert (
        [record.index for record in merged.worst]
        == [record.index for record in whole.worst]
        == [1, 3]
    )
    assert (
        [record.index for record in merged.best]
        == [record.index for record in whole.best]
        == [5, 2]
    )


def test_only_images_that_would_stay_are_wanted() -> None:
    examples = ExampleImages(1)
    assert examples.wants(0, 0.5)
    examples.extend([make_record(2, 0.2), make_record(4, 0.8)])
    wanted = {
        (index, miou): examples.wants(index, miou)
        for index, miou in [(9, 0.5), (9, 0.1), (9, 0.9), (1, 0.2), (3, 0.2), (3, 0.8), (5, 0.8)]
    }
    assert [place for place, wish in wanted.items() if wish] == [
        (9, 0.1),
        (9, 0.9),
        (1, 0.2),
        (5, 0.8),
    ]
    assert not ExampleImages(0).wants(0, 0.5)


def test_a_negative_number_of_images_is_refused() -> None:
    with pytest.raises(ValueError, match="0 or more"):
        ExampleImages(-1)


def test_records_are_reduced_and_keep_labels_whole() -> None:
    image = torch.zeros(3, 800, 1000, dtype=torch.uint8)
    labels = torch.full((800, 1000), -1)
    labels[:, 500:] = 300
    record = ImageRecord.make(
        4, Sample(image, labels, Path("folder/x.jpg")), labels.flip(1), ImageMetrics(0.25, 0.5)
    )
    assert record.image.shape == (307, 384, 3)
    assert record.truth.shape == record.prediction.shape == (307, 384)
    assert set(np.unique(record.truth)) == {-1, 300}
    assert (record.truth[0, 0], record.truth[0, -1], record.prediction[0, 0]) == (-1, 300, 300)
    assert record.to_json() == {"index": 4, "name": "x.jpg", "miou": 0.25, "pixel_accuracy": 0.5}
    small = ImageRecord.make(
        0, Sample(image[:, :5, :9], labels[:5, :9], Path("y")), labels[:5, :9], ImageMetrics(0, 0)
    )
    assert small.image.shape == (5, 9, 3)


# The page


def test_the_page_is_one_file_that_shows_everything(tiny_folder: Path, tmp_path: Path) -> None:
    words = [
        "evaluate",
        str(tiny_folder),
        "--data",
        "sandbox",
        "--limit",
        "3",
        "--pictures",
        "1",
        "--out",
        str(tmp_path / "report"),
    ]
    assert main(words) == 0
    page = (tmp_path / "report" / "report.html").read_text()
    values = json.loads((tmp_path / "report" / "report.json").read_text())
    assert not re.findall(r"<script|<link|https?://|src=\"(?!data:image/)", page)
    assert 'name="viewport"' in page
    for assumption in values["assumptions"]:
        assert assumption in page
    assert (
        values["data"]["sha256"] in page
        and values["checkpoint"]["sha256"] in page
        and "SHA-256 of CLIP" not in page
    )
    cells = read_cells(page)
    for entry in values["classes"]:
        start = cells.index(entry["name"] + ("" if entry["seen"] else " unseen"))
        shown = [
            "-" if entry[key] is None else f"{100 * entry[key]:.2f}" for key in ("iou", "accuracy")
        ]
        assert cells[start + 2 : start + 4] == shown
    for record in (*values["worst"], *values["best"]):
        assert (
            f"<b>{record['name']}</b> mIoU {100 * record['miou']:.2f}, pixel accuracy"
            f" {100 * record['pixel_accuracy']:.2f}" in page
        )
    assert [len(values["worst"]), len(values["best"])] == [1, 1]
    assert values["worst"][0]["miou"] <= values["best"][0]["miou"]
    pictures = re.findall(r'src="data:image/(png|jpeg);base64,([^"]+)"', page)
    sizes = [(kind, Image.open(io.BytesIO(base64.b64decode(data))).size) for kind, data in pictures]
    # the matrix; image, labels and prediction of two images
    assert [kind for kind, _ in sizes] == ["png"] + ["jpeg"] * 6
    assert {size for kind, size in sizes if kind == "jpeg"} == {(384, 384)}


def test_names_are_escaped_and_absent_figures_are_dashes() -> None:
    page = build_page(
        make_report(np.array([[2, 2, 0], [0, 0, 0]]), ["<b>&", "rare"], [True, False])
    )
    assert "&lt;b&gt;&amp;" in page and "<b>&<" not in page
    assert "nothing is &lt;assumed&gt;" in page
    cells = read_cells(page)
    assert cells[cells.index("<b>&") + 2 :][:2] == ["50.00", "50.00"]
    assert cells[cells.index("rare unseen") + 2 :][:2] == ["0.00", "-"]
    assert "50.0 % of <b>&lt;b&gt;&amp;</b> is called <b>rare</b> (2 pixels)" in page
    assert "Worst images" not in page
    assert re.search(r"<b>-</b><span>hIoU", page) is None  # U is 0, so hIoU is 0
    assert re.search(r"<b>0.00</b><span>hIoU", page)


def test_a_json_path_writes_the_figures_alone(tiny_folder: Path, tmp_path: Path) -> None:
    words = [
        "evaluate",
        str(tiny_folder),
        "--data",
        "sandbox",
        "--limit",
        "1",
        "--out",
        str(tmp_path / "x" / "figures.json"),
    ]
    assert main(words) == 0
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["figures.json"]
    values = json.loads((tmp_path / "x" / "figures.json").read_text())
    assert values["worst"] == []
    assert np.array(values["confusion"]).shape == (26, 27)
