"""Damaged and odd picture files, the same ones every time."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps, features

SIDE = (40, 56)
"""Height and width of the ordinary pictures, which damage is done to."""


@dataclass(frozen=True)
class Case:
    """One file."""

    name: str
    content: bytes
    shape: tuple[int, int] | None = None
    """Height and width that must come out; None: a right result or an error, as it happens."""
    fails: bool = False
    """Whether there must be an error."""
    corner: tuple[int, int, int] | None = None
    """Colour of the upper left pixel, to within 12, that must come out."""


def scene(height: int = SIDE[0], width: int = SIDE[1]) -> Image.Image:
    """Red upper left, green upper right, blue lower left, and noise that does not compress."""
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    third = height // 3
    (
        values[:third, : width // 2],
        values[:third, width // 2 :],
        values[2 * third :, : width // 2],
    ) = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
    return Image.fromarray(values)


def encode(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of a picture file."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def png(
    width: int, height: int, data: bytes, bits: int = 8, kind: int = 0, extra: bytes = b""
) -> bytes:
    """A PNG with any header; `data` is what its pixels decompress to."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + name
            + content
            + struct.pack(">I", zlib.crc32(name + content))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + extra
        + chunk(b"IDAT", zlib.compress(data, 9))
        + chunk(b"IEND", b"")
    )


def ordinary() -> dict[str, bytes]:
    """One whole file of every kind that is read here."""
    picture, grey = scene(), ImageOps.grayscale(scene())
    found = {
        "jpeg": encode(picture, "JPEG", quality=90),
        "progressive.jpeg": encode(picture, "JPEG", quality=90, progressive=True),
        "png": encode(picture, "PNG"),
        "palette.png": encode(picture.quantize(16), "PNG"),
        "gif": encode(picture.quantize(64), "GIF"),
        "bmp": encode(picture, "BMP"),
        "tiff": encode(picture, "TIFF"),
        "lzw.tiff": encode(picture, "TIFF", compression="tiff_lzw"),
        "jpeg.tiff": encode(picture, "TIFF", compression="jpeg"),
        "ico": encode(picture, "ICO", sizes=[(SIDE[1], SIDE[0])]),
        "ppm": encode(picture, "PPM"),
        "tga": encode(picture, "TGA"),
        "pcx": encode(grey, "PCX"),
        "sgi": encode(picture, "SGI"),
        "jp2": encode(picture, "JPEG2000") if features.check("jpg_2000") else b"",
        "webp": encode(picture, "WEBP") if features.check("webp") else b"",
        "lossless.webp": encode(picture, "WEBP", lossless=True) if features.check("webp") else b"",
        "avif": encode(picture, "AVIF") if features.check("avif") else b"",
    }
    return {name: content for name, content in found.items() if content}


def damaged(generator: np.random.Generator) -> Iterator[Case]:
    """Every kind cut off, with flipped bits, with a run of zeros, and with another beginning."""
    for kind, content in ordinary().items():
        yield Case(
            f"whole.{kind}", content, SIDE, corner=(76, 76, 76) if kind == "pcx" else (255, 0, 0)
        )
        for share in (0.0, 0.02, 0.1, 0.3, 0.6, 0.9, 0.99):
            yield Case(f"cut at {share:.0%}.{kind}", content[: int(len(content) * share)])
        for number in range(8):
            changed = bytearray(content)
            # every other time in the header
            top = len(content) if number % 2 else min(len(content), 200)
            for place in generator.integers(0, top, 1 + number):
                changed[place] ^= 1 << int(generator.integers(8))
            yield Case(f"{1 + number} bits flipped.{kind}", bytes(changed))
        start = int(generator.integers(8, len(content) // 2))
        yield Case(f"zeros inside.{kind}", content[:start] + bytes(64) + content[start + 64 :])
        yield Case(f"doubled.{kind}", content + content, None if kind == "jp2" else SIDE)
        yield Case(f"noise behind.{kind}", content[:60] + generator.bytes(600))


def odd_modes() -> Iterator[Case]:
    """Kinds of pixels, each with the colour that a person sees."""
    size = (SIDE[1], SIDE[0])
    ramp = np.full(SIDE, 257 * 100, np.uint16)
    yield Case("16 bit.png", encode(Image.fromarray(ramp), "PNG"), SIDE, corner=(100, 100, 100))
    yield Case("16 bit.tiff", encode(Image.fromarray(ramp), "TIFF"), SIDE, corner=(100, 100, 100))
    yield Case(
        "16 bit colour.png",
        png(56, 40, (b"\0" + b"\x64\x64\0\0\xff\xff" * 56) * 40, bits=16, kind=2),
        SIDE,
        corner=(100, 0, 255),
    )
    yield Case(
        "float.tiff",
        encode(Image.fromarray(np.full(SIDE, 0.5, np.float32)), "TIFF"),
        SIDE,
        corner=(128, 128, 128),
    )
    yield Case(
        "float beyond 1.tiff",
        encode(Image.fromarray(np.full(SIDE, 300.0, np.float32)), "TIFF"),
        fails=True,
    )
    yield Case(
        "nan.tiff", encode(Image.fromarray(np.full(SIDE, np.nan, np.float32)), "TIFF"), fails=True
    )
    yield Case(
        "32 bit.tiff",
        encode(Image.fromarray(np.full(SIDE, 257 * 7, np.int32)), "TIFF"),
        SIDE,
        corner=(7, 7, 7),
    )
    yield Case(
        "negative.tiff", encode(Image.fromarray(np.full(SIDE, -5, np.int32)), "TIFF"), fails=True
    )
    yield Case(
        "cmyk.jpeg",
        encode(Image.new("CMYK", size, (255, 0, 0, 0)), "JPEG", quality=100),
        SIDE,
        corner=(0, 255, 255),
    )
    yield Case(
        "cmyk.tiff",
        encode(Image.new("CMYK", size, (0, 255, 255, 0)), "TIFF"),
        SIDE,
        corner=(255, 0, 0),
    )
    yield Case("lab.tiff", encode(Image.new("LAB", size, (255, 128, 128)), "TIFF"))
    yield Case("one bit.png", encode(Image.new("1", size, 1), "PNG"), SIDE, corner=(255, 255, 255))
    yield Case(
        "one bit fax.tiff",
        encode(Image.new("1", size, 1), "TIFF", compression="group4"),
        SIDE,
        corner=(255, 255, 255),
    )
    yield Case(
        "grey with alpha.png",
        encode(Image.new("LA", size, (100, 0)), "PNG"),
        SIDE,
        corner=(255, 255, 255),
    )
    yield Case(
        "colour with alpha.png",
        encode(Image.new("RGBA", size, (0, 0, 0, 102)), "PNG"),
        SIDE,
        corner=(153, 153, 153),
    )
    palette = Image.new("P", size, 1)
    palette.putpalette([0, 0, 0, 9, 8, 7])
    yield Case("palette.png", encode(palette, "PNG"), SIDE, corner=(9, 8, 7))
    yield Case(
        "palette with alpha.png",
        encode(palette, "PNG", transparency=1),
        SIDE,
        corner=(255, 255, 255),
    )
    yield Case(
        "alphas of a palette.png",
        encode(palette, "PNG", transparency=b"\xff\x00"),
        SIDE,
        corner=(255, 255, 255),
    )
    first, second = Image.new("RGB", size, (255, 0, 0)), Image.new("RGB", size, (0, 0, 255))
    for kind in ("GIF", "WEBP", "PNG", "TIFF", "AVIF"):
        if kind != "AVIF" or features.check("avif"):
            yield Case(
                f"animation.{kind.lower()}",
                encode(first, kind, save_all=True, append_images=[second]),
                SIDE,
                corner=(255, 0, 0),
            )
    yield Case(
        "transparent.gif", encode(palette, "GIF", transparency=1), SIDE, corner=(255, 255, 255)
    )
    for orientation, name in enumerate(
        (
            "",
            "FLIP_LEFT_RIGHT",
            "ROTATE_180",
            "FLIP_TOP_BOTTOM",
            "TRANSPOSE",
            "ROTATE_90",
            "TRANSVERSE",
            "ROTATE_270",
        ),
        start=1,
    ):
        stored = scene().transpose(Image.Transpose[name]) if name else scene()
        exif = Image.Exif()
        exif[274] = orientation
        for kind in ("jpeg", "png", "webp", "tiff"):
            yield Case(
                f"exif {orientation}.{kind}",
                encode(stored, kind, exif=exif),
                SIDE,
                corner=(255, 0, 0),
            )
    exif = Image.Exif()
    exif[274] = 99
    yield Case("exif 99.jpeg", encode(scene(), "JPEG", exif=exif), SIDE)
    yield Case(
        "exif noise.jpeg", encode(scene(), "JPEG", exif=b"Exif\0\0" + b"II*\0" + b"\xff" * 90)
    )


def odd_sizes() -> Iterator[Case]:
    """Sides from none to very many."""
    for height, width in (
        (1, 1),
        (1, 20_000),
        (20_000, 1),
        (7, 7),
        (8, 801),
        (16, 20_000),
        (65_000, 1),
    ):
        yield Case(
            f"{height} x {width}.png", encode(Image.new("RGB", (width, height)), "PNG"), fails=True
        )
    for height, width in ((8, 8), (8, 800), (9, 13), (1000, 11), (256, 300), (2000, 30)):
        yield Case(f"{height} x {width}.png", encode(scene(height, width), "PNG"), (height, width))
    yield Case("0 x 0.png", png(0, 0, b""), fails=True)


def bombs() -> Iterator[Case]:
    """Files that unpack to far more than they are."""
    yield Case("claims 2 ** 31.png", png(2**31 - 1, 2**31 - 1, b"\0" * 100), fails=True)
    yield Case("claims 100,000 x 100,000.png", png(100_000, 100_000, b"\0" * 100), fails=True)
    yield Case("claims 30,000 x 30,000.png", png(30_000, 30_000, b"\0" * 100), fails=True)
    yield Case("claims 5,000 x 5,000.png", png(5_000, 5_000, b"\0" * 100), fails=True)
    side = 12_000
    yield Case(
        f"{side} x {side} of black.png", png(side, side, bytes((side + 1) * side)), fails=True
    )
    side = 5_990
    yield Case(
        f"{side} x {side} of black.png", png(side, side, bytes((side + 1) * side)), (side, side)
    )
    text = b"Comment\0\0" + zlib.compress(bytes(100_000_000), 9)
    chunk = (
        struct.pack(">I", len(text))
        + b"zTXt"
        + text
        + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    )
    yield Case("100 MB of text.png", png(56, 40, (b"\0" + bytes(56)) * 40, extra=chunk))
    profile = b"name\0\0" + zlib.compress(bytes(200_000_000), 9)
    chunk = (
        struct.pack(">I", len(profile))
        + b"iCCP"
        + profile
        + struct.pack(">I", zlib.crc32(b"iCCP" + profile))
    )
    yield Case("200 MB of profile.png", png(56, 40, (b"\0" + bytes(56)) * 40, extra=chunk))
    for kind in ("gif", "bmp", "tga", "tiff", "ppm", "pcx", "sgi", "jpeg"):
        content = bytearray(ordinary()[kind])
        places = {
            "gif": (6, "<HH"),
            "bmp": (18, "<II"),
            "tga": (12, "<HH"),
            "pcx": (8, "<HH"),
            "sgi": (6, ">HH"),
        }
        if kind in places:
            place, form = places[kind]
            struct.pack_into(form, content, place, 60_000, 60_000)
        elif kind == "ppm":
            content = bytearray(b"P6 60000 60000 255\n" + b"x" * 100)
        elif kind == "tiff":
            content = bytearray(
                bytes(content)
                .replace(struct.pack("<HHI", 256, 4, 1), b"")
                .replace(struct.pack("<H", 56), b"\xff\xff")
            )
        else:
            place = bytes(content).index(b"\xff\xc0") + 5
            struct.pack_into(">HH", content, place, 60_000, 60_000)
        yield Case(
            f"claims 60,000 x 60,000.{kind}", bytes(content), fails=kind not in ("tiff", "gif")
        )


def strange() -> Iterator[Case]:
    """Wrong endings, other kinds of file, and programs in disguise."""
    whole = ordinary()
    for kind, ending in (
        ("png", "jpg"),
        ("jpeg", "png"),
        ("gif", "tiff"),
        ("webp", "jpg"),
        ("bmp", "webp"),
        ("avif", "png"),
    ):
        if kind in whole:
            yield Case(f"a {kind}.{ending}", whole[kind], SIDE, corner=(255, 0, 0))
    others = {
        "text": b"hello, this is no picture\n" * 50,
        "html": b"<html><body>404 Not Found</body></html>",
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><rect width='9' height='9'/></svg>",
        "pdf": b"%PDF-1.7\n%%EOF",
        "eps": (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n%%EndComments\n(harm) (w) file"
            b" closefile\nshowpage\n%%EOF\n"
        ),
        "zip": b"PK\x03\x04" + bytes(300),
        "xpm": b'/* XPM */\nstatic char *a[] = {"1 1 1 1", "a c #fff", "a"};\n',
        "wmf": b"\xd7\xcd\xc6\x9a" + bytes(60),
        "fits": b"SIMPLE  =                    T" + b" " * 2850,
        "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200),
        "zeros": bytes(5000),
        "ones": b"\xff" * 5000,
        "nothing": b"",
        "one byte": b"\x89",
    }
    for name, content in others.items():
        for ending in ("jpg", "png", "tif"):
            yield Case(f"{name}.{ending}", content, fails=True)
    if features.check("avif"):
        brand = whole["avif"].replace(b"ftypavif", b"ftypheic", 1)
        yield Case("a heic brand.heic", brand)


def all_cases() -> list[Case]:
    """Every case, with a name that is a file name."""
    found = [*odd_modes(), *odd_sizes(), *strange(), *damaged(np.random.default_rng(9)), *bombs()]
    assert len({case.name for case in found}) == len(found)
    return found
