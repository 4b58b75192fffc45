"""The command line as a user types it: help, the way from files to files, and bad input."""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from cascade_clip.checkpoints.checkpoint import find_checkpoint
from cascade_clip.cli.arguments import build_parser
from cascade_clip.cli.main import COMMANDS, main
from cascade_clip.cli.terminal import make_table
from tiny_models import TINY_SETTINGS, read_reference, tensor


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)).save(
        path
    )
    return path


def run(*words: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_help_is_light() -> None:
    """`cascade-clip --help` must not import anything heavy: the names of loaded modules are
    checked, not the time."""
    script = (
        "import sys; from cascade_clip.cli.main import main; main(['--help']);"
        " print(*sorted(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    text, modules = done.stdout.rsplit("\n", 2)[0], done.stdout.splitlines()[-1].split()
    assert all(name in text for name in COMMANDS)
    assert not {"torch", "numpy", "PIL", "jsonargparse", "rich", "open_clip", "lightning"} & set(
        modules
    )


def test_import_is_light() -> None:
    script = "import sys, cascade_clip; print(*sorted(sys.modules))"
    modules = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "numpy", "PIL", "open_clip", "lightning"} & set(modules)


def test_the_collector_is_as_before_afterwards(capsys: pytest.CaptureFixture[str]) -> None:
    before = gc.get_threshold()
    assert main(["env"]) == 0
    assert main(["segment", "/nowhere.png"]) == 2
    assert gc.get_threshold() == before


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    import importlib

    module, _, function = COMMANDS[name].target.partition(":")
    handler = getattr(importlib.import_module(module), function)
    parser = build_parser(handler, name)
    assert parser.description
    for action in parser._actions:
        assert action.help, f"{name}: {action.dest} has no help"
    with pytest.raises(SystemExit) as stopped:
        main([*name.split(), "--help"])
    assert stopped.value.code == 0
    assert "usage: cascade-clip" in capsys.readouterr().out


def test_segment_writes_what_it_says(
    tiny_folder: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(
        "segment",
        photo,
        "--classes",
        "cat, grass",
        "--model",
        tiny_folder,
        "--out",
        tmp_path / "out",
        capsys=capsys,
    )
    assert code == 0
    written = re.findall(r"[^ ,\n]*photo[^ ,\n]*\.(?:png|json)", out.split("wrote", 1)[1])
    assert len(written) == 3
    assert all(Path(name).is_file() for name in written)
    index = np.array(Image.open(tmp_path / "out" / "photo_index.png"))
    record = json.loads((tmp_path / "out" / "photo.json").read_text())
    assert index.shape == (60, 90)
    assert [entry["name"] for entry in record["classes"]] == ["cat", "grass"]
    for entry in record["classes"]:
        assert entry["coverage"] == pytest.approx(float((index == entry["index"]).mean()))
    overlay = Image.open(tmp_path / "out" / "photo_overlay.png")
    assert overlay.height >= 60 and overlay.width > 90  # a legend beside it


def test_a_broken_image_does_not_stop_the_rest(
    tiny_folder: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.png").write_bytes(photo.read_bytes()[:200])
    code, _, error = run(
        "segment",
        tmp_path / "broken.png",
        photo,
        "--model",
        tiny_folder,
        "--out",
        tmp_path / "out",
        capsys=capsys,
    )
    assert code == 2
    assert "broken.png" in error
    assert (tmp_path / "out" / "photo_index.png").is_file()


def test_images_of_one_name_do_not_overwrite_each_other(
    tiny_folder: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("left", "right"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "photo.png").write_bytes(photo.read_bytes())
    run(
        "segment",
        tmp_path / "left/photo.png",
        tmp_path / "right/photo.png",
        "--model",
        tiny_folder,
        "--out",
        tmp_path / "out",
        capsys=capsys,
    )
    assert {path.name for path in (tmp_path / "out").glob("*.json")} == {
        "left_photo.json",
        "right_photo.json",
    }


def test_without_a_model_the_built_in_one_is_used_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run(
            "sandbox",
            "export",
            "--out",
            tmp_path / "world",
            "--train",
            0,
            "--val",
            1,
            capsys=capsys,
        )[0]
        == 0
    )
    image = tmp_path / "world" / "images" / "val" / "000000.png"
    code, out, error = run(
        "segment", image, "--classes", "grass, star", "--out", tmp_path / "out", capsys=capsys
    )
    assert code == 0
    assert "mini knows only the built-in world" in error and "--model" in error
    assert "wrote" in out


def test_a_folder_called_mini_is_not_in_the_way(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mini").mkdir()
    assert find_checkpoint("mini").parent.name == "sandbox"


def test_import_then_segment(
    tmp_path: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(
        {"state_dict": {name: tensor(value) for name, value in read_reference("state").items()}},
        tmp_path / "released.pth",
    )
    np.save(tmp_path / "text.npy", read_reference("eval")["text_emb"])
    settings = {
        **TINY_SETTINGS,
        "data": {**TINY_SETTINGS["data"], "text_embeddings": str(tmp_path / "text.npy")},
    }
    (tmp_path / "released.yaml").write_text(yaml.safe_dump(settings))
    code, out, _ = run(
        "import", tmp_path / "released.pth", "--config", tmp_path / "released.yaml", "--out",
        tmp_path / "model", capsys=capsys
    )  # fmt: skip
    assert code == 0
    assert "[[6, 7, 8], [9, 10, 11], [12]]" in out
    assert (
        run(
            "segment",
            photo,
            "--model",
            tmp_path / "model",
            "--out",
            tmp_path / "out",
            capsys=capsys,
        )[0]
        == 0
    )


def test_env_names_versions(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run("env", capsys=capsys)
    assert code == 0
    assert torch.__version__.split("+")[0] in out
    assert "cuda" in out


def test_cost_of_the_published_models(capsys: pytest.CaptureFixture[str]) -> None:
    """The counts that the method page states: 193.089 and 40.464 M the published way, 23.118 M with
    a gradient, 254.5 GFLOP."""
    code, out, _ = run("cost", capsys=capsys)
    assert code == 0
    numbers = [int(word.replace(",", "")) for word in re.findall(r"\d[\d,]{6,}", out)]
    for millions in (193.089, 40.464, 23.118, 63.428):
        assert any(round(number / 1e6, 3) == millions for number in numbers), millions
    flops = [float(word) for word in re.findall(r"\d+\.\d", out.split("GFLOP per image")[1])[:2]]
    assert flops == pytest.approx([240.6, 254.5], rel=0.002)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fly"], "unknown command 'fly'; choose one of: quickstart"),
        (["segment"], "required: images"),
        (["segment", "{photo}", "--model", "nowhere"], "no checkpoint at nowhere"),
        (["segment", "{photo}", "--model", "{model}", "--colour", "red"], "--colour"),
        (["segment", "missing.jpg", "--model", "{model}"], "missing.jpg does not exist"),
        (
            ["segment", "{photo}", "--model", "{model}", "--classes", "cat,,dog"],
            "a class name is empty",
        ),
        (["segment", "{photo}", "--model", "{model}", "--classes", "cat, cat"], "given twice"),
        (
            ["segment", "{photo}", "--model", "{model}", "--classes", "clases.txt"],
            "no class list 'clases.txt'",
        ),
        (["segment", "{photo}", "--model", "{model}", "--device", "abacus"], "abacus"),
        (["segment", "{photo}", "--model", "{model}", "--device", "cuda"], "cuda"),
        (["segment", "{photo}", "--model", "{photo}"], "no checkpoint at"),
        (
            [
                "evaluate",
                "{model}",
                "--images",
                "nowhere",
                "--masks",
                "nowhere",
                "--classes",
                "voc",
            ],
            "nowhere",
        ),
        (
            [
                "evaluate",
                "{model}",
                "--images",
                "{dir}",
                "--masks",
                "{dir}",
                "--classes",
                "unknown-list",
            ],
            "no class list 'unknown-list'",
        ),
        (["train", "nowhere.yaml", "--out", "{dir}/run"], "no settings file nowhere.yaml"),
        (["train", "{bad}", "--out", "{dir}/run"], "unknown setting settings.train.stepps"),
        (["train", "--out", "{dir}/run", "--train.steps", "0"], "train.steps must be at least 1"),
        (
            ["train", "--out", "{dir}/run", "--train.steps", "many"],
            "--train.steps expects whole number, got many",
        ),
        (
            ["train", "--out", "{dir}/run", "--model.stages", "[[a]]"],
            "--model.stages expects [[whole number, ...], ...], got [[a]]",
        ),
        (
            ["train", "--out", "{dir}/run", "--model.stages=[1, 2]"],
            "--model.stages expects [[whole number, ...], ...], got [1, 2]",
        ),
        (["evaluate", "{model}", "--limit", ""], "--limit expects whole number, got ''"),
        (
            ["segment", "{photo}", "--model", "{model}", "--precision", "fp8"],
            "--precision expects fp32 | bf16 | fp16, got fp8",
        ),
        (
            ["segment", "{photo}", "--model", "{model}", "--threshold", "q"],
            "--threshold expects number | none",
        ),
        (["benchmark", "nonsense"], "CASE expects inference | sliding"),
        (["train", "--out", "{dir}/run"], "data.images, data.masks, data.classes not set"),
        (["import", "nowhere.pth", "--config", "{bad}", "--out", "{dir}/m"], "stepps"),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, list) else "",
)
def test_bad_input_is_one_clear_line(
    words: list[str],
    message: str,
    tiny_folder: Path,
    photo: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if words[0] == "segment" and "cuda" in words and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    bad = tmp_path / "bad.yaml"
    bad.write_text("train: {stepps: 3}")
    places = {"photo": photo, "model": tiny_folder, "dir": tmp_path, "bad": bad}
    code, _, error = run(*[word.format(**places) for word in words], capsys=capsys)
    assert code == 2
    assert message in error
    assert "Traceback" not in error
    lines = error.splitlines()
    assert lines[0].startswith("cascade-clip: error: ")
    # at most the hint follows
    assert all("--help says what it takes" in line for line in lines[1:])


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = run("segment", "x.png", "--model", "nowhere", "--debug", capsys=capsys)
    assert code == 2
    assert "Traceback" in error


def test_as_a_program(tiny_folder: Path, photo: Path, tmp_path: Path) -> None:
    """The installed command, in another folder, without a home directory."""
    command = [
        sys.executable,
        "-m",
        "cascade_clip",
        "segment",
        str(photo),
        "--model",
        str(tiny_folder),
        "--classes",
        "cat,grass",
    ]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "HOME": ""},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert (tmp_path / "output" / "photo_overlay.png").is_file()


@pytest.mark.parametrize("command", ["segment", "train", "benchmark", "evaluate"])
def test_help_names_types_in_words(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        run(command, "--help", capsys=capsys)
    out = capsys.readouterr().out
    assert "whole number" in out
    assert not re.search(r"Literal|Optional|Union|<class|type: (int|str|bool|float)", out)


def test_groups_and_close_words(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["data"], ["data", "--help"]):
        code, out, _ = run(*words, capsys=capsys)
        assert code == 0 and "data prepare" in out and "data check" in out and "segment" not in out
    code, _, err = run("segmnt", "x.png", capsys=capsys)
    assert code == 2 and "unknown command 'segmnt'; did you mean segment?" in err
    code, _, err = run("data", "chek", capsys=capsys)
    assert code == 2 and "did you mean data check" in err
    code, _, err = run("zzz", capsys=capsys)
    assert code == 2 and "choose one of" in err


@pytest.mark.parametrize(
    ("left", "sides"),
    [((0,), ["left", "right", "right"]), ((), ["right"] * 3), ((0, 2), ["left", "right", "left"])],
)
def test_numbers_of_a_table_are_on_the_right(left: tuple[int, ...], sides: list[str]) -> None:
    table = make_table("figures", ("class", "IoU %", ""), left)
    assert [column.justify for column in table.columns] == sides
