"""Methods as compositions: every row of the tables in docs/methods.md is built from its YAML, and
its loss reaches what is trained."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml

from cascade_clip.cli.train import start_from
from cascade_clip.config import Config, ModelConfig
from cascade_clip.config.serialization import config_from_dict, config_to_dict, read_yaml
from cascade_clip.models.builder import build_segmenter
from cascade_clip.models.cost import count_cost
from cascade_clip.models.segmenter import Segmenter
from cascade_clip.training.task import SegmentationTask
from paths import ROOT
from tiny_models import TINY_CLIP

PAGE = (ROOT / "docs" / "methods.md").read_text()
TINY: dict[str, Any] = {
    "model": {
        "clip": {"name": "tiny", "weights": "random", "architecture": TINY_CLIP},
        "decoder": {"heads": 4, "feedforward": 64, "low_share": 0.75},
        "position_grid": [4, 4],
    },
    "data": {"workers": 0},
}


class Row(NamedTuple):
    table: str
    name: str
    figures: str
    config: Config


def merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    both = {
        name: merge(base[name], change[name])
        for name in base.keys() & change.keys()
        if isinstance(base[name], dict)
    }
    return {**base, **change, **both}


def read_rows() -> Iterator[Row]:
    """Rows below a heading or a bold "Table N.", which may name another base."""
    table = base = ""
    for line in PAGE.splitlines():
        if found := re.match(r"## (.+)|\*\*(Table \d+)\.\*\*", line):
            table = found[1] or found[2]
            base = "cascade-coco-inductive"
        if found := re.search(r"Base: `([\w-]+)`", line):
            base = found[1]
        if found := re.match(r"\| (.+?) \| (.+?) \| `(\{.*\})` \|$", line):
            values = merge(read_yaml(ROOT / "configs" / f"{base}.yaml"), yaml.safe_load(found[3]))
            yield Row(table, found[1], found[2], config_from_dict(Config, merge(values, TINY)))


ROWS = list(read_rows())


def test_every_table_of_compositions_is_there() -> None:
    counts = {
        table: sum(row.table == table for row in ROWS)
        for table in dict.fromkeys(row.table for row in ROWS)
    }
    expected = {1: 3, 4: 3, 5: 3, 6: 6, 7: 3, 8: 6, 9: 2, 10: 12, 14: 6, 15: 3, 16: 3, 18: 4}
    assert counts == {
        "Methods": 9,
        **{f"Table {number}": rows for number, rows in expected.items()},
    }


def test_rows_of_a_table_differ() -> None:
    """A misread row would silently be its base."""
    for table in {row.table for row in ROWS}:
        settings = [str(config_to_dict(row.config)) for row in ROWS if row.table == table]
        assert len(set(settings)) == len(settings), table


def task_of(config: Config) -> SegmentationTask:
    torch.manual_seed(0)
    seen = torch.tensor([True, True, True, False])
    return SegmentationTask(build_segmenter(config.model).train(), torch.randn(4, 32), seen, config)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.table}: {row.name}")
def test_a_row_has_a_finite_loss_and_gradients(row: Row) -> None:
    task = task_of(row.config)
    labels = torch.randint(-1, 4, (2, 64, 64), generator=torch.Generator().manual_seed(1))
    result = task.accumulate_gradients(torch.randn(2, 3, 64, 64), labels)
    weights = row.config.train.loss
    for name in ("focal", "dice", "ssim", "cross_entropy"):
        assert bool(getattr(result, name) > 0) == bool(getattr(weights, name)), name
    assert float(result.total) == pytest.approx(
        float(result.focal + result.dice + result.ssim + result.cross_entropy), rel=1e-5
    )
    for name, parameter in task.model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if parameter.grad is not None:
            assert bool(torch.isfinite(parameter.grad).all()), name
            assert bool(parameter.grad.any()) or name.endswith("key.bias"), name


def test_published_figures_on_the_page_are_those_of_the_configs() -> None:
    """Where a row is a file in configs, both print the same figures."""
    methods = {
        "ZegCLIP": "zegclip",
        "Frozen CLIP": "frozen",
        "SPT-SEG": "spt",
        "Cascade-CLIP": "cascade",
    }
    compared = 0
    for row in ROWS:
        data = {"Methods": "voc", "Table 10": "coco"}.get(row.table)
        method, _, protocol = row.name.partition(", ")
        kind, _, cascade = method.partition(" with the ")
        if data is None or kind not in methods:
            continue
        stem = f"{methods[kind]}-{cascade}".rstrip("-").replace("zegclip-cascade", "cascade")
        text = (ROOT / "configs" / f"{stem}-{data}-{protocol or 'inductive'}.yaml").read_text()
        found = re.search(r"Published S / U / hIoU: (.*) \(Table", text)
        assert found and found[1].split(" / ")[:2] == row.figures.split(" / ")[:2], row.name
        own = read_yaml(ROOT / "configs" / f"{stem}-{data}-{protocol or 'inductive'}.yaml")
        model = config_from_dict(Config, merge(own, TINY)).model
        assert model.prompts.kind == "none" or model.prompts == row.config.model.prompts, row.name
        assert model.stages == row.config.model.stages
        compared += 1
    assert compared == 6 + 12


@pytest.mark.parametrize(
    ("settings", "total", "trained"),
    [
        # Table 12 prints 14.6; 14,650,624 in the released program
        ({"prompts": {"tokens": 100}, "stages": [[12]]}, 164.9, 14.65),
        ({"prompts": {"tokens": 50}}, 193.1, 40.46),
        # Table 7: "the same size"
        ({"prompts": {"tokens": 50}, "stages": [[12], [12], [12]]}, None, 40.46),
    ],
)
def test_parameters_of_table_12(
    settings: dict[str, Any], total: float | None, trained: float
) -> None:
    cost = count_cost(config_from_dict(ModelConfig, settings), 171, 32)
    assert total is None or cost.published_parameters / 1e6 == pytest.approx(total, abs=0.05)
    assert cost.published_trained / 1e6 == pytest.approx(trained, abs=0.005)


def test_parameters_of_the_spectral_decoder() -> None:
    """Stored by the released head with three layers: 17.69 M; of a layer reach an output:
    3,614,656, of the last one its values alone."""
    model = {"prompts": {"kind": "none"}, "stages": [[12]], "decoder": {"kind": "spectral"}}
    cost = count_cost(config_from_dict(ModelConfig, model), 171, 32)
    query = 2 * 512 * 512 + 512
    values = 512 * 192 + 512 * 448 + 512 * 896 + 448 * 448 + 448 + 512 + 512 * 512
    assert cost.trained == query + 2 * 3_614_656 + values
    assert cost.published_trained == query + 3 * 5_721_088


def test_a_decoder_without_weights_has_no_dead_ones() -> None:
    model = {
        "prompts": {"kind": "none"},
        "queries": "text",
        "stages": [[12]],
        "decoder": {"kind": "similarity"},
    }
    cost = count_cost(config_from_dict(ModelConfig, {**TINY["model"], **model}), 5, 32)
    assert (cost.trained, cost.dead_parameters, cost.dead_flops) == (0, 0, 0)


def build(**model: Any) -> Segmenter:
    torch.manual_seed(0)
    return build_segmenter(config_from_dict(ModelConfig, merge(TINY["model"], model))).eval()


def test_equal_stages_have_decoders_of_their_own_on_the_same_features() -> None:
    model = build(stages=[[12], [12], [12]])
    images, text = torch.randn(1, 3, 64, 64), torch.randn(3, 32)
    with torch.inference_mode():
        masks = model.stage_masks(images, text)
        assert not torch.equal(masks.stages[0], masks.stages[1])
        model.decoders[1].load_state_dict(model.decoders[0].state_dict())
        model.queries[1].load_state_dict(model.queries[0].state_dict())
        same = model.stage_masks(images, text)
    assert torch.equal(same.stages[0], same.stages[1])
    assert list(model.features(images).patches) == [12]


def test_fused_stages_have_aggregations_of_their_own() -> None:
    model = build(stages=[[6, 7, 12], [6, 7, 12]], aggregation={"kind": "sum"})
    assert model.aggregations[0].weights.tolist() == [1, 1, 1]
    assert model.aggregations[0].weights is not model.aggregations[1].weights
    assert model.backbone.taps.blocks == (6, 7)


def test_linear_text_queries_do_not_see_the_image() -> None:
    model = build(queries="text_linear", stages=[[11], [12]])
    text, others = torch.randn(3, 32), torch.randn(2, 3, 32)
    assert len(model.queries) == 2
    for projection in model.queries:
        # the image half differs
        first, second = (projection(torch.cat([half, text], dim=-1)) for half in others)
        assert torch.equal(first, second)
        torch.testing.assert_close(
            first, text @ projection.linear.weight.T + projection.linear.bias
        )


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {"decoder": {"kind": "spectral"}},
            r"model\.decoder\.kind is spectral, the checkpoint has transformer",
        ),
        (
            {"prompts": {"spectral": True}},
            r"model\.prompts\.spectral is True, the checkpoint has False",
        ),
        (
            {"queries": "text_linear"},
            r"model\.queries is text_linear, the checkpoint has independent",
        ),
    ],
)
def test_weights_of_another_composition_are_refused(
    model: dict[str, Any], message: str, tiny_folder: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        start_from(
            config_from_dict(Config, {"model": merge(TINY["model"], model)}), str(tiny_folder)
        )
