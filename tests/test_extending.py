"""docs/extending.md: its package is installed as a reader would install it, and each part of it is
used by the commands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import pytest
from PIL import Image

from cascade_clip.config import find_part, names_of, parts
from cascade_clip.errors import SettingError
from paths import PHOTOS, ROOT

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
USE = """
import contextlib, io, json, sys
from cascade_clip.cli.main import main
from cascade_clip.inference import load_predictor

def run(*words):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            return main(words), out.getvalue()
        except SystemExit as ended:
            return ended.code, out.getvalue()

photo = sys.argv[1]
found = {"help": run("train", "--help")[1]}
for name in ("settings", "tower"):
    for words in (
        ["train", f"{name}.yaml", "--out", name, "--train.device", "cpu", "--quiet"],
        ["segment", photo, "--model", name, "--classes", "tree, sky", "--out", name + "-masks"],
    ):
        code, text = run(*words)
        assert code == 0, text
    predictor = load_predictor(name, device="cpu")
    model = predictor.model
    found[name] = [type(part).__module__ for part in (
        model.decoders[0], model.aggregations[0], model.backbone.tower,
        predictor.checkpoint.text_encoder.tower)]
    found[name] += [predictor.settings.upsampler, predictor.checkpoint.config.train.protocol]
    found[name].append(float(getattr(model.decoders[0], "bias", 0)))
start = ["train", "settings.yaml", "--out", "x"]
found["misspelt"] = run(*start, "--model.decoder.options", '{"bais": 1}')
found["unknown"] = run(*start, "--train.protocol", "nameless")
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a program finds where the package of the page is installed."""
    folder = tmp_path_factory.mktemp("extending")
    blocks = re.findall(r"```\w+\n# ([\w/.]+)\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == PAGE.count("```") // 2
    for name, text in blocks:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    # what pip makes of pyproject.toml; both write entry points in nearly the same words
    installed = folder / "my_parts-1.0.dist-info"
    installed.mkdir()
    points = re.sub(
        r'\[project\.entry-points\."(.*)"\]',
        r"[\1]",
        dict(blocks)["pyproject.toml"].partition("\n\n")[2],
    )
    (installed / "entry_points.txt").write_text(points.replace('"', ""), encoding="utf-8")
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: my-parts\nVersion: 1.0\n")
    photo = min((PHOTOS / "images").iterdir())
    paths = [str(folder), *sys.path]
    done = subprocess.run(
        [sys.executable, "-c", USE, str(photo)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    masks = [next((folder / f"{name}-masks").rglob("*.png")) for name in ("settings", "tower")]
    assert all(Image.open(path).size for path in masks)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_parts_of_another_package_are_used(used: dict[str, Any]) -> None:
    assert used["settings"] == [
        "my_parts.decoder",
        "my_parts.aggregation",
        "cascade_clip.encoders.towers",
        "my_parts.text",
        "bicubic",
        "named",
        pytest.approx(-2, abs=0.1),
    ]
    assert used["tower"][0] == "cascade_clip.models.decoders.transformer"
    assert used["tower"][2] == "my_parts.tower"


@pytest.mark.parametrize(
    "choices",
    [
        "transformer,spectral,similarity,cosine",
        "nga,sum,concat,attention,largest",
        "clip,letters",
        "bilinear,guided,bicubic",
        "inductive,transductive,supervised,named",
    ],
)
def test_help_lists_them(choices: str, used: dict[str, Any]) -> None:
    assert "{" + choices + "}" in used["help"].replace(" ", "").replace("\n", "")


def test_what_does_not_exist_is_refused_by_name(used: dict[str, Any]) -> None:
    code, text = used["misspelt"]
    assert code == 2
    assert "unknown setting model.decoder.options.bais; the decoder cosine has the options" in text
    assert "['bias']" in text
    code, text = used["unknown"]
    assert code == 2
    assert "--train.protocol" in text and "named" in text and "nameless" in text


@pytest.mark.parametrize("kind", parts.PARTS)
def test_every_part_of_the_tables_is_there(kind: str) -> None:
    assert set(parts.PARTS[kind]) <= set(names_of(kind))
    for name in parts.PARTS[kind]:
        assert find_part(kind, name) is not None


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("decoders", "spectrul", r"unknown decoder 'spectrul'; .*; did you mean spectral\?"),
        ("text_encoders", "x", r"unknown text encoder 'x'; choose one of \['clip'\]$"),
    ],
)
def test_an_unknown_part(kind: str, name: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        find_part(kind, name)


def test_names_of_this_package_cannot_be_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    added = [
        EntryPoint(name, "missing.module:Decoder", "cascade_clip.decoders")
        for name in ("transformer", "broken")
    ]
    monkeypatch.setattr(parts, "_installed", lambda: EntryPoints(added))
    assert names_of("decoders") == ("transformer", "spectral", "similarity", "broken")
    assert find_part("decoders", "transformer").__module__.startswith("cascade_clip.")
    with pytest.raises(
        SettingError, match=r"cannot load the decoder broken \(missing.module:Decoder\)"
    ):
        find_part("decoders", "broken")
