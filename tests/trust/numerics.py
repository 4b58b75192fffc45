"""Numbers: one seed and number of threads give the same bits on a CPU, whatever loads the data;
values that are no numbers are named.

`platforms.py` compares the oldest supported torch with this one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from cascade_clip.checkpoints.checkpoint import save_checkpoint
from cascade_clip.config import Config
from cascade_clip.config.serialization import config_from_dict, config_to_dict
from cascade_clip.inference.loading import load_predictor
from cascade_clip.sandbox.scenes import SceneConfig, make_scene
from cascade_clip.training.fit import fit
from cascade_clip.training.progress import quiet_engine
from children import run_command
from figures import Figure, main
from tiny_models import build_tiny
from tiny_runs import DROPOUT, tiny_config, write_folders


def digest(scenes: int) -> str:
    """A hash of labels, scores and class maps of some scenes of odd sizes."""
    predictor, found = load_predictor("mini", device="cpu"), hashlib.sha256()
    for number in range(scenes):
        scene = make_scene(3, number, SceneConfig(size=128)).image[
            : 128 - 7 * (number % 5), : 96 + number % 11
        ]
        result = predictor.segment(scene, "water, snow, fabric, umbrella", 0.1)
        for array in (result.labels, result.scores, result.class_maps):
            assert array is not None
            found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def train_with(workers: int, base: Path, name: str, steps: int, *, process: bool) -> bytes:
    """The bytes of the weights of a run with dropout and augmentation; `process`: in a new process,
    with other hashes of strings."""
    config = config_to_dict(
        tiny_config(base, DROPOUT, steps=steps, save_every=steps, preview_every=0)
    )
    config["data"]["workers"] = workers
    out = base / name
    if process:
        (base / f"{name}.yaml").write_text(yaml.safe_dump(config))
        words = ["-m", "cascade_clip", "train", str(base / f"{name}.yaml"), "--out", str(out)]
        changes = {
            "PYTHONHASHSEED": str(len(name)),
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
        }
        subprocess.run(
            [sys.executable, *words], check=True, capture_output=True, env={**os.environ, **changes}
        )
    else:
        fit(config_from_dict(Config, config), out)
    return (out / "model" / "model.safetensors").read_bytes()


def same_training(base: Path, *, quick: bool) -> Iterator[Figure]:
    """Trainings of one seed."""
    steps = 2 if quick else 20
    first = train_with(0, base, "first", steps, process=False)
    again = train_with(0, base, "again", steps, process=not quick)
    other = b"the same" if quick else train_with(0, base, "other", steps - 1, process=False)
    where = "this process" if quick else "another process"
    text = (
        f"{steps} steps, {len(first):,} bytes of weights, again in {where}: {_differ(first, again)}"
        " bytes differ"
    )
    yield Figure("training twice with one seed", text, first == again != other)
    for workers in () if quick else (1, 2):
        found = train_with(workers, base, f"workers{workers}", steps, process=False)
        text = f"{steps} steps: {_differ(first, found)} bytes differ from the run without workers"
        yield Figure(f"training with data.workers {workers}", text, first == found)


def same_predictions(*, quick: bool) -> Figure:
    """Predictions in this process, again, and (in full) in another process."""
    scenes = 2 if quick else 40
    found = [digest(scenes), digest(scenes)]
    if not quick:
        code = (
            f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import numerics;"
            f" print(numerics.digest({scenes}))"
        )
        words = [sys.executable, "-c", code]
        environment = {**os.environ, "PYTHONHASHSEED": "7"}
        found.append(
            subprocess.run(
                words, check=True, capture_output=True, text=True, env=environment
            ).stdout.strip()
        )
    text = f"{scenes} pictures, {len(found)} runs: {len(set(found))} result to the last bit"
    return Figure("predictions again", text, len(set(found)) == 1)


def poison(path: Path, name: str, value: float) -> None:
    """Put one value that is no number into a stored tensor."""
    state = load_file(path)
    state[name].view(-1)[state[name].numel() // 2] = value
    save_file(state, path, metadata={"format": "pt"})


def bad_inputs(base: Path) -> Iterator[tuple[str, str, list[str]]]:
    """What holds a value that is no number, the word that must name it, and the command that reads
    it."""
    picture = base / "images" / "0.png"
    out = ["--out", str(base / "refused")]
    tensors = (
        "decoders.0.layers.0.expand.weight",
        "backbone.tower.visual.conv1.weight",
        "text.token_embedding.weight",
    )
    for number, value in enumerate((float("nan"), float("inf"), float("-inf"))):
        model = save_checkpoint(base / f"bad{number}", build_tiny())
        names = list(load_file(model / "model.safetensors"))
        name = next((name for name in tensors[number:] if name in names), names[number])
        poison(model / "model.safetensors", name, value)
        yield (
            f"{value} in weights of a checkpoint",
            name,
            ["segment", str(picture), "--model", str(model), "--classes", "cat", *out],
        )
    floats = np.full((64, 64), 0.5, dtype=np.float32)
    floats[3, 4] = np.nan
    Image.fromarray(floats).save(base / "floats.tiff")
    model = str(save_checkpoint(base / "good", build_tiny()))
    yield (
        "nan in a picture of floats",
        "floats.tiff",
        ["segment", str(base / "floats.tiff"), "--model", model, "--classes", "cat", *out],
    )
    embeddings = np.ones((4, 32), dtype=np.float32)
    embeddings[2, 3] = np.inf
    np.save(base / "text.npy", embeddings)
    config = config_to_dict(tiny_config(base, DROPOUT, steps=2))
    config["data"]["text_embeddings"] = str(base / "text.npy")
    (base / "text.yaml").write_text(yaml.safe_dump(config))
    yield "inf in text embeddings", "text.npy", ["train", str(base / "text.yaml"), *out]
    torch.save(
        {"decode_head.q_proj.weight": torch.tensor([1.0, float("nan")])}, base / "released.pth"
    )
    (base / "released.yaml").write_text(yaml.safe_dump({"data": {"classes": "a, b"}}))
    words = ["import", str(base / "released.pth"), "--config", str(base / "released.yaml"), *out]
    yield "nan in a file to import", "decode_head.q_proj.weight", words
    config = config_to_dict(tiny_config(base, DROPOUT, steps=2))
    config["train"]["init_from"] = str(base / "bad0")
    (base / "init.yaml").write_text(yaml.safe_dump(config))
    yield (
        "nan in weights that a training starts from",
        tensors[0],
        ["train", str(base / "init.yaml"), *out],
    )


def name_bad_values(base: Path) -> Iterator[Figure]:
    """NaN and infinity in weights and inputs become one line that names them."""
    for what, name, words in bad_inputs(base):
        said = run_command(words)
        named = said.is_one_line and name in said.errors[-1]
        text = f"exit code {said.code}, {len(said.errors)} lines of error, "
        yield Figure(
            what,
            text
            + (
                f"{name} is named"
                if named
                else f"{name} is not named: {' '.join(said.errors)[:200]}"
            ),
            named,
        )


def measure(quick: bool) -> Iterator[Figure]:
    """All figures about numbers."""
    quiet_engine()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with (
        tempfile.TemporaryDirectory(prefix="cascade-clip-numbers-") as folder,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(torch.set_num_threads, threads)
        base = write_folders(Path(folder))
        yield from same_training(base, quick=quick)
        yield same_predictions(quick=quick)
        yield from name_bad_values(base)


def _differ(first: bytes, second: bytes) -> int:
    return (
        abs(len(first) - len(second)) + sum(a != b for a, b in zip(first, second, strict=False))
        if first != second
        else 0
    )


if __name__ == "__main__":
    raise SystemExit(main(measure))
