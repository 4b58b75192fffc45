"""Models go to a hub and come back the same; what is broken or dangerous there is refused; the card
says where a model comes from."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants as hub_constants
import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard

import cascade_clip
from cascade_clip.checkpoints.checkpoint import (
    find_checkpoint,
    load_checkpoint,
    read_record,
    save_checkpoint,
)
from cascade_clip.checkpoints.hub import HubName, download_checkpoint, parse_hub_name
from cascade_clip.checkpoints.model_card import build_card, licence_identifier
from cascade_clip.cli.main import main
from cascade_clip.config import ClipConfig
from cascade_clip.inference.loading import load_predictor
from cascade_clip.inference.predictor import Predictor
from hub_server import TOKEN, Files, Hub, Repository
from tiny_models import build_tiny

IMAGE = np.random.default_rng(0).integers(0, 256, (64, 80, 3)).astype(np.uint8)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub on this machine that the hub client asks, with an empty cache and no token."""
    server = Hub()
    for name, value in {
        "ENDPOINT": server.address,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_TOKEN_PATH": str(tmp_path / "token"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_PROGRESS_BARS": True,
    }.items():
        # clients before Xet have no switch for it
        monkeypatch.setattr(hub_constants, name, value, raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield server
    server.stop()


def read_files(folder: Path) -> Files:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def labels(predictor: Predictor) -> np.ndarray:
    return predictor.segment(IMAGE, "cat, dog, grass").labels


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("owner/name", HubName("owner/name", None)),
        ("owner/name@v1.0", HubName("owner/name", "v1.0")),
        ("hub:owner/name@refs/pr/1", HubName("owner/name", "refs/pr/1")),
        ("mini", None),
        ("/owner/name", None),
        ("runs/a/b", None),
        ("../name", None),
        ("owner/..", None),
        ("owner/name@../../x", None),
        ("clip:owner/name", None),
        ("~/name", None),
    ],
)
def test_names(source: str, expected: HubName | None) -> None:
    assert parse_hub_name(source) == expected


@pytest.mark.parametrize("source", ["hub:mini", "hub:../name", "hub:owner/name@"])
def test_hub_before_something_else_is_an_error(source: str) -> None:
    with pytest.raises(ValueError, match="not a name on the hub"):
        find_checkpoint(source)


def test_a_model_from_the_hub_equals_the_folder(hub: Hub, tiny_folder: Path) -> None:
    hub.add(
        "someone/tiny",
        {**read_files(tiny_folder), "extra.bin": b"x", "script.py": b"raise SystemExit"},
    )
    expected = labels(load_predictor(tiny_folder, "cpu"))
    for source in ("someone/tiny", "hub:someone/tiny"):
        assert (labels(cascade_clip.load(source, device="cpu")) == expected).all()
    assert (labels(Predictor.from_pretrained("someone/tiny", device="cpu")) == expected).all()
    # nothing else, and each once
    assert hub.fetched() == {"model.safetensors", "config.yaml", "checkpoint.json", "README.md"}
    assert (
        len([line for line in hub.requests if line.startswith("GET") and "/resolve/" in line]) == 4
    )


def test_a_folder_here_goes_first(
    hub: Hub, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_checkpoint(Path("someone/tiny"), load_checkpoint(tiny_folder))
    assert find_checkpoint("someone/tiny") == Path("someone/tiny")
    assert hub.requests == []
    with pytest.raises(FileNotFoundError, match="no model of that name"):
        find_checkpoint("hub:someone/tiny")
    with pytest.raises(ValueError, match="is a folder here"):
        Predictor.from_pretrained("someone/tiny", revision="main")


def test_revisions_are_pinned(hub: Hub, tiny_folder: Path) -> None:
    files = read_files(tiny_folder)
    first = hub.add("someone/tiny", files)
    settings = yaml.safe_load(files["config.yaml"])
    settings["inference"]["calibration"] = 0.3
    second = hub.add("someone/tiny", {"config.yaml": yaml.safe_dump(settings).encode()})
    hub.repositories["someone/tiny"].refs["v1"] = first
    for source, revision, expected in (
        ("someone/tiny", None, 0.3),
        (f"someone/tiny@{first}", None, 0.1),
        ("hub:someone/tiny@v1", None, 0.1),
        ("someone/tiny", first, 0.1),
        ("someone/tiny", second, 0.3),
    ):
        predictor = Predictor.from_pretrained(source, revision, device="cpu")
        assert predictor.settings.calibration == expected, source
    with pytest.raises(FileNotFoundError, match="no revision v9"):
        download_checkpoint("someone/tiny@v9")
    with pytest.raises(ValueError, match="name one"):
        download_checkpoint("someone/tiny@v1", "main")


def test_the_cache_serves_without_a_connection(
    hub: Hub, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("someone/tiny", read_files(tiny_folder))
    folder = download_checkpoint("someone/tiny")
    asked = len(hub.requests)
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    assert download_checkpoint("someone/tiny") == folder
    with pytest.raises(FileNotFoundError, match="not in the hub cache"):
        download_checkpoint("someone/other")
    assert len(hub.requests) == asked  # offline means offline
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
    hub.stop()
    assert download_checkpoint("someone/tiny") == folder  # the hub is gone


def test_private_models_need_a_token(
    hub: Hub, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("someone/secret", read_files(tiny_folder), private=True)
    with pytest.raises(FileNotFoundError, match="HF_TOKEN"):
        download_checkpoint("someone/secret")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert (download_checkpoint("someone/secret") / "checkpoint.json").is_file()


def test_damaged_weights_are_refused(hub: Hub, tiny_folder: Path) -> None:
    hub.add("someone/tiny", read_files(tiny_folder))
    hub.corrupt = True  # the same length, one bit differs
    with pytest.raises(ValueError, match="is damaged: its SHA-256"):
        download_checkpoint("someone/tiny")


class Bomb:
    """Runs a command when a pickle of it is read."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


def test_pickles_are_neither_fetched_nor_read(hub: Hub, tiny_folder: Path, tmp_path: Path) -> None:
    """Beside a good model they stay where they are; instead of one, or under its name, the model is
    refused."""
    target = tmp_path / "exploded"
    bomb, good = pickle.dumps(Bomb(target)), read_files(tiny_folder)
    evil = {"pytorch_model.bin": bomb, "model.pkl": bomb, "model.pt": bomb}
    hub.add("evil/beside", {**good, **evil})
    labels(load_predictor("evil/beside", "cpu"))
    hub.add(
        "evil/instead",
        {name: data for name, data in {**good, **evil}.items() if name != "model.safetensors"},
    )
    with pytest.raises(
        FileNotFoundError,
        match=r"'model.safetensors'\] missing; it holds .*pytorch_model.bin.* only safetensors",
    ):
        load_predictor("evil/instead", "cpu")
    hub.add("evil/disguised", {**good, "model.safetensors": bomb})
    with pytest.raises(ValueError, match="truncated or damaged"):
        load_predictor("evil/disguised", "cpu")
    hub.add(
        "evil/yaml",
        {
            **good,
            "config.yaml": f"model: !!python/object/apply:os.system ['touch {target}']".encode(),
        },
    )
    with pytest.raises(ValueError, match=r"config\.yaml"):
        load_predictor("evil/yaml", "cpu")
    assert not target.exists()
    assert not hub.fetched() & evil.keys()


def test_names_that_leave_the_folder_are_never_fetched(
    hub: Hub, tiny_folder: Path, tmp_path: Path
) -> None:
    outside = [
        "../escape.txt",
        "../../model.safetensors",
        "/tmp/absolute.txt",
        "a/../../config.yaml",
        "..\\windows.txt",
    ]
    hub.add("evil/paths", {**dict.fromkeys(outside, b"evil"), **read_files(tiny_folder)})
    labels(load_predictor("evil/paths", "cpu"))
    written = {
        path.relative_to(tmp_path)
        for path in tmp_path.rglob("*")
        if path.is_file() and path.read_bytes() == b"evil"
    }
    assert written == set()
    assert not [
        line
        for line in hub.requests
        if "/resolve/" in line and ("escape" in line or ".." in line or "absolute" in line)
    ]


def test_a_commit_that_leaves_the_cache_is_refused(hub: Hub, tiny_folder: Path) -> None:
    hub.repositories["evil/commit"] = Repository(
        commits={"outside": read_files(tiny_folder)}, refs={"main": "outside"}
    )
    with pytest.raises(ValueError, match="not a proper entry of the hub cache"):
        download_checkpoint("evil/commit")


def test_settings_that_lower_the_guard_are_refused(hub: Hub, tiny_folder: Path) -> None:
    files = read_files(tiny_folder)
    settings = yaml.safe_load(files["config.yaml"])
    settings["model"]["clip"]["sha256"] = "any"
    hub.add("evil/trust", {**files, "config.yaml": yaml.safe_dump(settings).encode()})
    with pytest.raises(ValueError, match="trust CLIP weights unseen"):
        load_predictor("evil/trust", "cpu")
    record = json.loads(files["checkpoint.json"])
    kwargs = {"hf_tokenizer_name": "evil/code", "tokenizer_kwargs": {"trust_remote_code": True}}
    record["clip_architecture"] = {**settings["model"]["clip"]["architecture"]}
    record["clip_architecture"]["text_cfg"] = {**record["clip_architecture"]["text_cfg"], **kwargs}
    hub.add("evil/tokenizer", {**files, "checkpoint.json": json.dumps(record).encode()})
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_predictor("evil/tokenizer", "cpu")


def test_push_and_fetch_again(hub: Hub, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What arrives gives the same labels; the files arrive in one commit; the card's metadata holds
    for the hub."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    predictor = load_predictor(tiny_folder, "cpu")
    address = predictor.push_to_hub("me/tiny", private=True)
    repository = hub.repositories["me/tiny"]
    assert repository.private
    assert len(repository.commits) == 1
    assert address == f"{hub.address}/me/tiny/commit/{repository.refs['main']}"
    files = repository.commits[repository.refs["main"]]
    assert sorted(files) == ["README.md", "checkpoint.json", "config.yaml", "model.safetensors"]
    assert hub.cards == [files["README.md"].decode()]
    assert 'cascade_clip.load("me/tiny")' in hub.cards[0]
    assert (labels(cascade_clip.load("me/tiny", device="cpu")) == labels(predictor)).all()
    predictor.push_to_hub("me/tiny", revision="next", half=True)  # again, into a branch
    assert set(repository.refs) == {"main", "next"}
    half = Predictor.from_pretrained("me/tiny", "next", device="cpu")
    assert (labels(half) == labels(predictor)).mean() > 0.95


def test_push_needs_a_token_and_a_name(
    hub: Hub, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(tiny_folder), "me/tiny"]) == 2
    error = capsys.readouterr().err
    assert "cannot upload to me/tiny" in error
    assert "hf auth login" in error
    assert len(error.strip().splitlines()) == 1
    assert main(["push", str(tiny_folder), "tiny"]) == 2
    assert main(["push", "clip:mini", "me/tiny"]) == 2
    assert hub.repositories == {}


def test_the_commands_obey_the_environment(hub: Hub, tiny_folder: Path, tmp_path: Path) -> None:
    """HF_ENDPOINT, HF_HUB_CACHE, HF_TOKEN and HF_HUB_OFFLINE in a process of their own: push, then
    segment from a fresh cache."""
    from PIL import Image

    Image.fromarray(IMAGE).save(tmp_path / "photo.png")
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.address,
        "HF_HUB_CACHE": str(tmp_path / "other"),
        "HF_TOKEN": TOKEN,
    }
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}

    def run(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cascade_clip", *words]
        return subprocess.run(
            command, env={**environment, **more}, capture_output=True, text=True, check=False
        )

    pushed = run("push", str(tiny_folder), "me/tiny")
    assert pushed.returncode == 0, pushed.stderr
    assert f"uploaded {tiny_folder} to me/tiny: {hub.address}/me/tiny/commit/" in pushed.stdout
    words = (
        "segment",
        str(tmp_path / "photo.png"),
        "--model",
        "me/tiny",
        "--classes",
        "cat, dog, grass",
        "--device",
        "cpu",
    )
    done = run(*words, "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    index = np.array(Image.open(tmp_path / "out" / "photo_index.png"))
    assert (index == labels(load_predictor(tiny_folder, "cpu"))).all()
    assert (tmp_path / "other" / "models--me--tiny").is_dir()


def test_save_pretrained_writes_a_checkpoint_with_a_card(tmp_path: Path) -> None:
    predictor = Predictor(build_tiny(), device="cpu")
    folder = predictor.save_pretrained(tmp_path / "model")
    assert (labels(Predictor.from_pretrained(folder, device="cpu")) == labels(predictor)).all()
    data = ModelCard.load(folder / "README.md").data.to_dict()
    assert (data["library_name"], data["pipeline_tag"], data["license"]) == (
        "cascade-clip",
        "image-segmentation",
        "other",
    )
    assert {"zero-shot", "open-vocabulary"} <= set(data["tags"])


def test_clip_from_a_local_file_is_stored_too(tmp_path: Path) -> None:
    """Nobody else has that file."""
    made = build_tiny()
    weights = tmp_path / "clip.safetensors"
    weights.touch()
    clip = dataclasses.replace(made.config.model.clip, weights=str(weights))
    config = dataclasses.replace(
        made.config, model=dataclasses.replace(made.config.model, clip=clip)
    )
    local = dataclasses.replace(made, config=config, clip_fingerprint="f" * 64)
    assert read_record(save_checkpoint(tmp_path / "plain", local))["clip_stored"] is False
    assert (
        read_record(Predictor(local, device="cpu").save_pretrained(tmp_path / "published"))[
            "clip_stored"
        ]
        is True
    )


def test_the_card_says_where_a_model_comes_from() -> None:
    """Licence per part, figures in percent, how it was trained, how to use it."""
    made = build_tiny()
    clip = ClipConfig()
    config = dataclasses.replace(
        made.config,
        model=dataclasses.replace(made.config.model, clip=clip),
        data=dataclasses.replace(made.config.data, name="coco-stuff"),
    )
    start = {
        "time": "2026-11-24T10:00:00+00:00",
        "command": "cascade-clip train a.yaml",
        "hardware": {"cpu": "Some CPU", "gpus": []},
    }
    record = {
        "protocol": "inductive",
        "steps": 80000,
        "licence": "CC BY 4.0",
        "clip_stored": False,
        "clip_fingerprint": "ab12",
        "saved": "2026-11-24",
        "versions": {"cascade-clip": "0.1.0", "torch": "2.14.1"},
        "run": {
            "data": {"images": 118287, "sha256": "cd34"},
            "starts": [{**start, "git": {"commit": "9f9f", "dirty": False}}],
        },
        "evaluation": {
            "data": {"name": "coco-stuff", "split": "val"},
            "images": 5000,
            "calibration": 0.1,
            "summary": {"seen_miou": 0.411, "unseen_miou": 0.434, "hiou": None, "miou": 0.42},
        },
    }
    card = build_card(config, made.vocabulary, record, 23117574, "me/cascade")
    for line in (
        "license: cc-by-4.0",
        "# cascade",
        (
            "| CLIP weights (ViT-B-16-quickgelu, weights openai; not stored here, fetched from its"
            " source) | MIT (OpenAI) |"
        ),
        "| trained weights | CC BY 4.0 |",
        "| training data | COCO-Stuff: annotations CC BY 4.0, images under Flickr's terms of use |",
        (
            "Measured on coco-stuff, val, 5000 images, calibration 0.1. `cascade-clip verify`"
            " measures it again."
        ),
        "| S: mIoU of seen classes | 41.10 |",
        "| U: mIoU of unseen classes | 43.40 |",
        "- protocol: inductive, steps: 80000, seed: 0",
        "- of these without masks (unseen): grass",
        "- trained on 118287 images, SHA-256 cd34",
        "- 2026-11-24T10:00:00+00:00: `cascade-clip train a.yaml` on Some CPU, commit 9f9f",
        'result = cascade_clip.load("me/cascade").segment("photo.jpg", ["cat", "dog", "grass"])',
    ):
        assert line in card.splitlines(), line
    assert "| hIoU |" not in card  # no value, no row
    results = ModelCard(card).data.eval_results
    assert results is not None
    assert {entry.dataset_type for entry in results} == {"coco-stuff"}
    assert [entry.metric_value for entry in results] == [0.411, 0.434, 0.42]


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("Apache-2.0", "apache-2.0"),
        ("MIT", "mit"),
        ("CC BY-NC 4.0", "cc-by-nc-4.0"),
        ("unclear: ask", "other"),
        ("", "other"),
    ],
)
def test_licence_identifiers(licence: str, expected: str) -> None:
    assert licence_identifier(licence) == expected


def test_training_does_not_ask_the_hub_for_missing_runs(hub: Hub) -> None:
    """A path object is a place on this machine."""
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        find_checkpoint(Path("runs/nothing"))
    assert hub.requests == []
