"""Checkpoints and archives from strangers: no pickle is executed, nothing leaves its folder, sizes
are checked before memory is taken."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import pickle
import shutil
import struct
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save_file

from archives import random_clip, write_openai_archive
from cascade_clip.checkpoints.checkpoint import load_checkpoint, load_config, save_checkpoint
from cascade_clip.checkpoints.released import read_released
from cascade_clip.cli.main import main as command
from cascade_clip.config import ClipConfig
from cascade_clip.data.prepare.archives import list_members
from cascade_clip.data.prepare.masks import context_mask, sbd_mask
from cascade_clip.data.prepare.preparation import Source, prepare_dataset
from cascade_clip.encoders.clip import load_clip
from cascade_clip.encoders.text import load_embeddings
from cascade_clip.files.hashing import file_sha256
from cascade_clip.files.image_tensors import load_image
from cascade_clip.research.benchmark.work import peak_memory
from cascade_clip.results.rle import decode_mask
from cascade_clip.training.fit import fit
from cascade_clip.training.resume import StateFiles, list_states
from cascade_clip.vocabulary import load_vocabulary
from evil_archives import RECIPE, evil_archives
from figures import Figure, main
from odd_pictures import png
from tiny_models import TINY_CLIP, TINY_SETTINGS, build_tiny
from tiny_runs import tiny_config, write_folders

Attempt = tuple[str, Callable[[], object]]

MOST_GROWTH = 400.0
"""MiB that the attempts with enormous claims may add to the memory of this process."""
SLOWEST = 20.0
"""Seconds of processor time that one attempt may take."""


class Harm:
    """A pickle that writes a file when it is executed."""

    def __init__(self, mark: Path) -> None:
        """The file."""
        self.mark = mark

    def __reduce__(self) -> Any:
        """What unpickling does."""
        return (Path.write_text, (self.mark, "executed"))


def refused(what: str, attempts: list[Attempt], mark: Path | None = None) -> Figure:
    """Every attempt must end with a ValueError or OSError of one line, and none may have written
    `mark`."""
    wrong, executed, slowest = [], 0, 0.0
    with contextlib.suppress(OSError):
        # the most memory so far becomes the memory now
        Path("/proc/self/clear_refs").write_text("5")
    before = peak_memory()
    for name, attempt in attempts:
        begin = time.process_time()
        try:
            attempt()
            wrong.append(f"{name}: accepted")
        except (ValueError, OSError) as error:
            if len(str(error).splitlines()) != 1:
                wrong.append(f"{name}: not one line: {str(error)[:200]!r}")
        except Exception as error:
            wrong.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
        slowest = max(slowest, time.process_time() - begin)
        if mark is not None and mark.exists():
            executed += 1
            mark.unlink()
    growth = peak_memory() - before
    said = (
        f"{len(attempts)} attempts: {len(attempts) - len(wrong)} refused in one line, {executed}"
        " executed"
    )
    text = f"{said}, memory grew by {growth:.0f} MiB, the slowest took {slowest:.1f} s"
    return Figure(
        what,
        "; ".join([text, *wrong]),
        not wrong and not executed and growth <= MOST_GROWTH and slowest <= SLOWEST,
    )


def run(*words: str) -> None:
    """A command of the program; exit code 2 is a refusal."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = command(list(words))
    if code == 2:
        raise ValueError(said.getvalue().strip())


def write_torch(path: Path, value: Any, kind: str = "zip") -> Path:
    """A pickle in one of PyTorch's three containers."""
    if kind == "plain":
        path.write_bytes(pickle.dumps(value, protocol=2))
    elif kind == "tar":  # PyTorch before 0.1.10
        with tarfile.open(path, "w") as archive:
            for name in ("sys_info", "pickle", "storages", "tensors"):
                content = pickle.dumps(value, protocol=2)
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    else:
        torch.save(value, path, _use_new_zipfile_serialization=kind == "zip")
    return path


def pickle_attempts(folder: Path, mark: Path, checkpoint: Path) -> list[Attempt]:
    """Every place where a file of weights, arrays or settings is read."""
    harm = Harm(mark)
    settings = folder / "released.yaml"
    settings.write_text(yaml.safe_dump(TINY_SETTINGS))
    attempts: list[Attempt] = []
    for kind in ("zip", "legacy", "plain", "tar"):
        file = write_torch(folder / f"{kind}.pth", {"state_dict": {"a": harm}}, kind)
        attempts += [
            (f"import of a {kind} file", lambda file=file: read_released(file)),
            (
                f"command import of a {kind} file",
                lambda file=file: run(
                    "import", str(file), "--config", str(settings), "--out", str(folder / "o")
                ),
            ),
            (
                f"CLIP weights in a {kind} file",
                lambda file=file: load_clip(tiny_clip(weights=str(file))),
            ),
            (
                f"state of a run in a {kind} file",
                lambda file=file: StateFiles().load_checkpoint(file, weights_only=False),
            ),
        ]
    inside = folder / "clip"
    inside.mkdir()
    write_torch(inside / "open_clip_pytorch_model.bin", {"a": harm})
    (inside / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": TINY_CLIP, "preprocess_cfg": {}})
    )
    remote = {
        **TINY_CLIP,
        "text_cfg": {**TINY_CLIP["text_cfg"], "tokenizer_kwargs": {"trust_remote_code": True}},
    }
    attempts += [
        ("CLIP folder with a pickle", lambda: load_clip(ClipConfig(name=f"local-dir:{inside}"))),
        ("CLIP whose tokenizer brings code", lambda: load_clip(tiny_clip(architecture=remote))),
    ]
    for name, content in (
        ("model.safetensors", (folder / "zip.pth").read_bytes()),
        (
            "config.yaml",
            b"model: !!python/object/apply:pathlib.Path.write_text"
            b" [!!python/object/apply:pathlib.Path [" + str(mark).encode() + b"], x]",
        ),
        ("checkpoint.json", pickle.dumps(harm)),
    ):
        copy = Path(shutil.copytree(checkpoint, folder / f"model with a bad {name}"))
        (copy / name).write_bytes(content)
        attempts.append(
            (f"model folder with a pickle as {name}", lambda copy=copy: load_checkpoint(copy))
        )
    bare = Path(shutil.copytree(checkpoint, folder / "model with pickles"))
    (bare / "model.safetensors").rename(bare / "model.bin")
    write_torch(bare / "pytorch_model.bin", {"a": harm})
    attempts.append(
        (
            "model folder with pytorch_model.bin in place of safetensors",
            lambda: load_checkpoint(bare),
        )
    )
    np.save(folder / "objects.npy", np.array([harm], dtype=object), allow_pickle=True)
    np.savez(folder / "objects.npz", a=np.array([harm], dtype=object))
    (folder / "bare.npy").write_bytes(pickle.dumps(harm))
    attempts += [
        (f"text embeddings in {name}", lambda name=name: load_embeddings(folder / name, 1, 1))
        for name in ("objects.npy", "objects.npz", "bare.npy")
    ]
    attempts += [
        (f"a pickle as .mat for {read.__name__}", lambda read=read: read(pickle.dumps(harm)))
        for read in (sbd_mask, context_mask)
    ]
    return attempts


def tiny_clip(**changes: Any) -> ClipConfig:
    """Settings of the tiny CLIP of the tests."""
    return ClipConfig(**{"name": "tiny", "weights": "random", "architecture": TINY_CLIP, **changes})


def resume_attempts(folder: Path, mark: Path) -> list[Attempt]:
    """A run whose newest state was replaced, and one with a file of Lightning's own name."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    config = tiny_config(write_folders(folder), steps=4)
    fit(config, folder / "run")
    shutil.rmtree(folder / "run" / "model")
    attempts: list[Attempt] = []
    for kind in ("zip", "legacy", "tar"):
        out = Path(shutil.copytree(folder / "run", folder / f"run {kind}"))
        for state in list_states(out / "state"):
            write_torch(state, {"state_dict": {"a": Harm(mark)}, "loops": Harm(mark)}, kind)
        attempts.append(
            (
                f"--resume from a state in a {kind} file",
                lambda out=out: fit(config, out, resume="always"),
            )
        )
    out = Path(shutil.copytree(folder / "run", folder / "run last"))
    for state in list_states(out / "state"):
        state.unlink()
    write_torch(out / "state" / "last.ckpt", {"state_dict": {"a": Harm(mark)}})
    attempts.append(("--resume from last.ckpt", lambda: fit(config, out, resume="always")))
    return attempts


def claim_attempts(folder: Path, checkpoint: Path) -> list[Attempt]:
    """Small files that claim to be enormous."""
    terabyte = json.dumps(
        {"a": {"dtype": "F32", "shape": [1 << 38], "data_offsets": [0, 1 << 40]}}
    ).encode()
    files = {
        "1 TB.safetensors": struct.pack("<Q", len(terabyte)) + terabyte + bytes(64),
        "header of 8 EB.safetensors": struct.pack("<Q", (1 << 63) - 1) + b"{}",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    attempts: list[Attempt] = [
        (name, lambda name=name: read_released(folder / name)) for name in files
    ]
    for shape in ((10**6, 10**6), (1 << 40,), (1, 1 << 62)):
        header = str({"descr": "<f4", "fortran_order": False, "shape": shape}).encode()
        file = folder / f"{len(shape)} {shape[-1]}.npy"
        file.write_bytes(
            b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header + b"\n" + bytes(100)
        )
        attempts.append(
            (
                f"npy of shape {shape}",
                lambda file=file, shape=shape: load_embeddings(
                    file, *(shape if len(shape) == 2 else (1, 1))
                ),
            )
        )
    torch.save({"a": torch.zeros(1).expand(1 << 40)}, folder / "expanded.pth")
    torch.save({"a": torch.zeros(1)}, folder / "small.pth")
    with (
        zipfile.ZipFile(folder / "small.pth") as old,
        zipfile.ZipFile(folder / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for info in old.infolist():
            new.writestr(
                info.filename,
                bytes(300 << 20) if info.filename.endswith("data/0") else old.read(info),
            )
    torch.save({"a": torch.zeros(9)}, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    (folder / "legacy.pth").write_bytes(
        (folder / "legacy.pth").read_bytes().replace(b"K\x09", b"\x8a\x06\0\0\0\0\0\x10")
    )
    attempts += [
        (name, lambda name=name: read_released(folder / name))
        for name in ("expanded.pth", "bomb.pth", "legacy.pth")
    ]
    (folder / "bomb.png").write_bytes(png(30_000, 30_000, bytes(10_000)))
    attempts += [
        ("picture of 900 million pixels", lambda: load_image(folder / "bomb.png")),
        (
            "run lengths of 10^18 pixels",
            lambda: decode_mask({"size": [10**9, 10**9], "counts": [10**18]}),
        ),
        (
            "run lengths of 10^10 pixels",
            lambda: decode_mask({"size": [10**5, 10**5], "counts": [10**10]}),
        ),
        (
            "run lengths that wrap around",
            lambda: decode_mask({"size": [2, 2], "counts": [1 << 62] * 4 + [4]}),
        ),
        ("size that is infinite", lambda: decode_mask({"size": [float("inf"), 2], "counts": [4]})),
    ]
    return attempts + model_claims(folder, checkpoint) + text_claims(folder)


def model_claims(folder: Path, checkpoint: Path) -> list[Attempt]:
    """Model folders whose settings ask for more than the weights hold."""
    attempts: list[Attempt] = []
    changes: dict[str, Callable[[Any, Any], object]] = {
        "a billion prompt tokens": (
            lambda config, clip: config["model"]["prompts"].update(tokens=10**9)
        ),
        "4,096 prompt tokens": lambda config, clip: config["model"]["prompts"].update(tokens=4096),
        "feed-forward of 65,536": (
            lambda config, clip: config["model"]["decoder"].update(feedforward=65_536, layers=64)
        ),
        "60 equal stages": lambda config, clip: config["model"].update(stages=[[12]] * 60),
        "a window of 10^9": lambda config, clip: config["inference"].update(window=10**9),
        "a grid of 10^6": lambda config, clip: config["model"].update(position_grid=[10**6, 10**6]),
        "a CLIP of width 262,144": (
            lambda config, clip: clip["vision_cfg"].update(width=1 << 18, head_width=1 << 17)
        ),
        "a CLIP of 10^9 blocks": lambda config, clip: clip["vision_cfg"].update(layers=10**9),
        "a joint space of 200,000": lambda config, clip: clip.update(embed_dim=200_000),
        "a text tower of width 100,000": (
            lambda config, clip: clip["text_cfg"].update(width=100_000, layers=100)
        ),
        "10^12 words": lambda config, clip: clip["text_cfg"].update(vocab_size=10**12),
        "an image side that is infinite": (
            lambda config, clip: clip["vision_cfg"].update(image_size=float("inf"))
        ),
    }
    for number, (name, change) in enumerate(changes.items()):
        copy = Path(shutil.copytree(checkpoint, folder / f"model {number}"))
        config = yaml.safe_load((copy / "config.yaml").read_text())
        change(config, config["model"]["clip"]["architecture"])
        (copy / "config.yaml").write_text(yaml.safe_dump(config))
        attempts.append((f"model with {name}", lambda copy=copy: load_checkpoint(copy)))
    return attempts


def text_claims(folder: Path) -> list[Attempt]:
    """YAML and JSON that would never end, or run something."""
    laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
    )
    texts = {
        "a billion laughs": laughs,
        "itself": "model: &a {clip: *a}",
        "a list in itself": "model: &a [*a]",
        "deep": "[" * 50_000,
        "deep mappings": "".join(" " * n + "a:\n" for n in range(3000)),
        "2 MB": "# " + "x" * 2_000_000,
        "os.system": "model: !!python/object/apply:os.system [true]",
        "a module": "model: !!python/module:os",
        "a name": "model: !!python/name:os.system",
        "an object": "model: !!python/object/new:subprocess.Popen [[true]]",
        "a time that is none": "model: !!timestamp x",
        "a switch that is none": "model: !!bool x",
        "a number that is none": "model: !!int x",
        "unhashable": "? {a: b}\n: c",
        "too large a number": "train: {optimizer: {learning_rate: 1" + "0" * 400 + "}}",
        "a list": "- a",
        "bytes": "\x00\x01",
    }
    attempts: list[Attempt] = []
    for number, (name, text) in enumerate(texts.items()):
        file = folder / f"{number}.yaml"
        file.write_text(text)
        attempts.append((f"YAML: {name}", lambda file=file: load_config(file)))
    (folder / "deep.json").write_text("[" * 100_000)
    (folder / "huge.json").write_text('{"names": ["a"], "ignore": 1e999}')
    return [
        *attempts,
        *(
            (f"JSON: {name}", lambda name=name: load_vocabulary(str(folder / name)))
            for name in ("deep.json", "huge.json")
        ),
    ]


def try_archives(folder: Path) -> Figure:
    """Prepare a data set from every archive: refused in one line, and nothing appears outside the
    output folder."""
    archives = folder / "archives"
    archives.mkdir()
    paths = list(evil_archives(archives))
    before = {path for path in folder.rglob("*")}
    attempts: list[Attempt] = []
    for number, path in enumerate(paths):
        source = Source(RECIPE.needs[0][0], path)
        attempts.append(
            (
                path.name,
                lambda source=source, number=number: prepare_dataset(
                    RECIPE,
                    [source],
                    folder / "out" / f"{number}",
                    workers=1,
                    step=lambda a, b: None,
                ),
            )
        )
        attempts.append(
            (
                f"{path.name}, every member",
                lambda path=path: [member.read() for member in list_members(path)] and None,
            )
        )
    # odd or hidden, and inside all the same
    harmless = ("name 5.", "name 7.", "name 8.", "name 9.")
    strict = [
        attempt
        for attempt in attempts
        if not attempt[0].startswith((*harmless, "empty.zip, every"))
    ]
    for name, attempt in attempts:
        if name.startswith(harmless):
            with contextlib.suppress(ValueError):
                attempt()
    figure = refused("archives that want to leave their folder or are bombs", strict)
    out = folder / "out"
    stray = (
        {path for path in folder.rglob("*")} - before - {path for path in [out, *out.rglob("*")]}
    )
    links = [
        path
        for path in out.rglob("*")
        if path.is_symlink() or not (path.is_file() or path.is_dir())
    ]
    found = f"{len(paths)} archives; {figure.found}; {len(stray)} files outside, {len(links)} links"
    return Figure(figure.tried, found, figure.passed and not stray and not links)


def hash_attempts(folder: Path) -> tuple[list[Attempt], int]:
    """OpenAI's archives without a known hash, and files with a wrong one; and how many are accepted
    with the right word."""
    archive = write_openai_archive(folder / "unknown.pt", random_clip(TINY_CLIP), 64)
    known = Path(shutil.copy(archive, folder / "ViT-B-16.pt"))
    plain = folder / "plain.safetensors"
    save_file(
        {name: value.clone() for name, value in random_clip(TINY_CLIP).state_dict().items()}, plain
    )
    digest = file_sha256(archive)
    accepted = sum(
        bool(load_clip(tiny_clip(weights=str(archive), sha256=word)).fingerprint)
        for word in (digest, digest.upper(), "any")
    )
    return [
        ("a TorchScript archive nobody knows", lambda: load_clip(tiny_clip(weights=str(archive)))),
        ("a file named as OpenAI's", lambda: load_clip(tiny_clip(weights=str(known)))),
        ("a wrong hash", lambda: load_clip(tiny_clip(weights=str(archive), sha256="0" * 64))),
        (
            "half of the right hash",
            lambda: load_clip(tiny_clip(weights=str(archive), sha256=digest[:32])),
        ),
        (
            "a wrong hash of safetensors",
            lambda: load_clip(tiny_clip(weights=str(plain), sha256="0" * 64)),
        ),
        (
            "safetensors with one bit flipped, by their right hash",
            lambda: load_clip(tiny_clip(weights=str(flipped(plain)), sha256=file_sha256(plain))),
        ),
    ], accepted


def flipped(path: Path) -> Path:
    """A copy with one bit of its last tensor changed."""
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    copy = path.with_name(f"flipped {path.name}")
    copy.write_bytes(content)
    return copy


def measure(quick: bool) -> Iterator[Figure]:
    """Pickles, claims, archives and hashes."""
    with tempfile.TemporaryDirectory(prefix="trust-strangers-") as name:
        folder, mark = Path(name), Path(name) / "harm"
        for part in ("pickles", "claims", "runs", "hashes", "archives"):
            (folder / part).mkdir()
        checkpoint = save_checkpoint(folder / "model", build_tiny(), full=True)
        assert load_file(checkpoint / "model.safetensors")
        yield refused(
            "pickles in every place where weights are read",
            pickle_attempts(folder / "pickles", mark, checkpoint),
            mark,
        )
        yield refused(
            "small files that claim to be enormous; YAML and JSON",
            claim_attempts(folder / "claims", checkpoint),
            mark,
        )
        attempts, accepted = hash_attempts(folder / "hashes")
        figure = refused("weights with unknown or wrong hashes", attempts)
        yield Figure(
            figure.tried,
            f"{figure.found}; accepted with the right hash or the flag: {accepted} of 3",
            figure.passed and accepted == 3,
        )
        if quick:
            return
        yield refused(
            "states of a run from a stranger, on --resume",
            resume_attempts(folder / "runs", mark),
            mark,
        )
        yield try_archives(folder / "archives")


if __name__ == "__main__":
    raise SystemExit(main(measure))
