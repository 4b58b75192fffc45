"""A segmentation keeps its names with it, and its files say what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.path import Path as MatplotlibPath
from PIL import Image

from cascade_clip.results.fonts import drawable, font_for
from cascade_clip.results.segmentation import Segmentation
from cascade_clip.vocabulary import build_palette

LABELS = np.array([[0, 0, 1], [1, 1, -1]])
NAMES, COLORS = ("cat", "grass", "sky"), ((200, 30, 30), (30, 200, 30), (30, 30, 200))


def small(**changes: object) -> Segmentation:
    values = {
        "labels": LABELS,
        "class_names": NAMES,
        "colors": COLORS,
        "scores": np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3),
    }
    return Segmentation(**{**values, **changes})  # type: ignore[arg-type]


def test_coverage_scores_and_masks() -> None:
    result = small()
    assert result.coverage == {
        "cat": pytest.approx(2 / 6),
        "grass": pytest.approx(3 / 6),
        "sky": 0.0,
    }
    assert result.mean_scores == {
        "cat": pytest.approx(0.1),
        "grass": pytest.approx((0.4 + 0.6 + 0.8) / 3),
    }
    assert result.mask("grass").tolist() == [[False, False, True], [True, True, False]]
    with pytest.raises(ValueError, match=r"no class 'dog'.*cat"):
        result.mask("dog")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.zeros((1, 2, 3), dtype=int)}, r"shape \(H, W\).*\(1, 2, 3\)"),
        ({"labels": np.zeros((0, 3), dtype=int)}, r"\(0, 3\)"),
        ({"labels": np.full((2, 3), 3)}, "from 3 to 3"),
        ({"labels": np.full((2, 3), -2)}, "from -2"),
        ({"labels": np.zeros((2, 3))}, "whole numbers"),
        ({"class_names": ("cat", "cat", "sky")}, "must differ"),
        ({"colors": COLORS[:2]}, "as many colours"),
        ({"scores": np.zeros((3, 2), dtype=np.float32)}, r"\(3, 2\)"),
    ],
)
def test_parts_that_do_not_fit(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**changes)


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_strips_of_rows_change_nothing(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large pictures are worked on a few rows at a time; polygons with holes a few pairs of points
    at a time."""
    y, x = np.mgrid[:60, :50]
    labels = np.where((x - 25) ** 2 + (y - 30) ** 2 < 80, 1, np.where(x + y < 9, -1, 0))
    scores = np.random.default_rng(0).random(labels.shape, dtype=np.float32)
    picture = np.random.default_rng(1).integers(0, 256, (60, 50, 3)).astype(np.uint8)
    whole = small(labels=labels, scores=scores)
    expected = whole.overlay(picture), whole.to_labelme("a.jpg")
    monkeypatch.setattr("cascade_clip.results.segmentation._STRIP", 50 * rows)
    monkeypatch.setattr("cascade_clip.results.polygons._PAIRS", 50 * rows)
    assert whole.overlay(picture).tobytes() == expected[0].tobytes()
    assert whole.to_labelme("a.jpg") == expected[1]
    assert any(len(shape["points"]) > 30 for shape in expected[1]["shapes"])
    counts = [int((labels == index).sum()) for index in range(3)]
    assert whole.coverage == {
        name: pytest.approx(count / labels.size) for name, count in zip(NAMES, counts, strict=True)
    }
    assert whole.mean_scores == {
        name: pytest.approx(float(scores[labels == index].mean()))
        for index, name in enumerate(NAMES[:2])
    }
    colors = np.array([*COLORS, (128, 128, 128)])[labels]
    blended = np.asarray(whole.overlay(picture, 1.0, legend=False)).astype(int)
    edge = np.zeros(labels.shape, dtype=bool)
    edge[:-1] |= labels[:-1] != labels[1:]
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    assert np.array_equal(blended, np.where(edge[..., None], 255, colors))


@pytest.mark.parametrize("classes", [3, 255, 256, 400])
def test_files_give_the_labels_back(tmp_path: Path, classes: int) -> None:
    """8-bit palette files up to 255 classes, 16-bit beyond; unlabelled pixels stay unlabelled."""
    names = tuple(f"class {index}" for index in range(classes))
    labels = np.arange(-1, classes).repeat(2).reshape(2, -1)
    first = Segmentation(labels, names, build_palette(classes))
    written = first.save(
        tmp_path, "a/b".replace("/", "_"), np.zeros((*labels.shape, 3), dtype=np.uint8)
    )
    assert [path.name for path in written] == ["a_b_overlay.png", "a_b_index.png", "a_b.json"]
    # nothing half-written stays
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in written)
    second = Segmentation.load(tmp_path / "a_b.json")
    assert np.array_equal(second.labels, labels)
    assert (second.class_names, second.colors) == (first.class_names, first.colors)
    assert Image.open(tmp_path / "a_b_index.png").mode == ("P" if classes <= 255 else "I;16")


def test_index_colours_are_the_class_colours() -> None:
    shown = np.array(small().index_image().convert("RGB"))
    assert tuple(shown[0, 0]) == COLORS[0]
    assert tuple(shown[0, 2]) == COLORS[1]


@pytest.mark.parametrize("size", [(1, 1), (7, 900), (300, 400), (1500, 40)])
@pytest.mark.parametrize("classes", [1, 60])
def test_overlay_of_any_size(size: tuple[int, int], classes: int) -> None:
    names = tuple(f"a rather long class name, number {index}" for index in range(classes))
    labels = np.arange(size[0] * size[1]).reshape(size) % classes
    overlay = Segmentation(labels, names, build_palette(classes)).overlay(
        np.zeros((*size, 3), dtype=np.uint8)
    )
    assert overlay.width > size[1] and overlay.height >= size[0]


def test_overlay_blends_and_draws_borders() -> None:
    labels = np.zeros((20, 20), dtype=int)
    labels[:, 10:] = 1
    image = np.full((20, 20, 3), 100, dtype=np.uint8)
    plain = np.array(Segmentation(labels, NAMES, COLORS).overlay(image, 0.5, legend=False))
    assert plain.shape == (20, 20, 3)
    assert np.allclose(plain[5, 3], (np.array(COLORS[0]) + 100) / 2, atol=1)
    assert tuple(plain[5, 9]) == (255, 255, 255)
    with pytest.raises(ValueError, match="20 x 20"):
        Segmentation(LABELS, NAMES, COLORS).overlay(image)
    with pytest.raises(ValueError, match="opacity"):
        Segmentation(labels, NAMES, COLORS).overlay(image, 2.0)


def test_labels_of_small_types_count_right() -> None:
    names = tuple(f"class {index}" for index in range(300))
    result = Segmentation(np.full((2, 3), 255, dtype=np.uint8), names, build_palette(300))
    assert result.coverage["class 255"] == 1.0
    assert (
        Segmentation(np.full((2, 3), 127, dtype=np.int8), names, build_palette(300)).coverage[
            "class 127"
        ]
        == 1.0
    )


@pytest.mark.parametrize("stem", ["../x", "a/b", ""])
def test_results_stay_in_their_folder(tmp_path: Path, stem: str) -> None:
    with pytest.raises(ValueError, match="plain file name"):
        small().save(tmp_path / "out", stem)


def test_json_says_everything() -> None:
    values = small().to_json()
    assert (values["width"], values["height"]) == (3, 2)
    assert values["unlabelled"] == pytest.approx(1 / 6)
    assert values["classes"][2] == {
        "index": 2,
        "name": "sky",
        "color": [30, 30, 200],
        "coverage": 0.0,
        "mean_score": None,
    }


def test_loading_something_else(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(ValueError, match="not the JSON of a segmentation"):
        Segmentation.load(tmp_path / "x.json")


def test_heatmap_is_the_class_map_at_full_size() -> None:
    maps = np.zeros((2, 2, 2), dtype=np.float16)
    maps[1] = [[0.0, 1.0], [0.0, 1.0]]
    result = Segmentation(
        np.zeros((4, 4), dtype=np.int64), ("a", "b"), ((1, 2, 3), (4, 5, 6)), class_maps=maps
    )
    # bilinear, centres of pixels
    expected = np.tile(np.array([0.0, 0.25, 0.75, 1.0], dtype=np.float32), (4, 1))
    assert np.allclose(result.heatmap("b"), expected)
    assert not result.heatmap("a").any()
    picture = np.asarray(result.heatmap_image("b"))
    assert picture[0, 0].tolist() == [0, 0, 16] and picture[0, 3].tolist() == [255, 243, 176]
    blended = np.asarray(
        result.heatmap_image("b", np.zeros((4, 4, 3), dtype=np.uint8), opacity=0.5)
    )
    assert blended[0, 3].tolist() == [127, 121, 88]


def test_heatmaps_need_class_maps_of_every_class() -> None:
    result = Segmentation(np.zeros((4, 4), dtype=np.int64), ("a",), ((1, 2, 3),))
    with pytest.raises(ValueError, match="no class maps"):
        result.heatmap("a")
    with pytest.raises(ValueError, match="no class 'b'"):
        result.heatmap("b")
    with pytest.raises(ValueError, match=r"shape \(1, h, w\)"):
        Segmentation(
            np.zeros((4, 4), dtype=np.int64),
            ("a",),
            ((1, 2, 3),),
            class_maps=np.zeros((2, 2, 2), dtype=np.float16),
        )


def test_labelme_polygons_draw_the_masks_again() -> None:
    labels = np.zeros((40, 60), dtype=np.int64)
    labels[5:25, 10:40] = 1
    labels[10:20, 15:30] = 0  # a hole
    labels[30:40, 50:60] = 1  # a second part, at the border
    labels[2, 2] = 1  # too small to keep
    result = Segmentation(labels, ("a", "b", "absent"), ((1, 2, 3), (4, 5, 6), (7, 8, 9)))
    found = result.to_labelme("photo.jpg")
    assert (found["imagePath"], found["imageHeight"], found["imageWidth"]) == ("photo.jpg", 40, 60)
    assert {shape["label"] for shape in found["shapes"]} == {"a", "b"}
    parts = [shape for shape in found["shapes"] if shape["label"] == "b"]
    # corners alone; the cut adds one point at either end
    assert [len(part["points"]) for part in parts] == [18, 8]
    # not quite the centres, which the cut to the hole may run through
    rows, columns = np.mgrid[:40, :60] + 0.51
    centres = np.stack([columns.ravel(), rows.ravel()], axis=-1)  # (2400, 2)
    inside = sum(
        MatplotlibPath(part["points"]).contains_points(centres).astype(int) for part in parts
    ).reshape(40, 60)
    mask = result.mask("b").copy()
    mask[2, 2] = False
    assert np.array_equal(inside, mask)  # the hole stays open


def legend_of(name: str) -> np.ndarray:
    """The pixels of the legend beside a one-coloured picture."""
    result = Segmentation(np.zeros((60, 60), dtype=np.int64), (name,), ((10, 20, 30),))
    return np.asarray(result.overlay(np.zeros((60, 60, 3), dtype=np.uint8)))[:, 60:]


def test_legends_in_other_scripts_are_readable() -> None:
    """Letters that Pillow's font lacks come from another font: two different words do not both
    become boxes of one width."""
    first, second = (
        legend_of("\u0442\u0440\u0430\u0432\u0430"),
        legend_of("\u043d\u0435\u0431\u043e\u0431"),
    )  # five letters each
    narrow = min(first.shape[1], second.shape[1])
    assert not np.array_equal(first[:, :narrow], second[:, :narrow])
    assert font_for("\u0442\u0440\u0430\u0432\u0430", 12).getname()[0].startswith("DejaVu")
    assert font_for("grass \u00e9", 12).getname()[0] == "Aileron"
    assert drawable("caf\u00e9\u2026") == "caf\u00e9\u2026"
    assert drawable("\U000f0000x") == "U+F0000 x"  # private use: in no font
