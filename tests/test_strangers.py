"""What files from elsewhere claim is compared with what they hold; what a picture may be; nothing that old formats carry is executed."""

from __future__ import annotations

import gzip
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from cascade_clip import picture_files
from cascade_clip.checkpoint import load_checkpoint, save_checkpoint
from cascade_clip.datasets.archives import LARGEST_MEMBER, list_members
from cascade_clip.picture_files import is_large, open_picture
from cascade_clip.plain_values import read_yaml
from cascade_clip.predictor import load_predictor
from cascade_clip.text import load_embeddings
from cascade_clip.transforms import load_image
from cascade_clip.vocabulary import Vocabulary, build_palette
from cascade_clip.weight_files import read_pickle
from conftest import build_tiny


def test_tensors_that_claim_more_than_is_stored(tmp_path: Path) -> None:
    torch.save([{"a": (torch.zeros(1).expand(1 << 40),)}], tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"claims shape \(1099511627776,\) and stores 4 bytes"):
        read_pickle(tmp_path / "a.pth")
    torch.save({"a": torch.zeros(4, 6).t(), "b": 3}, tmp_path / "b.pth")  # strides are no claim
    assert read_pickle(tmp_path / "b.pth")["a"].shape == (6, 4)


def test_zips_that_unpack_to_more_than_they_are(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as old, zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    assert read_pickle(tmp_path / "a.pth")["a"].shape == (1000,)
    with pytest.raises(ValueError, match="PyTorch writes none of that kind"):
        read_pickle(tmp_path / "b.pth")


def test_tar_archives_are_never_opened(tmp_path: Path) -> None:
    """PyTorch before 2.6 executes what is in them, whatever `weights_only` says."""
    (tmp_path / "pickle").write_bytes(b"")
    with tarfile.open(tmp_path / "a.pth", "w") as archive:
        archive.add(tmp_path / "pickle", "pickle")
    with pytest.raises(ValueError, match="a tar archive of an old PyTorch"):
        read_pickle(tmp_path / "a.pth")


CLAIMS: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda model: model["prompts"].update(tokens=4096), r"\(12, 3, 64\) for \(12, 4096, 64\)"),
    (lambda model: model["decoder"].update(feedforward=65_536), r"\(128, 32\) for \(65536, 32\)"),
    (lambda model: model["clip"]["architecture"].update(embed_dim=200_000), "does not fit its settings"),
    (lambda model: model["clip"]["architecture"]["vision_cfg"].update(layers=10**9), "layers 1e.09; no CLIP is so large"),
    (lambda model: model["clip"]["architecture"]["text_cfg"].update(width=100_000), "a text tower of .* numbers; no CLIP is so large"),
    (lambda model: model.update(position_grid=[10**6, 1]), r"position_grid must lie in 1\.\.512"),
]


@pytest.mark.parametrize(("change", "message"), CLAIMS)
def test_models_that_claim_more_than_they_hold(
    change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are refused before memory is taken for them: nothing of that size is built but without values."""
    folder = save_checkpoint(tmp_path / "model", build_tiny(), full=True)
    values = yaml.safe_load((folder / "config.yaml").read_text())
    change(values["model"])
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.setattr("cascade_clip.checkpoint.build_text_encoder", None)  # the first that is done with a real CLIP
    with pytest.raises(ValueError, match=message) as found:
        load_checkpoint(folder)
    assert "\n" not in str(found.value)


LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 8))
"""Ten million values in 400 characters."""


@pytest.mark.parametrize(
    "text",
    ["a: &a {b: *a}", "!!timestamp x", "a: !!bool x", "[" * 20_000, "? {a: b}\n: c", "# " + "x" * 2_000_000, LAUGHS],
    ids=range(7),
)
def test_settings_that_never_end_or_break_the_reader(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"a\.yaml is") as found:
        read_yaml(tmp_path / "a.yaml")
    assert "\n" not in str(found.value) and len(str(found.value)) < 500


def test_arrays_that_claim_more_than_they_hold(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 3), np.float32))
    content = (tmp_path / "a.npy").read_bytes()
    assert load_embeddings(tmp_path / "a.npy", 2, 3).shape == (2, 3)
    (tmp_path / "a.npy").write_bytes(content.replace(b"(2, 3)", b"(9, 3)"))
    with pytest.raises(ValueError, match="mmap length is greater than file size"):
        load_embeddings(tmp_path / "a.npy", 9, 3)


def test_large_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    monkeypatch.setattr(picture_files, "LARGEST_PICTURE", 799)
    with pytest.raises(ValueError, match=r"a\.png cannot be read \(it has 40 x 20 pixels and the limit is 799; .*CASCADE_CLIP_MAX_PIXELS"):
        load_image(tmp_path / "a.png")
    monkeypatch.setenv("CASCADE_CLIP_MAX_PIXELS", "800")
    assert load_image(tmp_path / "a.png").shape == (3, 20, 40)
    assert is_large(tmp_path / "a.png") and not is_large(tmp_path / "nothing.png")
    monkeypatch.setattr(picture_files, "LARGEST_PICTURE", 3200)
    assert not is_large(tmp_path / "a.png")


def test_pictures_that_start_programs_are_not_read(tmp_path: Path) -> None:
    """Pillow hands EPS to Ghostscript."""
    Image.new("RGB", (40, 20)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match=r"a\.jpg is not a picture that Pillow can read"):
        load_image(tmp_path / "a.jpg")
    Image.new("RGB", (40, 20)).save(tmp_path / "b.bmp")
    assert open_picture(tmp_path / "b.bmp").format == "BMP"


def test_narrow_pictures() -> None:
    """Resizing 8 x 801 to the window would make a million pixels of it."""
    predictor = load_predictor("mini", device="cpu")
    assert predictor.segment(np.zeros((8, 800, 3), np.uint8), "sky, sand").labels.shape == (8, 800)
    with pytest.raises(ValueError, match="801 x 8 pixels is narrower than 1 : 100"):
        predictor.segment(np.zeros((8, 801, 3), np.uint8), "sky, sand")


def test_half_characters_are_no_name() -> None:
    """JSON can hold them, files and other JSON cannot."""
    name = json.loads('"\\ud800"')
    with pytest.raises(ValueError, match="halves of characters"):
        Vocabulary((name,), ((name,),), build_palette(1))


def test_headers_of_tar_archives_are_bounded(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, LARGEST_MEMBER + 1
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(info.tobuf() + bytes(4096)))
    with pytest.raises(ValueError, match="a part of 268,435,968 bytes") as found:
        list(list_members(tmp_path / "a.tar.gz"))
    assert "\n" not in str(found.value)
