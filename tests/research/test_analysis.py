"""Looking inside: kernel alignment against a direct computation, patches alike, stages alone and
added."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch.nn import functional as F

from cascade_clip.cli.analyse import _name_colors
from cascade_clip.cli.main import main
from cascade_clip.inference.loading import load_predictor
from cascade_clip.inference.predictor import Predictor
from cascade_clip.research.analysis import (
    block_alignment,
    compare_stages,
    keep_stages,
    minibatch_hsic,
    patch_similarity,
)
from cascade_clip.results.segmentation import Segmentation
from cascade_clip.sandbox.scenes import SceneConfig, make_scene


@pytest.fixture(scope="module")
def mini() -> Predictor:
    return load_predictor("mini", "cpu")


def scene(index: int = 3) -> np.ndarray:
    return make_scene(5, index, SceneConfig(size=96)).image


def test_hsic_is_the_mean_over_quadruples() -> None:
    """The unbiased estimator is a U-statistic: a mean over all ordered choices of four different
    samples."""
    draw = np.random.default_rng(0)
    x, y = draw.standard_normal((6, 3)), draw.standard_normal((6, 2))
    k, m = x @ x.T, y @ y.T
    terms = [
        k[i, j] * m[i, j] + k[i, j] * m[q, r] - 2 * k[i, j] * m[i, q]
        for i, j, q, r in itertools.permutations(range(6), 4)
    ]
    found = minibatch_hsic([torch.from_numpy(x), torch.from_numpy(y)])
    assert found[0, 1] == pytest.approx(np.mean(terms), rel=1e-9)
    assert found[0, 1] == found[1, 0]


def test_alignment_of_blocks(mini: Predictor) -> None:
    images = [
        torch.from_numpy(scene(index)).permute(2, 0, 1).float() / 127.5 - 1 for index in range(9)
    ]
    found = block_alignment(mini, images, batch=4)  # two minibatches, the ninth is left out
    assert found.shape == (12, 12)
    assert np.allclose(np.diag(found), 1) and np.allclose(found, found.T)
    assert found[0, 1] > found[0, 11] and found.max() <= 1.01
    total = np.zeros((2, 2))
    for batch in (images[:4], images[4:8]):
        with torch.inference_mode():
            hidden = mini.model.features(torch.stack(batch), [2, 9], projected=False).patches
        total += minibatch_hsic([hidden[2].flatten(1), hidden[9].flatten(1)])
    assert found[1, 8] == pytest.approx(total[0, 1] / np.sqrt(total[0, 0] * total[1, 1]))
    with pytest.raises(ValueError, match="at least 16 images"):
        block_alignment(mini, images)
    with pytest.raises(ValueError, match="at least 4 images"):
        block_alignment(mini, images, batch=3)


def test_similarity_of_a_patch(mini: Predictor) -> None:
    picture = np.zeros((96, 128, 3), dtype=np.uint8)
    picture[:48, :64] = (200, 30, 30)
    maps = patch_similarity(mini, picture, (10, 90), [1, 12])
    assert maps[1].shape == (16, 22)  # 128 x 171 pixels in patches of 8, the last column padded
    assert maps[12].max() == pytest.approx(1.0, abs=1e-5)
    # alike is what is black, not the red corner
    assert np.unravel_index(maps[1].argmax(), maps[1].shape)[0] > 8
    assert maps[1][12:, 12:20].mean() > maps[1][:7, :9].mean()
    with pytest.raises(ValueError, match="outside the image of 128 x 96"):
        patch_similarity(mini, picture, (128, 0), [1])


def test_stages_alone_and_added(mini: Predictor) -> None:
    image = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    text = F.normalize(torch.randn(4, 128, generator=torch.Generator().manual_seed(1)), dim=-1)
    with torch.inference_mode():
        masks = mini.model.stage_masks(image, text).stages
        torch.testing.assert_close(keep_stages(mini, [2]).model(image, text), masks[1])
        torch.testing.assert_close(
            keep_stages(mini, [1, 3]).model(image, text), masks[0] + masks[2]
        )
    found = compare_stages(mini, scene(), mini.bind())
    assert [numbers for numbers, _ in found] == [(1,), (2,), (3,), (1, 2), (1, 2, 3)]
    assert np.array_equal(found[-1].result.labels, mini.segment(scene()).labels)
    assert not np.array_equal(found[0].result.labels, found[-1].result.labels)
    for wrong in ([], [0], [4]):
        with pytest.raises(ValueError, match="stages 1 to 3"):
            keep_stages(mini, wrong)


def test_commands_draw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(scene()).save(tmp_path / "scene.png")
    source, out = str(tmp_path / "scene.png"), tmp_path / "out.png"
    for words in (
        ["similarity", source, "--point", "20,30"],
        ["stages", source, "--classes", "grass, star"],
        ["cka", "--limit", "16"],
    ):
        assert main(["analyse", *words, "--out", str(out)]) == 0
        assert Image.open(out).width > 300
        out.unlink()
    assert not capsys.readouterr().err


def test_stages_name_their_colors() -> None:
    """The classes that are there, those with most pixels first; a dollar sign is a letter and no
    formula."""
    labels = np.array([[1, 1, 1, 2], [-1, 2, 3, 3]])
    found = [
        Segmentation(
            labels, ("a", "b", "$5", "d"), ((1, 1, 1), (0, 0, 255), (255, 0, 0), (9, 9, 9))
        )
        for _ in range(2)
    ]
    figure = Figure()
    _name_colors(figure, found)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["b", r"\$5", "d"]
    many = Segmentation(np.arange(15)[None], tuple(map(str, range(15))), ((1, 2, 3),) * 15)
    crowded = Figure()
    _name_colors(crowded, [many])
    assert [text.get_text() for text in crowded.legends[0].get_texts()][-2:] == ["11", "and 3 more"]
    assert [patch.get_facecolor()[:3] for patch in legend.get_patches()][:2] == [
        (0, 0, 1),
        (1, 0, 0),
    ]


def test_commands_refuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(scene()).save(tmp_path / "scene.png")
    source = str(tmp_path / "scene.png")
    assert main(["analyse", "similarity", source, "--point", "a,b"]) == 2
    assert "--point wants whole numbers" in capsys.readouterr().err
