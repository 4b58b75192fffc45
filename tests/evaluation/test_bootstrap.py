"""The paired bootstrap: figures by hand, what the pairing does, and how often its intervals hold
the truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from cascade_clip.evaluation.bootstrap import Difference, Tallies, compare_paired, figures
from cascade_clip.evaluation.metrics import ConfusionMatrix, compute_metrics

SEEN = np.array([True, True, False])


def draw(
    generator: np.random.Generator,
    images: int,
    share: Sequence[float],
    common: np.ndarray | None = None,
) -> Tallies:
    """Images whose classes have random areas, of which a random part around `share` is right;
    `common` makes models alike."""
    area = generator.poisson(100, (images, len(share))) if common is None else common
    right = generator.binomial(
        area, np.clip(np.array(share) + 0.1 * generator.standard_normal(area.shape), 0, 1)
    )
    return Tallies(right, area)


def test_figures_by_hand() -> None:
    found = figures(
        np.array([[1.0, 3.0, 2.0], [0.0, 0.0, 0.0]]),
        np.array([[2.0, 4.0, 5.0], [0.0, 2.0, 0.0]]),
        SEEN,
    )
    seen, unseen = (0.5 + 0.75) / 2, 0.4
    assert found[0] == pytest.approx([seen, unseen, 2 * seen * unseen / (seen + unseen)])
    assert found[1, 0] == 0.0  # the first class is absent
    assert np.isnan(found[1, 1:]).all()  # no unseen class, and so no harmonic mean
    assert figures(np.zeros(3), np.ones(3), SEEN).tolist() == [0, 0, 0]


def test_tallies_sum_up_to_the_scores_of_an_evaluation() -> None:
    generator = np.random.default_rng(0)
    counts = generator.integers(0, 50, (6, 3, 4))
    matrix = ConfusionMatrix(3)
    matrix.counts += matrix.counts.new_tensor(counts.sum(axis=0))
    expected = compute_metrics(matrix, "abc", SEEN)
    tallies = Tallies.of(counts)
    found = figures(tallies.intersection.sum(axis=0), tallies.union.sum(axis=0), SEEN)
    assert found == pytest.approx(
        [expected.seen_miou, expected.unseen_miou, expected.hiou], rel=1e-12
    )


def test_two_images_by_hand() -> None:
    """Drawn again, two images are both the first (1/4), both the second (1/4), or one of each
    (1/2)."""
    first, second = (
        Tallies(np.array([[8, 4], [0, 0]]), np.array([[10, 10], [10, 10]])),
        Tallies(*np.full((2, 2, 2), 2) * [[[1]], [[5]]]),
    )
    rows = compare_paired([first], [second], np.array([True, False]), resamples=4000, level=0.9)
    assert [row.name for row in rows] == ["S", "U", "hIoU"]
    seen, unseen = rows[:2]
    assert (seen.first, seen.second, seen.difference) == pytest.approx((0.4, 0.2, 0.2))
    assert (seen.low, seen.high) == pytest.approx((-0.2, 0.6))  # 0 - 0.2 and 0.8 - 0.2
    assert seen.wins == pytest.approx(0.75, abs=0.03)
    # equal is not ahead
    assert unseen.difference == pytest.approx(0.0) and unseen.wins == pytest.approx(0.25, abs=0.03)
    assert not seen.certain


def test_the_seed_decides() -> None:
    generator = np.random.default_rng(1)
    first, second = draw(generator, 20, (0.6, 0.5, 0.4)), draw(generator, 20, (0.6, 0.5, 0.4))
    same = [compare_paired([first], [second], SEEN, resamples=150, seed=seed) for seed in (3, 3, 4)]
    assert same[0] == same[1] != same[2]


def test_a_model_against_itself() -> None:
    tallies = draw(np.random.default_rng(2), 10, (0.6, 0.5, 0.4))
    for row in compare_paired([tallies], [tallies], SEEN):
        assert (row.difference, row.low, row.high, row.wins, row.certain) == (0, 0, 0, 0, False)


def test_pairing_takes_away_what_images_have_in_common() -> None:
    """Models that err on the same images differ by little, however much the images differ."""
    generator = np.random.default_rng(3)
    hard = generator.uniform(0, 1, (60, 1))  # how much of an image any model gets right
    area = np.full((60, 3), 1000)
    first = Tallies((area * hard * 0.95).astype(np.int64), area)
    second = Tallies((area * hard * 0.90).astype(np.int64), area)
    other = Tallies(second.intersection[generator.permutation(60)], area)
    paired, unpaired = (compare_paired([first], [model], SEEN)[0] for model in (second, other))
    assert paired.certain and paired.low > 0 and paired.wins == 1
    assert not unpaired.certain and unpaired.high - unpaired.low > 5 * (paired.high - paired.low)


def test_runs_that_scatter_widen_the_interval() -> None:
    generator = np.random.default_rng(4)
    area = generator.poisson(500, (200, 3))
    runs = [
        draw(generator, 200, [share + shift for share in (0.6, 0.5, 0.4)], area)
        for shift in (-0.1, 0.0, 0.1)
    ]
    other = draw(generator, 200, (0.6, 0.5, 0.4), area)
    single, several = (
        compare_paired([runs[1]], [other], SEEN)[0],
        compare_paired(runs, [other], SEEN)[0],
    )
    assert several.first == pytest.approx(
        np.mean([figures(run.intersection.sum(0), run.union.sum(0), SEEN)[0] for run in runs])
    )
    assert several.high - several.low > 3 * (single.high - single.low)


def test_figures_that_cannot_be_computed() -> None:
    tallies = draw(np.random.default_rng(5), 10, (0.5, 0.5))
    rows = compare_paired([tallies], [tallies], np.array([True, True]))
    assert rows[1] == Difference("U", None, None, None, None, 0.0)
    assert rows[1].difference is None and rows[1].to_json()["interval"] == [None, None]
    assert rows[0].first is not None


def coverage(trials: int, images: int, resamples: int) -> list[float]:
    """How often the interval holds the true difference, for S, U and hIoU.

    Areas and shares are independent, so that the IoU of all images there could be is the mean
    share.
    """
    generator = np.random.default_rng(6)
    shares = np.array([[0.7, 0.5, 0.4], [0.65, 0.5, 0.45]])
    truth = [figures(share, np.ones(3), SEEN) for share in shares]
    held = np.zeros(3)
    for trial in range(trials):
        area = generator.integers(1, 200, (images, 3))
        hard = generator.uniform(-0.25, 0.25, (images, 1))  # both models find the same images hard
        pair = [Tallies(generator.binomial(area, share + hard), area) for share in shares]
        rows = compare_paired([pair[0]], [pair[1]], SEEN, resamples=resamples, seed=trial)
        wanted = truth[0] - truth[1]
        held += [row.low <= value <= row.high for row, value in zip(rows, wanted, strict=True)]
    return list(held / trials)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    for share in coverage(200, 60, 200):
        assert 0.88 <= share <= 0.99


@pytest.mark.slow
def test_coverage_with_more_trials() -> None:
    for share in coverage(2000, 100, 500):
        assert 0.93 <= share <= 0.965


@pytest.mark.parametrize(
    ("first", "second", "settings", "message"),
    [
        ((), (4,), {}, "at least one run"),
        ((4,), (5,), {}, "the same images and classes"),
        ((0,), (0,), {}, "no images"),
        ((4,), (4,), {"resamples": 0}, "resamples must be at least 1, got 0"),
        ((4,), (4,), {"level": 1.0}, "level must lie between 0 and 1"),
    ],
)
def test_what_cannot_be_compared(
    first: tuple[int, ...], second: tuple[int, ...], settings: dict[str, float], message: str
) -> None:
    runs = [
        [Tallies(*np.ones((2, images, 3), dtype=np.int64)) for images in method]
        for method in (first, second)
    ]
    with pytest.raises(ValueError, match=message):
        compare_paired(runs[0], runs[1], SEEN, **settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"shape \(images, classes\)"):
        Tallies(np.ones((2, 3), dtype=np.int64), np.ones((2, 4), dtype=np.int64))
