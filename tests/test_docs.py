"""What is published is tested: every configuration builds, the README's Python prints what it says,
its commands exist."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image

from cascade_clip.checkpoints.checkpoint import load_config
from cascade_clip.cli.arguments import build_parser
from cascade_clip.cli.main import COMMANDS
from cascade_clip.config import DataConfig
from cascade_clip.data.registry import build_dataset
from cascade_clip.models.builder import build_segmenter
from paths import ROOT

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_there_is_something_to_test() -> None:
    assert CONFIGS
    assert len(PAGES) > 2


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configurations_build_and_run_a_batch(path: Path) -> None:
    config = load_config(path)
    if not path.stem.startswith("sandbox"):
        # tests/config/test_configs.py builds and trains it
        assert f"configs/{path.name}" in path.read_text()
        return
    model = build_segmenter(config.model).eval()
    vocabulary = build_dataset(config.data).vocabulary
    side = config.train.augment.crop
    with torch.inference_mode():
        logits = model(
            torch.zeros(1, 3, side, side), torch.randn(len(vocabulary), model.joint_width)
        )
    assert logits.shape[:2] == (1, len(vocabulary))
    assert f"configs/{path.name}" in path.read_text()  # its head says the command


def test_readme_python_prints_what_it_says() -> None:
    text = (ROOT / "README.md").read_text()
    match = re.search(r"```python\n(.*?)```\n.*?```\n(.*?)\n```", text, re.DOTALL)
    assert match
    assert (
        len(
            [
                line
                for line in match[1].splitlines()
                if line.strip() and not line.startswith("import")
            ]
        )
        <= 5
    )
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(match[1], "README.md", "exec"), {})
    assert printed.getvalue().strip() == match[2].strip()


def test_the_python_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block of docs/python.md, one after the other, as a reader types them."""
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL
    )
    assert len(blocks) >= 5
    monkeypatch.chdir(tmp_path)
    scene = build_dataset(DataConfig(name="sandbox", seed=5, limit=4)).sample(3)
    Image.fromarray(scene.image.permute(1, 2, 0).numpy()).save("photo.png")
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    assert {path.name for path in tmp_path.iterdir()} == {
        "photo.png",
        "overlay.png",
        "star.png",
        "output",
    }
    assert names["some"].class_names == ("star", "tree", "background")  # type: ignore[attr-defined]


def test_the_notebook_runs() -> None:
    """Every cell of docs/tour.ipynb in order, in one namespace, as a kernel would."""
    notebook = json.loads((ROOT / "docs" / "tour.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 5
    assert all(not cell.get("outputs") for cell in notebook["cells"])  # kept without outputs
    names: dict[str, object] = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for number, cell in enumerate(cells):
            exec(compile(cell, f"docs/tour.ipynb cell {number}", "exec"), names)
    assert "(1, 2, 3)" in printed.getvalue() and "hIoU 0." in printed.getvalue()


def known_flags(command: str) -> set[str]:
    module, _, function = COMMANDS[command].target.partition(":")
    parser = build_parser(getattr(importlib.import_module(module), function), command)
    return {option for action in parser._actions for option in action.option_strings}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_commands_and_links_exist(path: Path) -> None:
    text = path.read_text()
    for line in re.findall(r"^\s*(cascade-clip .*?)(?:#.*)?$", text, re.MULTILINE):
        words = shlex.split(line)[1:]
        if words[0].startswith("-"):
            continue
        name = next((name for name in (" ".join(words[:2]), words[0]) if name in COMMANDS), None)
        assert name, line
        flags = known_flags(name)
        assert [word for word in words if word.startswith("--") and word not in flags] == [], line
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or (path.parent / target).exists(), (
            f"{path.name} links to {target}"
        )
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^\s*make ([a-z-]+)", text, re.MULTILINE):
        assert f"\n{target}:" in makefile, target
