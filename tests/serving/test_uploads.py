"""What both servers read from strangers: image files under limits, and typed class names."""

from __future__ import annotations

import dataclasses
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cascade_clip.config import InferenceConfig
from cascade_clip.errors import ImageError, SettingError
from cascade_clip.files import TooLarge, load_image
from cascade_clip.sandbox.scenes import SceneConfig, make_scene
from cascade_clip.serving.uploads import LONGEST_TEXT, open_upload, read_class_names, read_upload

SETTINGS = InferenceConfig(window=128, stride=96)


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def bomb(side: int) -> bytes:
    """A small PNG whose header claims another size."""
    content = bytearray(encode(Image.new("1", (1, 1))))
    content[16:24] = struct.pack(">II", side, side)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


class TestImages:
    def test_content_and_path_give_what_a_person_sees(self, tmp_path: Path) -> None:
        scene = Image.fromarray(make_scene(2, 74, SceneConfig(size=64)).image[:, :48])
        exif = Image.Exif()
        exif[0x0112] = 6  # turn by 90 degrees
        (tmp_path / "turned.png").write_bytes(encode(scene, exif=exif))
        pixels = read_upload(tmp_path / "turned.png", 40_000, SETTINGS)
        assert pixels.shape == (3, 48, 64)
        assert torch.equal(pixels, load_image(tmp_path / "turned.png"))
        content = (tmp_path / "turned.png").read_bytes()
        assert torch.equal(pixels, read_upload(content, 40_000, SETTINGS))

    @pytest.mark.parametrize(
        ("size", "limit", "message"),
        [
            ((201, 200), 40_000, "201 x 200 pixels, more than the limit of 40,000"),
            ((8, 2000), 40_000, "too narrow"),  # 8 pixels become a window of 128
            ((2000, 8), 40_000, "too narrow"),
        ],
    )
    def test_refuses_sizes(self, size: tuple[int, int], limit: int, message: str) -> None:
        with pytest.raises(TooLarge, match=message):
            read_upload(encode(Image.new("L", size)), limit, SETTINGS)

    def test_sizes_at_the_limit_are_read(self) -> None:
        image = encode(Image.new("L", (200, 200)))
        assert read_upload(image, 40_000, SETTINGS).shape == (3, 200, 200)
        narrow = encode(Image.new("L", (8, 2000)))
        as_it_is = dataclasses.replace(SETTINGS, resize=False)
        assert read_upload(narrow, 16_000, as_it_is).shape == (3, 2000, 8)
        # an image smaller than a window grows to one, whatever the limit
        small = encode(Image.new("L", (10, 10)))
        assert read_upload(small, 100, SETTINGS).shape == (3, 10, 10)

    @pytest.mark.parametrize(
        ("side", "message"),
        [(10_000, "10000 x 10000 pixels, more than the limit"), (30_000, "far too many pixels")],
    )
    def test_refuses_before_decoding(
        self, side: int, message: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
        with pytest.raises(TooLarge, match=message):
            read_upload(bomb(side), 40_000, SETTINGS)

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"no image",
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
            b"\x89PNG\r\n\x1a\n",
        ],
    )
    def test_refuses_what_is_no_image(self, content: bytes) -> None:
        with pytest.raises(ImageError, match="not an image") as caught:
            open_upload(content)
        assert "\n" not in str(caught.value)

    def test_a_damaged_header_is_one_line(self) -> None:
        palette = Image.fromarray(np.arange(4096, dtype=np.uint8).reshape(64, 64)).convert("P")
        with pytest.raises(ImageError, match="damaged; save it again"):
            open_upload(encode(palette)[:100])

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
    def test_reads_common_formats(self, kind: str) -> None:
        assert open_upload(encode(Image.new("RGB", (20, 10)), kind)).size == (20, 10)

    def test_reads_no_other_format(self) -> None:
        with pytest.raises(ImageError, match="not an image"):
            open_upload(encode(Image.new("RGB", (20, 10)), "PPM"))


class TestClassNames:
    def test_lines_and_commas_separate_names(self) -> None:
        vocabulary = read_class_names("cat,\nsofa = couch; settee\r\n\ngrass, ", 5)
        assert vocabulary.names == ("cat", "sofa", "grass")
        assert vocabulary.synonyms == (("cat",), ("sofa", "couch", "settee"), ("grass",))

    def test_synonyms_count_if_wanted(self) -> None:
        text = "a = b; c,\nd,"
        assert len(read_class_names(text, 4)) == 2
        with pytest.raises(SettingError, match="4 class names and synonyms are given; 3 at most"):
            read_class_names(text, 3)
        assert len(read_class_names(text, 2, count_synonyms=False)) == 2
        with pytest.raises(SettingError, match="2 class names are given; 1 at most"):
            read_class_names(text, 1, count_synonyms=False)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (" ,\n", "no class names given"),
            ("cat, Cat", "given twice"),
            ("a\x00b", "control characters"),
            ("x" * (LONGEST_TEXT + 1), "10,001 characters"),
            (", ".join(f"n{index}" for index in range(301)), "301 class names are given"),
        ],
    )
    def test_refuses(self, text: str, message: str) -> None:
        with pytest.raises(SettingError, match=message):
            read_class_names(text, 300)
