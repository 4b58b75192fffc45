"""Keys of every JSON file, event and answer that we write: whoever reads one by its keys still
can."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from observe import FIXTURES, call, json_keys, present_name, read_fixture

FROZEN = read_fixture("json_keys.json")
DATA = ("--images", "images", "--masks", "masks", "--classes", "classes.txt", "--unseen", "sky")
SCORED = (*DATA, "--text-embeddings", "text.npy", "--device", "cpu")
Made = dict[str, Any]


def run(*words: str) -> str:
    """Run one command, which must succeed; returns its standard output."""
    code, out, errors = call(*words)
    assert code == 0, f"{words}: {errors}"
    return out


def read(path: str) -> Any:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def train() -> Made:
    events = [
        json.loads(line)
        for line in run("train", "settings.yaml", "--out", "new", "--json-lines").splitlines()
    ]
    events += [
        json.loads(line)
        for line in run(
            "train", "settings.yaml", "--out", "no", "--dry-run", "--json-lines"
        ).splitlines()
    ]
    events += [
        json.loads(line)
        for line in call("train", "settings.yaml", "--out", "new", "--json-lines")[1].splitlines()
    ]
    found = {
        f"event {name}": [event for event in events if event["event"] == name]
        for name in {event["event"] for event in events}
    }
    header = Path("new/metrics.csv").read_text().splitlines()[0].split(",")
    files = {
        name: read(f"new/{name}") for name in ("run.json", "report.json", "model/checkpoint.json")
    }
    return {**found, **files, "metrics.csv": dict.fromkeys(header)}


def train_seeds() -> Made:
    run("train", "settings.yaml", "--out", "seeds", "--seeds", "0,1", "--quiet")
    return {"seeds.json": read("seeds/seeds.json")}


def evaluate() -> Made:
    run("evaluate", "run", *SCORED, "--out", "evaluation.json")
    run("compare", "run", "run", *SCORED, "--resamples", "10", "--out", "compare.json")
    run("calibration", "run", *SCORED, "--values", "0,0.1", "--out", "calibration")
    run("threshold", "run", *SCORED, "--ignored-is-background", "--out", "threshold.json")
    names = ("evaluation.json", "compare.json", "calibration/calibration.json", "threshold.json")
    return {name: read(name) for name in names}


def segment() -> Made:
    run(
        "segment",
        "images/0.png",
        "--model",
        "run",
        "--outputs",
        "overlay,index,heatmaps,labelme,coco",
        "--out",
        "labels",
        "--quiet",
    )
    return {
        f"segment {name}": read(f"labels/{name}")
        for name in ("0.json", "0_coco.json", "0_labelme.json", "coco.json")
    }


def check_data() -> Made:
    run("data", "check", *DATA, "--workers", "0", "--out", "check")
    return {"check.json": read("check/check.json")}


def reproduce() -> Made:
    Path("reproduction").mkdir()
    run("reproduce", "table9", "--out", "reproduction", "--show")
    return {"reproduce results.json": read("reproduction/results.json")}


def export() -> Made:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    run("export", "onnx", "run", "--out", "model.onnx")
    run("export", "text", "run", "--out", "text.json", "--classes", "cat,dog")
    return {"export model.json": read("model.json"), "export text.json": read("text.json")}


def serve() -> Made:
    pytest.importorskip("fastapi")
    pytest.importorskip("prometheus_client")
    made: Made = {}
    image = Path("images/0.png").read_bytes()
    with service() as address:
        for kind in ("json", "coco"):
            form = {"classes": "cat, dog, grass, sky", "format": kind}
            answer = httpx.post(f"{address}/segment", data=form, files={"image": image}, timeout=60)
            assert answer.status_code == 200, answer.text
            made[f"serve {kind}"] = answer.json()
        made["serve refusal"] = httpx.post(f"{address}/segment", data=form, timeout=60).json()
        made["serve health"] = httpx.get(f"{address}/health", timeout=60).json()
        described = httpx.get(f"{address}/openapi.json", timeout=60).json()
    made["serve paths"] = {
        path: dict.fromkeys(operations) for path, operations in described["paths"].items()
    }
    return made


@contextlib.contextmanager
def service() -> Iterator[str]:
    """The address of a service in a process of its own."""
    words = [
        sys.executable,
        "-u",
        "-m",
        "cascade_clip",
        "serve",
        "--model",
        "mini",
        "--port",
        "0",
        "--device",
        "cpu",
    ]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            assert process.stdout is not None
            address = next(
                found[0]
                for line in process.stdout
                if (found := re.search(r"http://[\w.]+:\d+", line))
            )
            while (
                httpx.get(f"{address}/health", timeout=60).status_code != 200
            ):  # it loads its model
                time.sleep(0.1)
            yield address
        finally:
            process.terminate()


MAKERS = (train, train_seeds, evaluate, segment, check_data, reproduce, export, serve)


def keys_of(make: Callable[[], Made]) -> dict[str, list[str]]:
    """Sorted keys of everything that a maker makes; facts about a git checkout are there only in
    one."""
    return {
        name: sorted(key for key in json_keys(value) if ".git" not in key)
        for name, value in sorted(make().items())
    }


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_keys_stay(
    make: Callable[[], Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(FIXTURES / "world", tmp_path / "world")
    monkeypatch.chdir(tmp_path / "world")
    frozen, now = FROZEN[make.__name__], keys_of(make)
    lost = {
        name: sorted({present_name(key) for key in keys} - set(now.get(name, [])))
        for name, keys in frozen.items()
    }
    assert not {name: keys for name, keys in lost.items() if keys}
    assert frozen.keys() <= now.keys()
