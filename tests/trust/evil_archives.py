"""Archives that want to leave the folder they are unpacked to, and archives that unpack to far more
than they are."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from cascade_clip.data.prepare.recipes import Download, Recipe, Rule

RECIPE = Recipe(
    folder="VOC",
    needs=(
        (
            Download(
                "a", "http://localhost/a", "none", (Rule("JPEGImages/*.jpg", "JPEGImages", 1),)
            ),
        ),
    ),
    checks=(),
)


def evil_archives(folder: Path) -> Iterator[Path]:
    """Archives whose members want to leave: names, links, devices, lies about sizes."""
    names = [
        "../JPEGImages/a.jpg",
        "../../../JPEGImages/a.jpg",
        "/JPEGImages/a.jpg",
        "x/../../JPEGImages/a.jpg",
        "C:/JPEGImages/a.jpg",
    ]
    names += [
        "JPEGImages/..\\..\\a.jpg",
        f"{folder}/JPEGImages/a.jpg",
        "JPEGImages/..jpg",
        "JPEGImages/a\0.jpg",
        "JPEGImages/\u202ea.jpg",
    ]
    for number, name in enumerate(names):
        for kind in ("tar", "tar.gz", "zip"):
            path = folder / f"name {number}.{kind}"
            if kind == "zip":
                with zipfile.ZipFile(path, "w") as archive:
                    archive.writestr(name.replace("\0", "%"), b"content")
            else:
                with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w") as archive:
                    info = tarfile.TarInfo(name)
                    info.size = 7
                    archive.addfile(info, io.BytesIO(b"content"))
            yield path
    for number, kind in enumerate(
        (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"Z")
    ):
        path = folder / f"link {number}.tar"
        with tarfile.open(path, "w") as archive:
            info = tarfile.TarInfo("JPEGImages/a.jpg")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        yield path
    path = folder / "link.zip"
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("JPEGImages/a.jpg")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    yield path
    yield from bomb_archives(folder)


def bomb_archives(folder: Path) -> Iterator[Path]:
    """Archives that unpack to far more than they are."""
    for number, (claimed, real) in enumerate(
        (((300 << 20), 300 << 20), (1000, 300 << 20), (1 << 40, 10))
    ):
        path = folder / f"bomb {number}.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("JPEGImages/a.jpg", bytes(min(real, 30 << 20)))
        content = path.read_bytes()
        old = struct.pack("<I", min(real, 30 << 20))
        path.write_bytes(content.replace(old, struct.pack("<I", min(claimed, (1 << 32) - 2))))
        yield path
    path = folder / "long name.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        info = tarfile.TarInfo("././@LongLink")
        info.type, info.size = tarfile.GNUTYPE_LONGNAME, 600 << 20
        archive.addfile(info, Zeros(info.size))
        info = tarfile.TarInfo("JPEGImages/a.jpg")
        archive.addfile(info)
    yield path
    for name, content in (
        ("cut.tar", b"x" * 700),
        ("empty.zip", b"PK\x05\x06" + bytes(18)),
        ("nothing.tar", b""),
        ("noise.tar.gz", b"\x1f\x8b" + bytes(90)),
    ):
        (folder / name).write_bytes(content)
        yield folder / name


class Zeros(io.RawIOBase):
    """A stream of zeros."""

    def __init__(self, size: int) -> None:
        """Of so many bytes."""
        self.left = size

    def read(self, size: int = -1) -> bytes:
        """The next ones."""
        size = min(size if size >= 0 else self.left, self.left)
        self.left -= size
        return bytes(size)
