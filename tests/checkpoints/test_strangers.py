"""What files from elsewhere claim is compared with what they hold; what a picture may be; nothing
that old formats carry is executed."""

from __future__ import annotations

import dataclasses
import gzip
import json
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from cascade_clip.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from cascade_clip.config import InferenceConfig
from cascade_clip.config.serialization import read_yaml
from cascade_clip.data.prepare.archives import LARGEST_MEMBER, list_members
from cascade_clip.encoders.text import load_embeddings
from cascade_clip.files import images as picture_files
from cascade_clip.files import torch_files as weight_files
from cascade_clip.files.image_tensors import is_color_mask, load_color_mask, load_image, load_mask
from cascade_clip.files.images import TooLarge, is_large, open_picture
from cascade_clip.files.torch_files import read_pickle
from cascade_clip.inference.loading import load_predictor
from cascade_clip.results.segmentation import Segmentation
from cascade_clip.vocabulary import Vocabulary, build_palette
from tiny_models import build_tiny


def test_tensors_that_claim_more_than_is_stored(tmp_path: Path) -> None:
    torch.save([{"a": (torch.zeros(1).expand(1 << 40),)}], tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"claims shape \(1099511627776,\) and stores 4 bytes"):
        read_pickle(tmp_path / "a.pth")
    torch.save({"a": torch.zeros(4, 6).t(), "b": 3}, tmp_path / "b.pth")  # strides are no claim
    assert read_pickle(tmp_path / "b.pth")["a"].shape == (6, 4)


def test_tensors_that_repeat_what_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`expand` is no claim either, as long as it does not grow without measure."""
    monkeypatch.setattr(weight_files, "MOST_REPEATED", 12)
    torch.save(torch.tensor([[1.0], [2.0], [3.0]]).expand(3, 4), tmp_path / "a.pth")
    assert read_pickle(tmp_path / "a.pth").tolist() == [[1.0] * 4, [2.0] * 4, [3.0] * 4]
    torch.save(torch.zeros(3, 1).expand(3, 5), tmp_path / "b.pth")
    with pytest.raises(ValueError, match=r"claims shape \(3, 5\) and stores 12 bytes"):
        read_pickle(tmp_path / "b.pth")
    torch.save(
        [torch.zeros(13), torch.zeros(0, 5).expand(0, 5), torch.tensor(1.0)], tmp_path / "c.pth"
    )
    assert [item.numel() for item in read_pickle(tmp_path / "c.pth")] == [13, 0, 1]


def test_tensors_that_reach_beyond_what_is_stored() -> None:
    tensor = torch.zeros(8)[2:].as_strided((2, 3), (2, 1), 3)  # values 3..7
    weight_files._check_tensor(tensor)
    tensor.untyped_storage().resize_(7 * 4)
    with pytest.raises(ValueError, match=r"claims shape \(2, 3\) and stores 28 bytes"):
        weight_files._check_tensor(tensor)


def test_zips_that_unpack_to_more_than_they_are(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as old,
        zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
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
    (
        lambda model: model["clip"]["architecture"].update(embed_dim=200_000),
        "does not fit its settings",
    ),
    (
        lambda model: model["clip"]["architecture"]["vision_cfg"].update(layers=10**9),
        "layers 1e.09; no CLIP is so large",
    ),
    (
        lambda model: model["clip"]["architecture"]["text_cfg"].update(width=100_000),
        "a text tower of .* numbers; no CLIP is so large",
    ),
    (lambda model: model.update(position_grid=[10**6, 1]), r"position_grid must lie in 1\.\.512"),
]


@pytest.mark.parametrize(("change", "message"), CLAIMS)
def test_models_that_claim_more_than_they_hold(
    change: Callable[[dict[str, Any]], object],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are refused before memory is taken for them: nothing of that size is built but without
    values."""
    folder = save_checkpoint(tmp_path / "model", build_tiny(), full=True)
    values = yaml.safe_load((folder / "config.yaml").read_text())
    change(values["model"])
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    # the first that is done with a real CLIP
    monkeypatch.setattr("cascade_clip.checkpoints.checkpoint.build_text_encoder", None)
    with pytest.raises(ValueError, match=message) as found:
        load_checkpoint(folder)
    assert "\n" not in str(found.value)


def test_a_text_tower_of_another_length_is_refused(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "model", build_tiny(), full=True)
    values = yaml.safe_load((folder / "config.yaml").read_text())
    values["model"]["clip"]["architecture"]["text_cfg"]["context_length"] = 7
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(
        ValueError,
        match=r"text tower does not fit its settings: .*other shapes \['positional_embedding",
    ):
        load_checkpoint(folder)


LAUGHS = "a0: &a0 [x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 8)
)
"""Ten million values in 400 characters."""


@pytest.mark.parametrize(
    "text",
    [
        "a: &a {b: *a}",
        "!!timestamp x",
        "a: !!bool x",
        "[" * 20_000,
        "? {a: b}\n: c",
        "# " + "x" * 2_000_000,
        LAUGHS,
    ],
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
    with pytest.raises(
        ValueError,
        match=r"^image .*a\.png has 40 x 20 pixels and the limit is 799; .*CASCADE_CLIP_MAX_PIXELS",
    ) as found:
        load_image(tmp_path / "a.png")
    assert isinstance(found.value, TooLarge) and "damaged" not in str(found.value)
    monkeypatch.setenv("CASCADE_CLIP_MAX_PIXELS", "800")
    assert load_image(tmp_path / "a.png").shape == (3, 20, 40)
    assert is_large(tmp_path / "a.png") and not is_large(tmp_path / "nothing.png")
    monkeypatch.setattr(picture_files, "LARGEST_PICTURE", 1600)
    assert not is_large(tmp_path / "a.png")


def test_photos_of_ordinary_cameras_are_not_large(tmp_path: Path) -> None:
    for size, large in (((4032, 3024), False), ((6000, 4000), True)):
        Image.new("1", size).save(tmp_path / "a.png")
        assert is_large(tmp_path / "a.png") is large


def test_masks_have_a_limit_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (picture_files.LARGEST_PICTURE, picture_files.LARGEST_MASK) == (36_000_000, 100_000_000)
    monkeypatch.setattr(picture_files, "LARGEST_PICTURE", 10)
    monkeypatch.setattr(picture_files, "LARGEST_MASK", 800)
    Image.new("L", (40, 20), 3).save(tmp_path / "a.png")
    Image.new("RGB", (40, 20)).save(tmp_path / "b.png")
    Segmentation(np.full((20, 40), 1), ("a", "b"), ((0, 0, 0), (9, 9, 9))).save(
        tmp_path, "c", outputs=("index",)
    )
    loads = [
        lambda: load_mask(tmp_path / "a.png"),
        lambda: load_color_mask(tmp_path / "b.png"),
        lambda: Segmentation.load(tmp_path / "c.json"),
    ]
    assert (
        int(loads[0]().sum()) == 2400
        and loads[1]().shape == (20, 40)
        and loads[2]().labels.sum() == 800
    )
    assert is_color_mask(tmp_path / "b.png")
    monkeypatch.setattr(picture_files, "LARGEST_MASK", 799)
    for load in loads:
        with pytest.raises(TooLarge, match=r"\.png has 40 x 20 pixels and the limit is 799"):
            load()
    monkeypatch.setenv("CASCADE_CLIP_MAX_PIXELS", "800")
    assert loads[0]().shape == (20, 40)


@pytest.mark.parametrize("value", ["100M", "0", "-5", "1e8", "9" * 30])
def test_a_limit_that_is_no_number(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("L", (4, 2)).save(tmp_path / "a.png")
    monkeypatch.setenv("CASCADE_CLIP_MAX_PIXELS", value)
    for load in (load_image, load_mask):
        with pytest.raises(
            ValueError,
            match=(
                r"^the environment variable CASCADE_CLIP_MAX_PIXELS must be a whole number .* got"
                rf" '{value}'$"
            ),
        ):
            load(tmp_path / "a.png")


def test_a_limit_beyond_that_of_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(
        TooLarge,
        match=(
            r"a\.png has more pixels than Pillow's safety limit .*set the environment variable"
            r" CASCADE_CLIP_MAX"
        ),
    ):
        load_image(tmp_path / "a.png")
    monkeypatch.setenv("CASCADE_CLIP_MAX_PIXELS", "800")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_image(tmp_path / "a.png").shape == (3, 20, 40)
    monkeypatch.setenv("CASCADE_CLIP_MAX_PIXELS", "50")
    with pytest.raises(TooLarge, match="the limit is 50;"):
        load_image(tmp_path / "a.png")
    assert Image.MAX_IMAGE_PIXELS == 800  # of another thread, perhaps


def test_pictures_that_start_programs_are_not_read(tmp_path: Path) -> None:
    """Pillow hands EPS to Ghostscript."""
    Image.new("RGB", (40, 20)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    with pytest.raises(
        ValueError,
        match=r"a\.jpg is of the kind EPS, which is not read here; convert it to PNG or JPEG",
    ):
        load_image(tmp_path / "a.jpg")
    (tmp_path / "c.psd").write_bytes(b"8BPS\0\1" + bytes(20))
    with pytest.raises(ValueError, match=r"c\.psd is of the kind PSD, which is not read here"):
        load_image(tmp_path / "c.psd")
    (tmp_path / "d.png").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"d\.png is not a picture that Pillow can read: damaged"):
        load_image(tmp_path / "d.png")
    Image.new("RGB", (40, 20)).save(tmp_path / "b.bmp")
    assert open_picture(tmp_path / "b.bmp").format == "BMP"


def test_narrow_pictures() -> None:
    """Resizing 8 x 801 to the window would make a million pixels of it."""
    predictor = load_predictor("mini-last", device="cpu")  # the cheapest
    assert predictor.segment(np.zeros((8, 800, 3), np.uint8), "sky, sand").labels.shape == (8, 800)
    with pytest.raises(ValueError, match="801 x 8 pixels is narrower than 1 : 100"):
        predictor.segment(np.zeros((8, 801, 3), np.uint8), "sky, sand")
    predictor.settings = dataclasses.replace(predictor.settings, resize=False)
    assert predictor.segment(np.zeros((8, 801, 3), np.uint8), "sky, sand").labels.shape == (8, 801)


def test_large_windows_are_ordinary() -> None:
    assert InferenceConfig(window=8192, score_size=16_384, scales=(2.0,)).window == 8192
    with pytest.raises(ValueError, match=r"must lie in 0\.\.16384"):
        InferenceConfig(window=16_385)


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
