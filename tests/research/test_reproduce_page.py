"""Verdicts by hand, their words, and the page, Markdown file and pictures that show them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cascade_clip.checkpoints.checkpoint import find_checkpoint, load_checkpoint
from cascade_clip.evaluation.bootstrap import Tallies, compare_paired
from cascade_clip.inference.loading import load_predictor
from cascade_clip.models.cost import Cost
from cascade_clip.research.reproduction import counts, figures
from cascade_clip.research.reproduction.charts import (
    describe_picture,
    draw_differences,
    draw_lengths,
    save_picture,
)
from cascade_clip.research.reproduction.entries import Entry, EntryRow, Figures, find_entries
from cascade_clip.research.reproduction.overview import (
    different_tests,
    how_to_read,
    overview,
    seed_spread,
)
from cascade_clip.research.reproduction.page import build_markdown, build_page, write_page
from cascade_clip.research.reproduction.runs import Reproduction, Result, score, write_result
from cascade_clip.research.reproduction.sections import Section, build_section
from cascade_clip.research.reproduction.settings import load_settings, merge
from cascade_clip.research.reproduction.tables import (
    Cell,
    Table,
    difference_cell,
    main_table,
    mean_cell,
)
from cascade_clip.research.reproduction.verdicts import Verdict, compare_seeds, judge
from cascade_clip.research.reproduction.wording import describe, describe_choices, word_outcome

SEEN = np.array([True, False])
PAPER: Figures = (40.0, 30.0, 34.3)
LOWER: Figures = (39.5, 28.0, 32.8)
_SANDBOX = load_settings("sandbox")
WORLD = replace(  # its number of steps may be changed
    _SANDBOX,
    base=merge(_SANDBOX.base, {"train": {"steps": 300}}),
    replace={"train.steps": {40000: 150, 80000: 300, 128000: 480, 160000: 600}},
)


def result(seed: int, images: Sequence[Sequence[float]], checkpoint: str = "") -> Result:
    """A result whose images have these IoUs of a seen and an unseen class, each on 1000 pixels."""
    right = np.array([[round(1000 * share) for share in image] for image in images])
    tallies = Tallies(right, np.full_like(right, 1000))
    return Result(
        seed, score(tallies, SEEN), tallies, SEEN, 60.0, Path(checkpoint or f"run-{seed}-{images}")
    )


def made(out: Path, *entries: Entry) -> Reproduction:
    """Entries with their first seed."""
    return Reproduction(WORLD, out, {one.key: (0,) for one in entries})


def alike(*shares: float, checkpoint: str = "") -> list[Result]:
    """One result a seed, whose two images all have this IoU of both classes: drawing images again
    changes nothing."""
    return [
        result(seed, [[share, share]] * 2, checkpoint and f"{checkpoint}-{seed}")
        for seed, share in enumerate(shares)
    ]


def entry(
    first: Figures | None = LOWER,
    second: Figures | None = PAPER,
    key: str = "table1",
    note: str = "",
) -> Entry:
    rows = [
        EntryRow(name, {} if paper is None else {"coco-stuff": paper}, {})
        for name, paper in (("plain", first), ("ours", second))
    ]
    return Entry(
        key, "Is it <better>?", tuple(rows), "ours", "coco-stuff", (0, 1, 2), "table", note
    )


def verdicts(
    first: Sequence[Result], second: Sequence[Result], paper: Entry | None = None
) -> dict[str, Verdict]:
    found = judge(paper or entry(), {"plain": first, "ours": second}, "coco-stuff")
    assert [(one.row, one.against) for one in found] == [("plain", "ours")] * 3
    return {one.figure: one for one in found}


def test_clear_win_and_its_reverse() -> None:
    low, high = alike(0.300, 0.301, 0.302), alike(0.400, 0.401, 0.402)
    found = verdicts(low, high)["S"]
    assert (found.standing, found.outcome, found.firm, found.one_seed) == (
        "certain",
        "holds",
        True,
        False,
    )
    assert found.found.difference == pytest.approx(-0.1)
    assert found.published == -0.5 and found.seeds == (3, 3)
    assert -0.102 <= found.found.low <= found.found.high <= -0.098
    assert word_outcome(found) == "holds with confidence"
    assert verdicts(high, low)["S"].outcome == "reversed"
    assert word_outcome(verdicts(high, low)["U"]) == "is reversed with confidence"


def test_without_a_published_ordering_only_higher_or_lower_is_said() -> None:
    low, high = alike(0.300, 0.301), alike(0.400, 0.401)
    assert verdicts(low, high, entry(None, None))["S"].outcome == "lower"
    # equal figures are no ordering
    assert verdicts(high, low, entry(PAPER, PAPER))["S"].outcome == "higher"
    assert verdicts(high, low, entry((40.0, None, None), PAPER))["U"].published is None


def test_intervals_of_few_seeds_alone_are_not_enough() -> None:
    """Every seed of the one is above every seed of the other, so no resample holds 0; but t = 0.075
    / 0.0345 = 2.17 with 4 degrees."""
    found = verdicts(alike(0.44, 0.46, 0.495), alike(0.50, 0.52, 0.60))["S"]
    assert found.found.certain and found.found.wins == 0 and found.ahead == (0, 3)
    assert found.p_value == pytest.approx(0.0955, abs=5e-4)
    assert (found.standing, found.outcome, found.firm) == ("leaning", "leans the same way", False)
    assert (
        verdicts(alike(0.50, 0.52, 0.60), alike(0.44, 0.46, 0.495))["S"].outcome
        == "leans the other way"
    )
    assert difference_cell(found).tone == ""


def test_a_leaning_needs_the_seeds_too() -> None:
    """No resample holds 0 or more, but t = 0.105 / 0.0716 = 1.47 with 2 degrees: p = 0.28."""
    found = verdicts(alike(0.40, 0.46), alike(0.47, 0.60))["S"]
    assert found.found.wins == 0 and found.p_value == pytest.approx(0.280, abs=2e-3)
    assert (found.standing, found.outcome) == ("open", "open")
    leaning = verdicts(alike(0.44, 0.46, 0.495), alike(0.50, 0.52, 0.60))
    words = " ".join(describe(entry(), list(leaning.values()), {}, "coco-stuff"))
    assert (
        "leans one way if 90 % of the resamples do and the t test over the seeds gives p < 0.2."
        " That is a hint and no finding" in words
    )
    assert "leans one way" not in " ".join(describe(entry(), [found], {}, "coco-stuff"))


def test_undecided() -> None:
    """Resampled, two images are the first twice (1/4), the second twice (1/4), or one of each:
    differences 0.4, -0.2 and 0.1."""
    found = verdicts([result(0, [[0.5, 0.5], [0.3, 0.3]])], [result(0, [[0.1, 0.1], [0.5, 0.5]])])[
        "S"
    ]
    assert (found.found.low, found.found.high) == (pytest.approx(-0.2), pytest.approx(0.4))
    assert found.found.wins == pytest.approx(0.75, abs=0.03)
    assert (found.standing, found.outcome) == ("open", "open")
    assert difference_cell(found) == Cell("+10.0 [-20.0, +40.0]")
    same = verdicts(alike(0.4), alike(0.4))["S"]
    # no resample is ahead, and that is no lead of the other
    assert (same.standing, same.outcome) == ("open", "open")


def test_equal_resamples_are_no_lead_of_either() -> None:
    """One of three images differs: in 8/27 of the resamples it is not drawn and both are equal."""
    low, high = [[0.4, 0.4]] * 3, [[0.5, 0.5], [0.4, 0.4], [0.4, 0.4]]
    less, more = (
        verdicts([result(0, low)], [result(0, high)])["S"],
        verdicts([result(0, high)], [result(0, low)])["S"],
    )
    assert less.found.losses == more.found.wins == pytest.approx(19 / 27, abs=0.03)
    assert less.found.wins == more.found.losses == 0
    assert less.standing == more.standing == "open"


def test_cautions_tell_one_seed_from_several() -> None:
    several, one = (
        verdicts(alike(0.300, 0.301), alike(0.400, 0.401)),
        verdicts(alike(0.3), alike(0.4, 0.5)),
    )
    rows = [*several.values(), *(replace(verdict, row="new") for verdict in one.values())]
    words = describe(entry(), rows, {}, "coco-stuff")
    assert [line[:24] for line in words if line.startswith("Of ")] == [
        "Of plain: 2 seeds: inter",
        "Of plain: 3 differences ",
        "Of new: One seed (some r",
        "Of new: 3 differences ar",
    ]


def test_one_seed_speaks_of_the_trained_models() -> None:
    images = [[0.30, 0.2], [0.31, 0.2], [0.32, 0.2]]
    better = [[share + 0.1 for share in image] for image in images]
    found = verdicts([result(0, images)], [result(0, better)])["S"]
    assert (found.p_value, found.one_seed, found.outcome) == (None, True, "holds")
    assert word_outcome(found) == "holds between these two trained models"
    words = " ".join(
        describe(
            entry(),
            list(verdicts([result(0, images)], [result(0, better)]).values()),
            {},
            "coco-stuff",
        )
    )
    assert "confidence" not in words
    assert "One seed: intervals hold 95 % of 4,000 resamples of the images" in words
    assert "two seeds of the same settings often differ as clearly" in words


def test_rows_that_share_their_training_are_compared_seed_by_seed() -> None:
    first, second = (0.210, 0.411, 0.612), (0.200, 0.400, 0.600)
    shared = verdicts(alike(*first, checkpoint="model"), alike(*second, checkpoint="model"))["S"]
    assert (
        shared.shared and shared.outcome == "reversed" and shared.found.low == pytest.approx(0.010)
    )
    apart = verdicts(alike(*first), alike(*second))["S"]
    assert not apart.shared and apart.standing == "open" and apart.found.low < -0.2
    fewer = verdicts(alike(*first, checkpoint="model"), alike(*second, checkpoint="model")[:2])["S"]
    assert fewer.seeds == (2, 2) and fewer.ahead == (2, 2)
    runs = [one.tallies for one in alike(*first)]
    with pytest.raises(
        ValueError, match="paired runs must be as many for both methods, got 3 and 2"
    ):
        compare_paired(runs, runs[:2], SEEN, paired_runs=True)


def test_t_test_by_hand() -> None:
    assert compare_seeds([1.0, 2.0, 3.0], [2.0, 4.0, 6.0], paired=False) == pytest.approx(
        0.1963, abs=1e-4
    )  # t = 2 / sqrt(5 / 3), 4 degrees
    # t = sqrt(12), 2 degrees
    assert compare_seeds([1.0, 2.0, 3.0], [2.0, 4.0, 6.0], paired=True) == pytest.approx(
        1 - math.sqrt(12 / 14)
    )
    assert compare_seeds([1.0], [2.0, 4.0], paired=False) is None
    assert compare_seeds([1.0, 1.0], [1.0, 1.0], paired=True) == 1.0
    assert compare_seeds([1.0, 1.0], [2.0, 2.0], paired=True) == 0.0


def test_all_comparisons_of_an_entry_are_allowed_for() -> None:
    """t = 0.1 / 0.0294 = 3.4 with 4 degrees: p = 0.027, below 0.05 but not below 0.05 / 3."""
    runs = alike(0.26, 0.30, 0.34), alike(0.37, 0.40, 0.43)
    found = verdicts(*runs)["S"]
    assert found.p_value == pytest.approx(0.0257, abs=5e-4)
    assert (found.standing, found.firm) == ("certain", False)
    words = describe(entry(), list(verdicts(*runs).values()), {}, "coco-stuff")
    assert (
        words[-1]
        == "3 differences are tested; if no row differed from another, about 0.2 of them would"
        " still seem certain. 0 of the 3 found here stay certain when all 3 are allowed for"
        " (Bonferroni)."
    )


def test_what_cannot_be_computed_is_said() -> None:
    seen = np.array([True, True])
    runs = [
        Result(0, score(one.tallies, seen), one.tallies, seen, 1.0, one.checkpoint)
        for one in alike(0.3)
    ]
    found = verdicts(runs, runs)["U"]
    assert (found.standing, found.outcome) == ("unknown", "unknown")
    assert difference_cell(found) == Cell("-") and mean_cell([math.nan]) == "-"
    assert "U cannot be computed" in " ".join(describe(entry(), [found], {}, "coco-stuff"))


def test_rows_without_results_are_left_out() -> None:
    assert judge(entry(), {"plain": alike(0.3), "ours": []}, "coco-stuff") == []
    assert judge(entry(), {"ours": alike(0.3)}, "coco-stuff") == []
    assert describe(entry(), [], {}, "coco-stuff") == []


def test_words_of_a_table() -> None:
    rows = (*entry().rows, EntryRow("third", {"coco-stuff": (41.0, 31.0, 35.3)}, {}))
    table = Entry("table1", "", rows, "ours", "coco-stuff", (0,), "table")
    results = {
        "plain": alike(0.300, 0.301, 0.302),
        "ours": alike(0.400, 0.401, 0.402),
        "third": alike(0.350, 0.351, 0.352),
    }
    words = describe(table, judge(table, results, "coco-stuff"), results, "coco-stuff")
    both = (
        "the paper's ordering holds with confidence (1 of 2), the paper's ordering is reversed with"
        " confidence (1 of 2)."
    )
    assert words[0] == f"S: {both} U: {both} hIoU: {both}"
    assert (
        words[1]
        == "From lowest to highest hIoU, the paper has plain < ours < third; the means here give"
        " plain < third < ours (an order of means, untested)."
    )
    assert words[2].startswith(
        "plain against ours: S -10.0 [-10.1, -9.9] (paper -0.5, no more than its runs differ by;"
        " higher with 0 of 3 seeds), holds"
    )
    assert (
        "; U -10.0 [-10.1, -9.9] (paper -2.0; higher with 0 of 3 seeds), holds with confidence;"
        in words[2]
    )
    assert words[4].startswith(
        "3 seeds: intervals hold 95 % of 4,000 resamples of images, the same ones for both rows,"
        " and of seeds"
    )


def test_chosen_calibrations_are_named() -> None:
    rows = (EntryRow("fixed", {}, {}), EntryRow("chosen", {}, {}, choices=(0.05, 0.1)))
    question = Entry("question4", "", rows, "fixed", "coco-stuff", (0, 1), "question")
    runs = [
        replace(run, calibration=value)
        for run, value in zip(alike(0.3, 0.4), (0.05, 0.1), strict=True)
    ]
    assert describe_choices(question, {"fixed": runs, "chosen": runs}) == [
        "chosen: 0.05 (seed 0), 0.1 (seed 1)."
    ]


def test_table_of_rows() -> None:
    results = {"plain": alike(0.300, 0.310, 0.320), "ours": alike(0.400, 0.410, 0.420)}
    table = main_table(entry(), results, judge(entry(), results, "coco-stuff"), "coco-stuff")
    assert table.heads == (
        "row",
        "paper, coco-stuff",
        "S",
        "U",
        "hIoU",
        "seeds",
        "S, minus ours",
        "U, minus ours",
        "hIoU, minus ours",
    )
    first, second = table.rows
    assert [cell.text for cell in first[:6]] == [
        "plain",
        "39.5 / 28.0 / 32.8",
        "31.0 ± 1.0",
        "31.0 ± 1.0",
        "31.0 ± 1.0",
        "0, 1, 2",
    ]
    assert first[6].text.startswith("-10.0 [-11.") and first[6].tone == "down"
    assert [cell.text for cell in second[6:]] == ["", "", ""]
    empty = main_table(entry((40.0, 30.0, None)), {}, [], "coco-stuff")
    assert [cell.text for cell in empty.rows[0]] == [
        "plain",
        "40.0 / 30.0 / -",
        "not run",
        "not run",
        "not run",
        "-",
    ]


def section(tmp_path: Path) -> Section:
    """A table with a picture."""
    results = {"plain": alike(0.300, 0.310, 0.320), "ours": alike(0.400, 0.410, 0.420)}
    found = judge(entry(), results, "coco-stuff")
    picture = save_picture(
        draw_differences(found), tmp_path / "pictures" / "table1.png", 'Who is "better" [here]?'
    )
    table = main_table(entry(), results, found, "coco-stuff")
    words = describe(entry(), found, results, "coco-stuff")
    return Section(
        entry(note="A | B"),
        WORLD,
        results,
        "cascade-clip reproduce table1",
        found,
        [picture],
        words,
        [table],
    )


def test_markdown(tmp_path: Path) -> None:
    empty = Section(
        entry(key="figure12"),
        WORLD,
        {"plain": [], "ours": []},
        "cascade-clip reproduce figure12",
        tables=[Table("T", ("a",), ())],
    )
    text = build_markdown(tmp_path, WORLD, [section(tmp_path), empty])
    lines = text.splitlines()
    start = lines.index(
        "| row | paper, coco-stuff | S | U | hIoU | seeds | S, minus ours | U, minus ours | hIoU,"
        " minus ours |"
    )
    assert lines[start + 1] == "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    assert lines[start + 2].startswith(
        "| plain | 39.5 / 28.0 / 32.8 | 31.0 ± 1.0 | 31.0 ± 1.0 | 31.0 ± 1.0 | 0, 1, 2 | **-10.0"
        " [-11."
    )
    assert (
        lines[start + 3]
        == "| ours | 40.0 / 30.0 / 34.3 | 41.0 ± 1.0 | 41.0 ± 1.0 | 41.0 ± 1.0 | 0, 1, 2 |  |  |  |"
    )
    assert '![Who is "better" (here)?](pictures/table1.png)' in lines
    assert "## Table 1. Is it <better>?" in lines and "## Figure 12. Is it <better>?" in lines
    assert "Not run here. This command does: `cascade-clip reproduce figure12`" in lines
    assert "| Table 1. Is it <better>? | 3 | 1 holds | 1 holds | 1 holds |" in lines
    assert "| Figure 12. Is it <better>? | - | not run | not run | not run |" in lines
    assert (
        "3 differences between rows with several seeds are tested on this page, and 3 are certain;"
        " if no row differed" in text
    )
    assert "trained models (one seed)" not in text
    assert "deviate by S 1.0, U 1.0, hIoU 1.0 (pooled standard deviation)" in text
    assert "differ by up to S 2.8, U 2.8, hIoU 2.8 in 95 %" in text  # 1.96 * sqrt(2)


def test_overview_marks_single_seeds() -> None:
    runs = {"plain": alike(0.3), "ours": alike(0.4)}
    one = Section(entry(), WORLD, runs, "", judge(entry(), runs, "coco-stuff"))
    assert [cell.text for cell in overview([one]).rows[0][1:3]] == ["1", "1 holds (one seed)"]
    assert seed_spread([one]) == {}


def test_the_same_comparison_counts_once() -> None:
    """Twice with several seeds (the second time the other way round), and once with one seed, which
    speaks of trained models."""
    several = {"plain": alike(0.300, 0.310, 0.320), "ours": alike(0.400, 0.410, 0.420)}
    single = {"plain": alike(0.3), "ours": alike(0.4)}
    turned = replace(entry(key="table4"), reference="plain")
    sections = [
        Section(one, WORLD, runs, "", judge(one, runs, "coco-stuff"))
        for one, runs in ((entry(), several), (turned, several), (entry(key="table5"), single))
    ]
    assert [verdict.figure for verdict in different_tests(sections)] == ["S", "U", "hIoU"] * 2
    text = how_to_read(WORLD, sections)[-1]
    assert (
        "3 differences between rows with several seeds are tested on this page, and 3 are certain;"
        " if no row differed" in text
    )
    assert (
        "3 differences between trained models (one seed) are tested on this page, and 3 are"
        " certain; if no trained model" in text
    )
    page = build_page(WORLD, sections)
    assert (
        "<b>3 of 3</b><span>differences between rows</span><small>certain, several seeds</small>"
        in page
    )
    assert (
        "<b>3 of 3</b><span>differences between trained models</span><small>certain, one"
        " seed</small>" in page
    )
    other = replace(
        entry(),
        rows=(
            entry().rows[0],
            replace(entry().rows[1], settings={"inference": {"calibration": 0.3}}),
        ),
    )
    assert (
        len(different_tests([*sections, Section(other, WORLD, several, "", sections[0].verdicts)]))
        == 9
    )


def test_a_choice_of_the_value_of_another_row_is_no_other_comparison() -> None:
    fixed = {"inference": {"calibration": 0.2}}
    rows = (
        EntryRow("published", {}, {}),
        EntryRow("0.2", {}, fixed),
        EntryRow("chosen", {}, {}, choices=(0.1, 0.2)),
    )
    table = Entry("question4", "", rows, "published", "coco-stuff", (0, 1), "question")
    runs = {
        "published": alike(0.3, 0.31, checkpoint="m"),
        "0.2": alike(0.4, 0.41, checkpoint="m"),
        "chosen": alike(0.4, 0.41, checkpoint="m"),
    }
    for chosen, tests in (((0.2, 0.2), 3), ((0.2, 0.1), 6)):
        values = {"published": (0.1, 0.1), "0.2": (0.2, 0.2), "chosen": chosen}
        results = {
            name: [
                replace(run, calibration=value)
                for run, value in zip(runs[name], values[name], strict=True)
            ]
            for name in runs
        }
        assert (
            len(
                different_tests(
                    [Section(table, WORLD, results, "", judge(table, results, "coco-stuff"))]
                )
            )
            == tests
        )


def test_the_spread_of_seeds_depends_on_no_order() -> None:
    """Rows that share their training count once, by the first; chosen calibrations are not the same
    settings."""
    rows = (
        EntryRow("first", {}, {}),
        EntryRow("second", {}, {}),
        EntryRow("chosen", {}, {}, choices=(0.1, 0.2)),
    )
    table = Entry("question4", "", rows, "first", "coco-stuff", (0, 1, 2), "question")
    runs = {
        "first": alike(0.30, 0.31, 0.32, checkpoint="m"),
        "second": alike(0.30, 0.40, 0.50, checkpoint="m"),
        "chosen": alike(0.1, 0.5, 0.9, checkpoint="n"),
    }
    found = Section(table, WORLD, runs, "")
    assert seed_spread([found])["S"] == pytest.approx(0.01)
    assert seed_spread([replace(found, results=dict(reversed(runs.items())))])[
        "S"
    ] == pytest.approx(0.01)


def test_page_holds_every_row_and_picture(tmp_path: Path) -> None:
    found = section(tmp_path)
    page = build_page(WORLD, [found])
    for row in found.entry.rows:
        assert f'<tr><th scope="row">{row.name}</th>' in page
    for line in found.wording:
        assert line.replace("'", "&#39;").replace("<", "&lt;").replace(">", "&gt;") in page
    assert (
        page.count('<img alt="Who is &#34;better&#34; [here]?" src="data:image/png;base64,')
        == page.count("<img")
        == 1
    )
    assert 'href="#table1"' in page and 'id="table1"' in page and "Is it &lt;better&gt;?" in page
    assert (
        "<script" not in page
        and "http" not in page
        and "<code>cascade-clip reproduce table1</code>" in page
    )
    assert "prefers-color-scheme: dark" in page and '<td class="down"><b>-10.0 [-11.' in page


def test_files_of_a_page(tmp_path: Path) -> None:
    paths = write_page(Reproduction(WORLD, tmp_path, {}), [section(tmp_path)])
    assert [path.name for path in paths] == ["index.html", "reproduction.md", "results.json"]
    values = json.loads(paths[2].read_text())["entries"]["table1"]
    assert values["rows"][0]["runs"][1]["scores"]["S"] == pytest.approx(0.31)
    assert values["verdicts"][0]["outcome"] == "holds" and values["pictures"] == [
        "pictures/table1.png"
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "index.html",
        "pictures",
        "reproduction.md",
        "results.json",
    ]


def test_charts_show_their_numbers(tmp_path: Path) -> None:
    found = judge(entry(), {"plain": alike(0.30), "ours": alike(0.40)}, "coco-stuff")
    panels = draw_differences(found).axes
    marks = [line.get_xdata()[0] for line in panels[0].lines if len(line.get_xdata()) == 1]
    assert marks == [pytest.approx(-10.0), pytest.approx(-0.5)]  # ours, and the paper's
    assert panels[0].get_title() == "S, minus\nours"
    ours = {150: [{"S": 0.2, "U": 0.1}], 300: [{"S": 0.3, "U": 0.2}, {"S": 0.5, "U": 0.2}]}
    unpublished = judge(
        entry(None, None), {"plain": alike(0.30), "ours": alike(0.40)}, "coco-stuff"
    )
    assert [len(draw_differences(one).legends[0].get_texts()) for one in (found, unpublished)] == [
        3,
        2,
    ]
    left, right = draw_lengths(
        ours, {40: {"S": 39.5, "U": 42.7}, 80: {"S": 41.1, "U": 43.4}}, ("coco-stuff", "sandbox")
    ).axes
    assert [list(line.get_ydata()) for line in left.lines] == [[39.5, 41.1], [42.7, 43.4]]
    assert list(right.lines[0].get_ydata()) == pytest.approx([20, 40]) and list(
        right.lines[1].get_ydata()
    ) == pytest.approx([30, 50])
    path = save_picture(draw_differences(found), tmp_path / "a.png", "words")
    assert describe_picture(path) == "words" and Image.open(path).width > 1000
    assert [one.name for one in tmp_path.iterdir()] == ["a.png"]


def test_the_point_to_look_from() -> None:
    labels = np.zeros((9, 9), dtype=np.int64)
    labels[3:6, 1:4] = 5
    labels[0, 8] = 7
    # the middle of the class with the second most pixels
    assert figures.choose_point(labels) == (2, 4)
    assert figures.choose_point(np.zeros((5, 5), dtype=np.int64)) == (2, 2)
    assert figures.choose_point(np.full((4, 6), -1)) == (3, 2)


def test_share_of_pairs() -> None:
    first, second = np.array([3, 1], dtype=np.float32), np.array([2, 1], dtype=np.float32)
    assert figures._share_ahead(first, second) == (1 + 1 + 0 + 0.5) / 4


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """The shipped cascade as the run of every row of Figure 7, with scores that grow with the
    steps."""
    place = made(tmp_path)
    for number, row in enumerate(find_entries("figure7")[0].rows):
        folder = place.seed_folder(row, WORLD.training_config(row, 0))
        folder.mkdir(parents=True)
        (folder / "model").symlink_to(find_checkpoint("mini"))
        write_result(folder, WORLD.inference(row), alike(0.2 + 0.1 * number)[0].tallies, SEEN)
    return tmp_path


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (
            "figure1",
            (
                "Over 4 scenes, a patch of the marked patch's class is more like it than a patch of"
                " another class is: "
            ),
        ),
        ("figure4", "Alignment of blocks 6 and 12: 0."),
        ("figure6", "Pixels that are, mean over 4 scenes: stage 1 "),
        (
            "figure7",
            (
                "150 steps: S 20.0, U 20.0; 300 steps: S 30.0, U 30.0; 480 steps: S 40.0, U 40.0;"
                " 600 steps: S 50.0, U 50.0"
            ),
        ),
    ],
)
def test_figures_are_drawn(
    runs: Path, key: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a minibatch of the alignment has 16
    monkeypatch.setattr(figures, "MEASURED", 16 if key == "figure4" else 4)
    monkeypatch.setattr(figures, "SHOWN", 2)
    (found,) = find_entries(key)
    (path,) = figures.draw_figure(found, made(runs, found))
    assert path == runs / "pictures" / f"{key}.png"
    assert words in describe_picture(path)
    assert Image.open(path).width > 1000


def test_scores_whose_checkpoint_is_gone_draw_nothing(runs: Path) -> None:
    for path in runs.glob("runs/*/seed-0/model"):
        path.unlink()
    (table,) = find_entries("table17")
    for found in find_entries("figure1, figure4, figure6"):
        assert figures.draw_figure(found, made(runs, found)) == []
    assert counts.count_parts(table, made(runs, table)) == ([], [])


def test_nothing_is_drawn_without_runs(tmp_path: Path) -> None:
    for found in find_entries("figure1, figure4, figure6, figure7, table17, table1"):
        empty = build_section(found, made(tmp_path, found), "do it")
        assert empty.is_empty and empty.pictures == [] and empty.verdicts == []
    assert list(tmp_path.iterdir()) == []


def test_untrained_is_the_start_of_the_run() -> None:
    trained = load_predictor("mini", "cpu")
    before = torch.get_rng_state()
    start, again = (dict(figures.untrained(trained).model.state_dict()) for _ in range(2))
    assert all(torch.equal(start[name], again[name]) for name in start) and torch.equal(
        torch.get_rng_state(), before
    )
    assert start["aggregations.0.weights"].tolist() == pytest.approx(
        [math.exp(-2), math.exp(-0.5), 1]
    )


def test_a_whole_section(runs: Path) -> None:
    (found,) = find_entries("figure7")
    built = build_section(found, made(runs, found), "do it")
    assert not built.is_empty and built.missing == ()
    assert [path.name for path in built.pictures] == ["figure7.png", "figure7-differences.png"]
    assert (
        len(built.verdicts) == 9
        and built.wording
        and built.tables[0].heads[6] == "S, minus 80,000 steps"
    )


def test_aggregation_weights(runs: Path) -> None:
    """The cascade's run is that of Figure 7's 80,000 steps."""
    (found,) = find_entries("table17")
    (table,), (words,) = counts.count_parts(found, made(runs, found))
    learned = load_checkpoint("mini").model.aggregations[0].weights.tolist()
    assert table.heads[-1] == "after training, seed 0"
    shown = [cell.text for cell in table.rows[0]]
    assert shown == [
        "blocks 6, 7, 8",
        "0.135, 0.607, 1.000",
        "0.13, 0.59, 1.02",
        ", ".join(f"{value:.3f}" for value in learned),
    ]
    assert [row[0].text for row in table.rows] == ["blocks 6, 7, 8", "blocks 9, 10, 11"]
    assert "the largest move of a weight is 0." in words


def test_costs_are_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def count(*settings: object) -> Cost:
        calls.append(settings)
        return Cost(512, 100_000_000, 60_000_000, 10_000_000, 4_000_000, 240 * 10**9, 8 * 10**9)

    monkeypatch.setattr(counts, "count_cost", count)
    monkeypatch.setattr(counts, "measure_speed", lambda row: 12.34)
    table = counts.count_costs(tmp_path).tables[0]
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}
    assert rows["ZegCLIP"] == [
        "164.9 M",
        "164.0 M",
        "14.6 M",
        "14.0 M",
        "123.9",
        "124.0",
        "20.9",
        "12.3",
    ]
    assert rows["DeOP"] == ["218.4 M", "-", "-", "-", "670.0", "-", "5.8", "-"]
    assert len(calls) == 2 and len(table.heads) == 9
    assert counts.count_costs(tmp_path).tables[0] == table and len(calls) == 2


def test_speed_is_the_median(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(np.cumsum([0, 5, 0, 0.5, 0, 0.5]))  # three pictures: 5 s, 0.5 s, 0.5 s
    monkeypatch.setattr(counts, "_TIMED", 3)
    assert counts.measure_speed(
        find_entries("table1")[0].row("baseline"), lambda: float(next(ticks))
    ) == pytest.approx(2.0)


@pytest.mark.slow
def test_full_size_counts(tmp_path: Path) -> None:
    rows = {
        row[0].text: [cell.text for cell in row]
        for row in counts.count_costs(tmp_path).tables[0].rows
    }
    assert rows["ZegCLIP"][2] == "164.9 M" and rows["ZegCLIP"][4] == "14.7 M"
    assert rows["Cascade-CLIP"][2] == "193.1 M" and rows["Cascade-CLIP"][4] == "40.5 M"
