"""The dataset of docs/extending.md, as a package of its own and as a line in the table."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from cascade_clip.checkpoints.model_card import licences
from cascade_clip.config import Config, DataConfig, config_to_dict, find_part, names_of
from cascade_clip.config.parts import PARTS
from cascade_clip.data import build_dataset, data_templates
from cascade_clip.vocabulary import IGNORED
from paths import ROOT
from tiny_runs import tiny_config

PAGE = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("\n## Dataset\n")[2].partition("\n## ")[0]
(MODULE,) = re.findall(r"```python\n# my_parts/pets\.py\n(.*?)```", SECTION, re.DOTALL)
((LINE, GROUP),) = re.findall(
    r"`(pets = .*)` below\n`\[project\.entry-points\.\"(.*)\"\]`", SECTION
)
((NAME, PLACE),) = re.findall(r'`"(pets)": "(.*)"` in the table', SECTION)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four images of each split, and masks of all four values."""
    draws = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind, values in (("images", np.arange(256)), ("masks", np.array([0, 1, 2, 255]))):
            folder = tmp_path / "data/pets" / kind / split
            folder.mkdir(parents=True)
            for number in range(4):
                size = (64, 96, 3) if kind == "images" else (64, 96)
                array = draws.choice(values, size).astype(np.uint8)
                Image.fromarray(array).save(folder / f"{number}.png")
    return tmp_path / "data"


def test_a_line_in_the_table(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_pets.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    in_this_package = "cascade_clip.data.named." + NAME
    assert PLACE == f"{in_this_package}:SPEC"
    monkeypatch.setitem(PARTS["datasets"], NAME, PLACE.replace(in_this_package, "own_pets"))
    assert names_of("datasets")[-1] == "pets"
    config = DataConfig(name="pets", root=str(data), unseen="dog")
    dataset = build_dataset(config)
    assert len(dataset) == 4 and dataset.vocabulary.unseen == ("dog",)
    sample = dataset.sample(0)
    assert sample.path.parent.name == "train"
    assert set(np.unique(sample.labels)) == {0, 1, 2, IGNORED}
    assert build_dataset(config, "val").sample(0).path.parent.name == "val"
    assert data_templates(config) == ("a photo of a {}",)
    assert licences(Config(data=config), {})["training data"] == "Pets: CC BY 4.0"
    find_part.cache_clear()


def test_a_package_that_brings_a_dataset(data: Path, tmp_path: Path) -> None:
    package = tmp_path / "site"
    for folder, file, text in (
        ("my_parts", "pets.py", MODULE),
        ("my_parts-1.0.dist-info", "METADATA", "Name: my-parts\nVersion: 1.0\n"),
        ("my_parts-1.0.dist-info", "entry_points.txt", f"[{GROUP}]\n{LINE.replace(chr(34), '')}\n"),
    ):
        (package / folder).mkdir(parents=True, exist_ok=True)
        (package / folder / file).write_text(text)
    pets = {"name": "pets", "root": str(data), "unseen": "dog", "workers": 0}
    settings = {**config_to_dict(tiny_config(data)), "data": pets}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    run = str(tmp_path / "run")
    files = ["--data", "pets", "--root", str(data)]
    commands = [
        ["train", str(tmp_path / "run.yaml"), "--out", run, "--train.steps", "2"],
        ["evaluate", run, *files, "--unseen", "dog", "--out", str(tmp_path / "out")],
        ["data", "check", *files, "--workers", "0"],
        ["evaluate", run, "--data", "pet"],
    ]
    script = (
        "import json, sys; sys.path.insert(0, sys.argv[1]); from cascade_clip.cli.main import main;"
        " print([int(main(words)) for words in json.loads(sys.argv[2])])"
    )
    words = [sys.executable, "-c", script, str(package), json.dumps(commands)]
    said = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert said.stdout.splitlines()[-1:] == ["[0, 0, 0, 2]"], said.stdout + said.stderr
    assert re.search(r"--data expects folder \| .*\| cityscapes \| pets, got pet\n", said.stderr)
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["images"] == 4 and report["data"]["settings"]["name"] == "pets"
    assert [row["seen"] for row in report["classes"]] == [True, False, True]
