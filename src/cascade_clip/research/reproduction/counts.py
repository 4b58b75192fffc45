"""The paper's counts: Table 12 (parameters, operations, speed), Table 17 (aggregation weights)."""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from lightning.pytorch.utilities.seed import isolate_rng

from cascade_clip.checkpoints import load_checkpoint, read_versions
from cascade_clip.config import ModelConfig, config_to_dict
from cascade_clip.data import build_dataset
from cascade_clip.files import write_json
from cascade_clip.inference import Predictor
from cascade_clip.models import WeightedSum, count_cost, gaussian_weights
from cascade_clip.research.reproduction.entries import Entry, EntryRow, find_entries
from cascade_clip.research.reproduction.keys import hash_settings
from cascade_clip.research.reproduction.runs import Reproduction, is_trained
from cascade_clip.research.reproduction.settings import load_settings
from cascade_clip.research.reproduction.tables import Cell, Table
from cascade_clip.training import prepare

PUBLISHED_COSTS: dict[str, tuple[float, float | None, float, float]] = {
    "ZegFormer": (210.0, 60.3, 1875.1, 7.4),
    "DeOP": (218.4, None, 670.0, 5.8),
    "ZegCLIP": (164.9, 14.6, 123.9, 20.9),
    "Cascade-CLIP": (193.1, 40.5, 123.8, 18.4),
}
"""Table 12: (trained) parameters in 10^6, operations of 512 x 512 in 10^9, images/s (RTX 3090)."""
_COSTS = ("parameters", "trained", "operations", "speed")
_COUNTED = {"ZegCLIP": "ZegCLIP", "Cascade-CLIP": "ZegCLIP with the cascade"}
"""Names in Table 12 and in Table 10, whose settings are counted."""
PUBLISHED_WEIGHTS: dict[tuple[int, ...], tuple[float, ...]] = {
    (6, 7, 8): (0.13, 0.59, 1.02),
    (9, 10, 11): (0.13, 0.59, 1.01),
}
"""Table 17, by the blocks of the stage."""
_CLASSES, _SIDE = 171, 512
_TIMED = 40
"""Scenes whose time is taken, one at a time."""


class Counted(NamedTuple):
    """What an entry counts besides scores."""

    tables: list[Table]
    wording: list[str]


def count_parts(entry: Entry, reproduction: Reproduction, later: str = "") -> Counted:
    """Count what Tables 12 and 17 show; nothing for other entries, or without the runs they need.

    Args:
        entry: any entry.
        reproduction: its runs; the costs of Table 12 are cached in its folder.
        later: command that counts; given, costs that are not cached are not counted now.
    """
    if entry.key == "table12":
        if later and not all(_costs_path(name, reproduction.out).is_file() for name in _COUNTED):
            return Counted([], [f"not counted; {later}"])
        return count_costs(reproduction.out)
    if entry.key == "table17":
        return compare_weights(entry, reproduction)
    return Counted([], [])


def count_costs(out: Path) -> Counted:
    """Table 12: costs, published and counted at full size, and the speed of small models here."""
    kinds = ("all", "trained", "G operations")
    heads = ("model", *(f"{kind}, {source}" for kind in kinds for source in ("paper", "counted")))
    speeds = ("images/s, paper (RTX 3090)", "images/s, small model, here")
    units = ((1e6, " M"), (1e6, " M"), (1e9, ""), (1, ""))
    rows = []
    for name, published in PUBLISHED_COSTS.items():
        found = _costs(name, out) if name in _COUNTED else {}
        cells = [Cell(name)]
        for paper, kind, (scale, unit) in zip(published, _COSTS, units, strict=True):
            ours = found.get(kind)
            for value in (paper, None if ours is None else ours / scale):
                cells.append(Cell("-" if value is None else f"{value:.1f}{unit}"))
        rows.append(tuple(cells))
    table = Table("Costs", (*heads, *speeds), tuple(rows))
    wording = [
        "Parameters and operations are those of the full-size models (ViT-B/16, 512 x 512 pixels,"
        " 171 classes), counted as the paper does: with the text tower and with the weights of the"
        " released program that reach no output. Weights are not loaded. G operations count a"
        " multiplication and an addition as one.",
        "The last column is the small model of the built-in world on this machine, one 64-pixel"
        " scene at a time, median; only the ratio of the two models can be compared with the"
        " paper's.",
    ]
    return Counted([table], wording)


def compare_weights(entry: Entry, reproduction: Reproduction) -> Counted:
    """Table 17: weights of every stage at the start, after training each seed, in the paper."""
    row = entry.rows[0]
    model = reproduction.settings.config(row).model
    runs = [one for one in reproduction.results(entry, row) if is_trained(one.checkpoint.parent)]
    trained = [load_checkpoint(run.checkpoint).model.aggregations for run in runs]
    rows: list[tuple[Cell, ...]] = []
    moves = [0.0]
    for number, stage in enumerate(model.stages):
        parts = [aggregations[number] for aggregations in trained]
        learned = [part.weights.tolist() for part in parts if isinstance(part, WeightedSum)]
        if not learned:
            continue
        start = gaussian_weights(len(stage), model.aggregation.sigma)
        paper = PUBLISHED_WEIGHTS.get(tuple(stage))
        name = f"blocks {', '.join(map(str, stage))}"
        shown = (_numbers(start), "-" if paper is None else _numbers(paper, 2))
        rows.append(tuple(map(Cell, (name, *shown, *map(_numbers, learned)))))
        pairs = [pair for one in learned for pair in zip(one, start, strict=True)]
        moves += [abs(after - before) for after, before in pairs]
    if not rows:
        return Counted([], [])
    seeds = (f"after training, seed {run.seed}" for run in runs)
    heads = ("stage", "start", "after training, paper", *seeds)
    moved = f"here the largest move of a weight is {max(moves):.3f}."
    wording = f"The published weights end within 0.02 of where they start; {moved}"
    return Counted([Table("Aggregation weights", heads, tuple(rows))], [wording])


def _models(name: str) -> tuple[ModelConfig, ModelConfig]:
    """Return the full-size and the small model of a name in Table 12."""
    row = find_entries("table10")[0].row(_COUNTED[name])
    full, small = (load_settings(one).config(row).model for one in ("coco-stuff", "sandbox"))
    return full, small


def _costs_path(name: str, out: Path) -> Path:
    """Name the file that caches the costs of a model for these versions of the software."""
    full, small = map(config_to_dict, _models(name))
    key = hash_settings({"model": full, "small": small, "versions": read_versions()})
    return out / "costs" / f"{name}-{key}.json"


def _costs(name: str, out: Path) -> dict[str, float]:
    """Count the full-size model and time the small one (images/s), unless OUT/costs keeps that."""
    path = _costs_path(name, out)
    if path.is_file():
        kept: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
        return kept
    with isolate_rng():
        cost = count_cost(_models(name)[0], _CLASSES, _SIDE)
        found = {
            "parameters": cost.published_parameters,
            "trained": cost.published_trained,
            # the paper counts a multiplication and an addition as one
            "operations": cost.published_flops / 2,
            "speed": measure_speed(find_entries("table10")[0].row(_COUNTED[name])),
        }
    write_json(path, found)
    return found


def measure_speed(row: EntryRow, clock: Callable[[], float] = time.perf_counter) -> float:
    """Measure images/s (median) of a row's untrained model on the sandbox, one image at a time."""
    config = load_settings("sandbox").config(row)
    dataset = build_dataset(config.evaluation or config.data, "val")
    predictor = Predictor(prepare(config, dataset))
    bound = predictor.bind()
    seconds = []
    for index in range(_TIMED):
        pixels = dataset.sample(index).image
        begin = clock()
        predictor.label_map(pixels, bound).labels.cpu()
        seconds.append(clock() - begin)
    return 1 / statistics.median(seconds)


def _numbers(values: Sequence[float], digits: int = 3) -> str:
    return ", ".join(f"{value:.{digits}f}" for value in values)
