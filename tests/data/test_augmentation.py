"""Reading odd files, sizes, and the augmentation against hand-computed values and statistics over
many draws."""

from __future__ import annotations

import dataclasses
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from cascade_clip.config import IMAGENET_MEAN, IMAGENET_STD, AugmentConfig
from cascade_clip.data import augmentation
from cascade_clip.data.augmentation import (
    Distortion,
    TrainTransform,
    draw_crop,
    draw_distortion,
    hsv_to_rgb,
    rgb_to_hsv,
)
from cascade_clip.files.image_tensors import is_color_mask, load_color_mask, load_image, load_mask
from cascade_clip.ops.resize import (
    normalise,
    resize_image,
    resize_mask,
    resize_shape,
    short_side_shape,
)

DRAWS = 1000
NO_CHANGE = Distortion(
    brightness=None, contrast=None, contrast_first=False, saturation=None, hue=None
)
PLAIN = AugmentConfig(
    scale=(96, 96), ratio=(1.0, 1.0), crop=96, largest_share=1.0, flip=0.0, photometric=False
)


@pytest.fixture(autouse=True)
def single_thread() -> None:
    """As in a loader's worker; two threads on busy cores wait for each other at every small
    step."""
    torch.set_num_threads(1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def column(color: tuple[int, ...]) -> torch.Tensor:
    return torch.tensor(color, dtype=torch.uint8).view(3, 1, 1)


def color_of(image: torch.Tensor) -> tuple[int, ...]:
    assert image.dtype == torch.uint8
    return tuple(image[:, 0, 0].tolist())


def grey16(value: int) -> Image.Image:
    return Image.fromarray(np.full((4, 6), value, dtype=np.uint16))


def palette(index: int, colors: list[int], **info: Any) -> Image.Image:
    picture = Image.new("P", (6, 4), index)
    picture.putpalette(colors)
    picture.info.update(info)
    return picture


@pytest.mark.parametrize(
    ("picture", "suffix", "expected"),
    [
        (Image.new("RGB", (6, 4), (10, 20, 30)), "png", (10, 20, 30)),  # as it is
        (Image.new("L", (6, 4), 77), "png", (77, 77, 77)),  # grey
        (Image.new("1", (6, 4), 1), "png", (255, 255, 255)),  # one bit: white is white, not 1
        # wholly transparent grey: the white below
        (Image.new("LA", (6, 4), (100, 0)), "png", (255, 255, 255)),
        (Image.new("RGBA", (6, 4), (200, 0, 0, 255)), "png", (200, 0, 0)),  # opaque
        # 40 % black over white
        (Image.new("RGBA", (6, 4), (0, 0, 0, 102)), "png", (153, 153, 153)),
        (grey16(65535), "png", (255, 255, 255)),  # 16-bit white
        (grey16(257 * 100), "png", (100, 100, 100)),  # 16 bits shrink by 257
        (Image.new("I", (6, 4), 257 * 7), "tiff", (7, 7, 7)),  # 16-bit values in a 32-bit file
        (Image.new("F", (6, 4), 0.5), "tiff", (128, 128, 128)),  # floats in 0..1
        (palette(1, [0, 0, 0, 9, 8, 7]), "png", (9, 8, 7)),  # palette: the colour, not the index
        # palette colour that is transparent
        (palette(1, [0, 0, 0, 9, 8, 7], transparency=1), "png", (255, 255, 255)),
        # palette colour that is not
        (palette(0, [5, 6, 7, 9, 8, 7], transparency=1), "gif", (5, 6, 7)),
        # magenta and yellow ink make red
        (Image.new("CMYK", (6, 4), (0, 255, 255, 0)), "tiff", (255, 0, 0)),
    ],
)
def test_every_mode_comes_out_as_seen(
    picture: Image.Image, suffix: str, expected: tuple[int, ...], tmp_path: Path
) -> None:
    picture.save(
        tmp_path / f"a.{suffix}",
        **(
            {"transparency": picture.info["transparency"]} if "transparency" in picture.info else {}
        ),
    )
    image = load_image(tmp_path / f"a.{suffix}")
    assert image.shape == (3, 4, 6)
    assert (image == column(expected)).all(), color_of(image)
    assert color_of(load_image(picture)) == expected  # the same without a file


def test_cmyk_jpeg(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (255, 0, 0, 0)).save(tmp_path / "a.jpg", quality=100)
    red, green, blue = color_of(load_image(tmp_path / "a.jpg"))
    assert red < 6 and green > 249 and blue > 249  # cyan; inverted it would be red


@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_exif_orientations_come_upright(orientation: int, tmp_path: Path) -> None:
    # as seen: red upper left, green upper right, blue lower left
    scene = np.zeros((48, 80, 3), dtype=np.uint8)
    scene[:24, :40], scene[:24, 40:], scene[24:, :40] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    undo = {
        2: "FLIP_LEFT_RIGHT",
        3: "ROTATE_180",
        4: "FLIP_TOP_BOTTOM",
        5: "TRANSPOSE",
        6: "ROTATE_90",
        7: "TRANSVERSE",
        8: "ROTATE_270",
    }
    stored = Image.fromarray(scene)
    if orientation in undo:
        stored = stored.transpose(Image.Transpose[undo[orientation]])
    exif = Image.Exif()
    exif[274] = orientation
    stored.save(tmp_path / "a.jpg", quality=98, subsampling=0, exif=exif)
    image = load_image(tmp_path / "a.jpg")
    assert image.shape == (3, 48, 80)
    assert (image.int() - torch.from_numpy(scene).permute(2, 0, 1).int()).abs().float().mean() < 3


def test_animation_gives_its_first_frame(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (6, 4), (255, 0, 0)), Image.new("RGB", (6, 4), (0, 0, 255))
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    assert color_of(load_image(tmp_path / "a.gif")) == (255, 0, 0)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.full((4, 6, 3), 9, dtype=np.uint8), (9, 9, 9)),
        (np.full((4, 6), 9, dtype=np.uint8), (9, 9, 9)),  # grey
        (np.full((4, 6, 1), 9, dtype=np.uint8), (9, 9, 9)),  # grey with a channel axis
        (np.full((4, 6, 4), 0, dtype=np.uint8), (255, 255, 255)),  # transparent over white
        (np.full((4, 6), True), (255, 255, 255)),
        (np.full((4, 6, 3), 0.2, dtype=np.float32), (51, 51, 51)),
        (np.full((4, 6, 3), 514, dtype=np.uint16), (2, 2, 2)),
        # not contiguous
        (np.full((6, 4, 3), 9, dtype=np.uint8).transpose(1, 0, 2)[:, ::-1], (9, 9, 9)),
    ],
)
def test_arrays(array: np.ndarray, expected: tuple[int, ...]) -> None:
    image = load_image(array)
    assert image.shape == (3, 4, 6)
    assert color_of(image) == expected


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((0, 5, 3), dtype=np.uint8), "no pixels"),
        (np.zeros((5, 0), dtype=np.uint8), "no pixels"),
        (Image.new("RGB", (0, 5)), "no pixels"),
        (np.zeros((3, 8, 8), dtype=np.uint8), r"\(H, W, 3\)"),  # channels first
        (np.zeros((8,), dtype=np.uint8), r"\(H, W, 3\)"),
        (np.zeros((8, 8, 3), dtype=np.int64), "int64"),
        (np.full((8, 8, 3), 128.0), "outside 0..1"),
        (np.full((8, 8, 3), np.nan), "outside 0..1"),
        (Image.new("I", (4, 4), 70000), "16-bit"),
    ],
)
def test_images_that_are_none(source: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_image(source)


def jpeg_bytes() -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize("load", [load_image, load_mask, load_color_mask])
@pytest.mark.parametrize(
    "content", [b"", b"hello", jpeg_bytes()[:600], b"\x89PNG\r\n\x1a\n" + b"\0" * 40]
)
def test_damaged_files_are_named_in_one_line(
    load: Callable[[Path], torch.Tensor], content: bytes, tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.png") as caught:
        load(tmp_path / "bad.png")
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.jpg does not exist"):
        load_image(str(tmp_path / "nothing.jpg"))
    with pytest.raises(ValueError, match="is a folder"):
        load_image(tmp_path)


def test_pillow_limit_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "big.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"big\.png has more pixels than Pillow's safety limit"):
        load_image(tmp_path / "big.png")


@pytest.mark.parametrize(
    ("picture", "value"),
    [
        (Image.new("L", (6, 4), 200), 200),
        (Image.new("1", (6, 4), 1), 1),  # a bit is a label, not a brightness
        (palette(2, [0, 0, 0, 9, 8, 7, 5, 5, 5]), 2),  # the index, not the colour
        (grey16(300), 300),  # more than 255 classes
        (grey16(65535), 65535),
    ],
)
def test_masks_keep_raw_values(picture: Image.Image, value: int, tmp_path: Path) -> None:
    picture.save(tmp_path / "m.png")
    mask = load_mask(tmp_path / "m.png")
    assert mask.shape == (4, 6)
    assert mask.dtype == torch.int32
    assert (mask == value).all()


def packed_png(rows: list[list[int]], bits: int, kind: int) -> bytes:
    """A PNG of so few bits a pixel, written by hand: kind 0 is grey, 3 has a palette."""
    packed = [
        sum(value << bits * place for place, value in enumerate(reversed(row))) for row in rows
    ]
    content = b"".join(b"\0" + line.to_bytes(len(rows[0]) * bits // 8, "big") for line in packed)
    colors = bytes(place % 251 for place in range(3 * 2**bits))
    header = struct.pack(">IIBBBBB", len(rows[0]), len(rows), bits, kind, 0, 0, 0)
    chunks = [
        (b"IHDR", header),
        *([(b"PLTE", colors)] if kind == 3 else []),
        (b"IDAT", zlib.compress(content)),
        (b"IEND", b""),
    ]
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("kind", [0, 3])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_masks_of_few_bits_keep_raw_values(bits: int, kind: int, tmp_path: Path) -> None:
    top = 2**bits - 1
    rows = [[0, 1, top, top - 1, top, 0, 1, 1], [1, 1, 0, 0, top // 2, 0, 0, top]]
    (tmp_path / "m.png").write_bytes(packed_png(rows, bits, kind))
    assert load_mask(tmp_path / "m.png").tolist() == rows


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_coloured_masks_are_refused(mode: str, tmp_path: Path) -> None:
    Image.new(mode, (6, 4)).save(tmp_path / "m.png")
    with pytest.raises(ValueError, match=r"m\.png.*must be index images.*`#rrggbb NAME`"):
        load_mask(tmp_path / "m.png")


@pytest.mark.parametrize(
    ("picture", "code", "colored"),
    [
        (Image.new("RGB", (6, 4), (1, 2, 3)), 0x010203, True),
        (Image.new("RGB", (6, 4), (255, 254, 253)), 0xFFFEFD, True),
        (Image.new("RGBA", (6, 4), (1, 2, 3, 0)), 0x010203, True),  # transparency is left out
        (Image.new("LA", (6, 4), (7, 0)), 0x070707, True),
        # the colour; an index image all the same
        (palette(1, [0, 0, 0, 9, 8, 7]), 0x090807, False),
        (Image.new("L", (6, 4), 7), 0x070707, False),
        (Image.new("1", (6, 4), 1), 0xFFFFFF, False),
    ],
)
def test_colours_of_masks(picture: Image.Image, code: int, colored: bool, tmp_path: Path) -> None:
    picture.save(tmp_path / "m.png")
    mask = load_color_mask(tmp_path / "m.png")
    assert mask.shape == (4, 6) and mask.dtype == torch.int32
    assert (mask == code).all()
    assert is_color_mask(tmp_path / "m.png") is colored


def test_masks_that_hold_no_colours(tmp_path: Path) -> None:
    grey16(300).save(tmp_path / "m.png")
    (tmp_path / "damaged.png").write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"m\.png is a picture of mode I.*convert it to RGB"):
        load_color_mask(tmp_path / "m.png")
    assert not any(
        is_color_mask(tmp_path / name) for name in ("m.png", "damaged.png", "missing.png")
    )


def test_mask_values_beyond_16_bits_are_refused(tmp_path: Path) -> None:
    Image.new("I", (6, 4), -3).save(tmp_path / "m.tiff")
    with pytest.raises(ValueError, match=r"0\.\.65535"):
        load_mask(tmp_path / "m.tiff")


# Sizes


@pytest.mark.parametrize(
    ("size", "scale", "expected"),
    [
        ((480, 640), (2048, 512), (512, 683)),  # the short side decides: 640 * 512 / 480 = 682.67
        ((640, 480), (2048, 512), (683, 512)),  # upright
        ((640, 480), (512, 2048), (683, 512)),  # the order of the scale does not matter
        ((100, 1000), (2048, 512), (205, 2048)),  # the long side decides: 100 * 2.048 = 204.8
        ((375, 500), (1024, 256), (256, 341)),  # 341.33
        ((3, 8), (4, 2), (2, 4)),  # 3 * 0.5 = 1.5 rounds up
        ((1, 4000), (1024, 256), (1, 1024)),  # never empty: 0.256 + 0.5 would be 0
    ],
)
def test_resize_shape(
    size: tuple[int, int], scale: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert resize_shape(*size, scale) == expected


@pytest.mark.parametrize(
    ("size", "short", "expected"),
    [
        ((375, 500), 512, (512, 683)),  # method section 10
        ((200, 1000), 512, (512, 2560)),  # the long side is free
        ((1000, 200), 512, (2560, 512)),
        ((1024, 1365), 512, (512, 683)),  # down as well: 682.5 rounds up
        ((512, 512), 512, (512, 512)),
        ((7, 3), 64, (149, 64)),  # 149.33
    ],
)
def test_test_shape(size: tuple[int, int], short: int, expected: tuple[int, int]) -> None:
    assert short_side_shape(*size, short) == expected


def test_the_short_side_is_exact_for_every_size() -> None:
    assert {min(short_side_shape(short, short + 7, 512)) for short in range(1, 3000)} == {512}


@pytest.mark.parametrize("shape", [(9, 14), (40, 31), (96, 50)])  # far down, down, up
def test_image_resize_is_bilinear_without_antialias(shape: tuple[int, int]) -> None:
    image = torch.randint(0, 256, (3, 60, 44), dtype=torch.uint8, generator=generator())
    expected = interpolate(
        image[None].float(), shape, mode="bilinear", align_corners=False, antialias=False
    )[0]
    torch.testing.assert_close(resize_image(image.float(), shape), expected)
    resized = resize_image(image, shape)
    assert resized.dtype == torch.uint8
    assert (resized.float() - expected).abs().max() < 1.01  # fixed point rounds twice
    photo_order = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)  # as load_image gives it
    assert torch.equal(resize_image(photo_order, shape), resized)


def test_mask_resize_takes_pixels_as_they_are() -> None:
    labels = torch.tensor([[0, -1, 171], [65535, 4, 5]])
    assert resize_mask(labels, (2, 6)).tolist() == [
        [0, 0, -1, -1, 171, 171],
        [65535, 65535, 4, 4, 5, 5],
    ]
    assert resize_mask(labels, (1, 2)).tolist() == [[0, -1]]  # row 0; columns 0 and floor(1.5)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, -123.675 / 58.395),  # darkest red
        (255, (255 - 123.675) / 58.395),
    ],
)
def test_normalise(value: int, expected: float) -> None:
    image = torch.full((3, 2, 5), value, dtype=torch.uint8)
    result = normalise(image, IMAGENET_MEAN, IMAGENET_STD)
    assert result.dtype == torch.float32
    assert result[0].flatten().tolist() == pytest.approx([expected] * 10, rel=1e-5)
    assert (image == value).all()  # the input stays as it was


@pytest.mark.parametrize(
    "image",
    [
        torch.zeros(3, 4, 4),
        torch.zeros(4, 4, 3, dtype=torch.uint8),
        torch.zeros(4, 4, dtype=torch.uint8),
    ],
)
def test_normalise_refuses_other_inputs(image: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="must be uint8"):
        normalise(image, IMAGENET_MEAN, IMAGENET_STD)


# Crops


def halves(height: int, width: int) -> torch.Tensor:
    """Class 0 left, class 1 right."""
    labels = torch.zeros(height, width, dtype=torch.int64)
    labels[:, width // 2 :] = 1
    return labels


def test_crop_offsets_are_uniform_and_reach_both_ends() -> None:
    draws, labels = generator(), halves(13, 20)
    crops = [draw_crop(labels, 10, 1.0, draws) for _ in range(DRAWS)]
    tops, lefts = (
        torch.tensor([crop.top for crop in crops]),
        torch.tensor([crop.left for crop in crops]),
    )
    for offsets, margin in ((tops, 3), (lefts, 10)):
        counts = torch.bincount(offsets, minlength=margin + 1)
        expected = DRAWS / (margin + 1)
        assert len(counts) == margin + 1 and (counts - expected).abs().max() < 5 * expected**0.5
    assert abs(float(torch.corrcoef(torch.stack([tops, lefts]).float())[0, 1])) < 0.12
    assert {(crop.height, crop.width) for crop in crops} == {(10, 10)}


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((6, 30), (6, 10)),  # lower than the crop: all of the height
        ((30, 6), (10, 6)),
        ((4, 5), (4, 5)),  # smaller in both: the whole picture
    ],
)
def test_crops_of_small_pictures(size: tuple[int, int], expected: tuple[int, int]) -> None:
    crop = draw_crop(torch.zeros(size, dtype=torch.int64), 10, 0.75, generator())
    assert (crop.height, crop.width) == expected


@pytest.mark.parametrize(
    ("labels", "share", "expected"),
    [
        ([0, 0, 0, 1], 0.75, False),  # 3 of 4 is not below 0.75
        ([0, 0, 1, 1], 0.75, True),
        ([0, 0, 0, 1], 0.76, True),
        ([0, 0, 0, 0], 0.99, False),  # one class only
        ([0, 0, -1, -1], 0.99, False),  # ignored pixels are no second class
        ([0, 1, -1, -1], 0.6, True),  # 1 of 2 labelled pixels
        ([-1, -1, -1, -1], 0.75, False),  # nothing labelled
    ],
)
def test_share_rule(labels: list[int], share: float, expected: bool) -> None:
    assert augmentation._is_mixed(torch.tensor([labels]), share) is expected


def test_crops_are_drawn_again_while_one_class_fills_them() -> None:
    """A crop of 20 has its left side at 0..40; at 16..24 it holds 6 to 14 columns of class 0, a
    share below 0.75."""
    draws, labels = generator(), halves(20, 60)
    crops = [draw_crop(labels, 20, 0.75, draws) for _ in range(DRAWS)]
    accepted = sum(16 <= crop.left <= 24 for crop in crops) / DRAWS
    expected = 1 - (1 - 9 / 41) ** 10  # the tenth draw stands
    assert accepted == pytest.approx(expected, abs=4 * (expected * (1 - expected) / DRAWS) ** 0.5)


def test_the_tenth_draw_stands() -> None:
    labels = torch.zeros(50, 50, dtype=torch.int64)  # no crop is ever accepted
    draws, again = generator(3), generator(3)
    crop = draw_crop(labels, 10, 0.75, draws)
    offsets = [
        (augmentation._integer(0, 40, again), augmentation._integer(0, 40, again))
        for _ in range(10)
    ]
    assert (crop.top, crop.left) == offsets[-1]
    assert torch.equal(draws.get_state(), again.get_state())


# Colours


@pytest.mark.parametrize(
    ("color", "expected"),
    [  # hue, saturation, value of OpenCV 4.8's 8-bit conversion
        ((255, 0, 0), (0, 255, 255)),  # red
        ((255, 255, 0), (30, 255, 255)),  # yellow: both red and green are largest
        ((0, 255, 0), (60, 255, 255)),  # green
        ((0, 255, 255), (90, 255, 255)),  # cyan
        ((0, 0, 255), (120, 255, 255)),  # blue
        ((255, 0, 255), (150, 255, 255)),  # magenta
        ((255, 0, 1), (0, 255, 255)),  # a hue of -0.1 rounds to 0
        ((255, 0, 9), (179, 255, 255)),  # -1.06 rounds to -1, which is 179
        ((128, 128, 128), (0, 0, 128)),  # grey has no hue
        ((0, 0, 0), (0, 0, 0)),  # black has no saturation
        ((10, 20, 30), (105, 170, 30)),
        # 127.5, but the reciprocal of 200 was rounded down before
        ((200, 150, 100), (15, 127, 200)),
        ((37, 241, 113), (71, 216, 241)),
    ],
)
def test_hsv_equals_opencv(color: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert tuple(int(part) for part in rgb_to_hsv(column(color))) == expected


@pytest.mark.parametrize(
    ("hsv", "expected"),
    # OpenCV 4.8, which drops fractions; where an exact result is a whole number, its own rounding
    # decides
    [
        ((0, 255, 255), (255, 0, 0)),
        ((90, 255, 255), (0, 254, 255)),
        ((15, 255, 255), (255, 127, 0)),
        ((179, 255, 255), (255, 0, 8)),
        ((77, 0, 93), (93, 93, 93)),  # no saturation: grey, whatever the hue
        ((105, 170, 30), (10, 19, 30)),
        ((15, 128, 200), (200, 149, 99)),
    ],
)
def test_rgb_equals_opencv(hsv: tuple[int, ...], expected: tuple[int, ...]) -> None:
    parts = torch.tensor(hsv, dtype=torch.int32).view(3, 1, 1)
    assert color_of(hsv_to_rgb(*parts)) == pytest.approx(expected, abs=1)


def test_fractions_are_dropped_on_the_way_to_rgb() -> None:
    """S = 51 takes a fifth from the lowest channels."""
    value = torch.tensor([[203, 199, 198, 197]], dtype=torch.int32)
    lowest = hsv_to_rgb(torch.zeros_like(value), torch.full_like(value, 51), value)[1]
    assert lowest.tolist() == [[162, 159, 158, 157]]  # 162.4, 159.2, 158.4, 157.6


def test_colours_survive_the_way_to_hsv_and_back() -> None:
    colors = torch.randint(0, 256, (3, 200, 200), dtype=torch.uint8, generator=generator())
    back = hsv_to_rgb(*rgb_to_hsv(colors))
    assert (back.int() - colors.int()).abs().float().mean() < 1.5  # 8-bit hue is coarse
    greys = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    assert torch.equal(hsv_to_rgb(*rgb_to_hsv(greys)), greys)


@pytest.mark.parametrize(
    ("change", "color", "expected"),
    [
        ({}, (10, 20, 30), (10, 20, 30)),  # nothing drawn
        ({"brightness": 20.0}, (10, 100, 250), (30, 120, 255)),  # added to each value, cut at 255
        ({"brightness": -20.0}, (10, 100, 250), (0, 80, 230)),  # cut at 0
        ({"contrast": 0.5}, (10, 101, 250), (5, 50, 125)),  # 50.5 loses its fraction
        ({"contrast": 1.5}, (10, 100, 250), (15, 150, 255)),
        # brightness comes first
        ({"brightness": 10.0, "contrast": 1.5}, (0, 10, 20), (15, 30, 45)),
        # S 127 -> 63: 200 * (1 - 63 / 255) = 150.6
        ({"saturation": 0.5}, (200, 100, 100), (200, 150, 150)),
        ({"saturation": 1.5}, (0, 0, 255), (0, 0, 255)),  # S is full already
        ({"hue": 15}, (255, 0, 0), (255, 127, 0)),
        ({"hue": -15}, (255, 0, 0), (255, 0, 127)),  # modulo 180
        ({"hue": 18}, (90, 90, 90), (90, 90, 90)),  # grey has no hue
    ],
)
@pytest.mark.parametrize("contrast_first", [False, True])
def test_distortions(
    change: dict[str, Any], color: tuple[int, ...], expected: tuple[int, ...], contrast_first: bool
) -> None:
    distort = dataclasses.replace(NO_CHANGE, contrast_first=contrast_first, **change)
    image = column(color)
    assert color_of(distort(image)) == expected
    assert color_of(image) == color


def test_contrast_comes_before_or_after_the_colours() -> None:
    """(200, 100, 100) has S 127. First: 1.5 cuts it to (255, 150, 150), S 105 -> 52. After: S 127
    -> 63, (200, 150, 150), then 1.5."""
    distort = dataclasses.replace(NO_CHANGE, contrast=1.5, saturation=0.5)
    first = dataclasses.replace(distort, contrast_first=True)
    assert color_of(first(column((200, 100, 100)))) == (255, 203, 203)
    assert color_of(distort(column((200, 100, 100)))) == (255, 225, 225)


def is_uniform(values: list[float], low: float, high: float) -> bool:
    """Kolmogorov-Smirnov at about 1 in 1,000."""
    ordered = torch.tensor(values, dtype=torch.float64).sort().values
    assert low <= float(ordered[0]) and float(ordered[-1]) <= high
    steps = torch.arange(1, len(ordered) + 1) / len(ordered)
    return bool(((ordered - low) / (high - low) - steps).abs().max() < 1.95 / len(ordered) ** 0.5)


def test_distortions_are_drawn_as_published() -> None:
    draws = generator()
    drawn = [draw_distortion(draws) for _ in range(DRAWS)]
    for name, low, high in (
        ("brightness", -32, 32),
        ("contrast", 0.5, 1.5),
        ("saturation", 0.5, 1.5),
    ):
        values = [value for item in drawn if (value := getattr(item, name)) is not None]
        assert len(values) == pytest.approx(DRAWS / 2, abs=65)  # 4 deviations
        assert is_uniform(values, low, high)
    hues = [item.hue for item in drawn if item.hue is not None]
    assert len(hues) == pytest.approx(DRAWS / 2, abs=65)
    assert set(hues) == set(range(-18, 19))  # integers, both ends
    assert sum(item.contrast_first for item in drawn) == pytest.approx(DRAWS / 2, abs=65)
    both = sum(item.brightness is not None and item.hue is not None for item in drawn)
    assert both == pytest.approx(DRAWS / 4, abs=55)  # independent coins


# The whole transform


def ramp(height: int, width: int) -> torch.Tensor:
    """Row in the red channel, column in the green one."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[0], image[1] = torch.arange(height)[:, None], torch.arange(width)
    return image


UNIT = ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))
"""Normalising that gives the 8-bit values back."""


def test_image_and_mask_stay_aligned() -> None:
    """Red is the row and green the column of the source; the label names both, so every pixel can
    be checked."""
    image = ramp(200, 240)
    labels = torch.arange(200)[:, None] * 240 + torch.arange(240)  # (H, W)
    config = AugmentConfig(
        scale=(240, 200), ratio=(0.5, 2.0), crop=128, largest_share=1.0, photometric=False
    )
    transform, draws = TrainTransform(config, *UNIT), generator(1)
    lefts_to_right = 0
    for _ in range(40):
        pixels, mask = transform(image, labels, draws)
        rows, columns, inside = mask // 240, mask % 240, mask >= 0
        # Nearest takes pixel floor(x * s), bilinear the point (x + 0.5) * s - 0.5; with s in 0.5..2
        # they are at most 1 apart.
        assert (pixels[0] - rows)[inside].abs().max() <= 1.01
        assert (pixels[1] - columns)[inside].abs().max() <= 1.01
        lefts_to_right += bool(columns[0, 0] < columns[0, 50])
    assert 8 < lefts_to_right < 32  # both ways came up


def test_flip_has_its_probability() -> None:
    image, labels = ramp(8, 16), halves(8, 16)
    for probability, expected, tolerance in ((0.5, 0.5, 0.064), (0.0, 0.0, 0.0), (1.0, 1.0, 0.0)):
        transform = TrainTransform(
            dataclasses.replace(PLAIN, scale=(16, 8), crop=16, flip=probability), *UNIT
        )
        draws = generator()
        results = [transform(image, labels, draws) for _ in range(DRAWS)]
        flipped = [int(mask[0, 0]) == 1 for _, mask in results]
        assert sum(flipped) / DRAWS == pytest.approx(expected, abs=tolerance)
        assert all(
            (float(pixels[1, 0, 0]) == 15) is turned
            for (pixels, _), turned in zip(results, flipped, strict=True)
        )


def test_ratio_is_uniform() -> None:
    """A 100 x 100 picture in a crop of 200: the padding shows the ratio."""
    transform = TrainTransform(
        dataclasses.replace(PLAIN, scale=(1000, 100), ratio=(0.5, 2.0), crop=200), *UNIT
    )
    draws, labels = generator(), torch.zeros(100, 100, dtype=torch.int64)
    image = torch.zeros(3, 100, 100, dtype=torch.uint8)
    sides = [int((transform(image, labels, draws)[1][0] == 0).sum()) for _ in range(DRAWS)]
    assert is_uniform([(side + 0.5) / 100 for side in sides], 0.49, 2.01)
    assert min(sides) <= 52 and max(sides) >= 197


def test_padding_lies_right_and_below_after_normalising() -> None:
    transform = TrainTransform(
        dataclasses.replace(PLAIN, scale=(40, 30)), IMAGENET_MEAN, IMAGENET_STD
    )
    pixels, mask = transform(
        torch.zeros(3, 30, 40, dtype=torch.uint8), torch.full((30, 40), 7), generator()
    )
    assert pixels.shape == (3, 96, 96) and mask.shape == (96, 96)
    assert pixels.dtype == torch.float32 and mask.dtype == torch.int64
    inside = torch.zeros(96, 96, dtype=torch.bool)
    inside[:30, :40] = True
    assert torch.equal(mask, torch.where(inside, 7, -1))
    assert (pixels[:, ~inside] == 0).all()  # 0 after normalising: the mean colour, not black
    assert pixels[0, 0, 0] == pytest.approx(-123.675 / 58.395, rel=1e-5)


def test_everything_is_drawn_from_the_generator() -> None:
    image = torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8, generator=generator())
    labels = torch.randint(-1, 5, (70, 90), generator=generator())
    transform = TrainTransform(AugmentConfig(scale=(256, 64), crop=64), IMAGENET_MEAN, IMAGENET_STD)
    before = torch.get_rng_state(), image.clone(), labels.clone()
    results = []
    for seed in (5, 5, 6):
        torch.manual_seed(len(results))
        np.random.seed(len(results))
        results.append(transform(image, labels, generator(seed)))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert not torch.equal(results[0][0], results[2][0])
    # the inputs stay as they were
    assert torch.equal(image, before[1]) and torch.equal(labels, before[2])
    torch.set_rng_state(before[0])
    transform(image, labels, generator())
    assert torch.equal(torch.get_rng_state(), before[0])  # the global generator was not touched
    assert type(results[0][0]) is torch.Tensor and type(results[0][1]) is torch.Tensor


def test_pictures_shrink_without_antialias() -> None:
    image = torch.randint(0, 256, (3, 60, 80), dtype=torch.uint8, generator=generator())
    pixels, _ = TrainTransform(dataclasses.replace(PLAIN, scale=(20, 15), crop=20), *UNIT)(
        image, halves(60, 80), generator()
    )
    torch.testing.assert_close(pixels[:, :15], resize_image(image, (15, 20)).float())


def test_photometric_acts_before_normalising_and_not_on_labels() -> None:
    config = dataclasses.replace(PLAIN, photometric=True, scale=(32, 32), crop=32)
    transform, draws = TrainTransform(config, *UNIT), generator()
    image, labels = torch.full((3, 32, 32), 100, dtype=torch.uint8), halves(32, 32)
    values = []
    for _ in range(200):
        pixels, mask = transform(image, labels, draws)
        assert torch.equal(mask, labels)
        values.append(float(pixels[0, 0, 0]))
    assert all(value == pytest.approx(round(value), abs=1e-3) for value in values)  # 8-bit values
    assert min(values) < 60 and max(values) > 140


def test_transform_refuses_sizes_that_differ() -> None:
    with pytest.raises(ValueError, match="one size"):
        TrainTransform(PLAIN, *UNIT)(ramp(8, 8), halves(8, 9), generator())
