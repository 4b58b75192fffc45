"""The results of many images as Parquet files, one per block of images and never incomplete.

The name of a file is a hash of its block and of the request, so a block that is done twice replaces
its own rows. Files whose name begins with a dot are notes of unfinished blocks, which readers of
Parquet folders ignore.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cascade_clip.errors import MissingFileError
from cascade_clip.files import file_sha256, write_whole

if TYPE_CHECKING:
    from cascade_clip.inference.image_batch import Source

FOLDER = "manifest"
BLOCKS = 64
"""Blocks that a call is cut into, as long as they are not too small or too large."""

SMALLEST, LARGEST = 8, 1000
"""Images of a block."""


class Block(NamedTuple):
    """Images that one actor does together."""

    part: str
    """Name of the file that holds their rows."""
    sources: tuple[Source, ...]


def cut_blocks(sources: Sequence[Source], request: str) -> list[Block]:
    """Divide images into blocks in order; a video stays whole, as it is decoded in one pass."""
    size = max(SMALLEST, min(LARGEST, -(-len(sources) // BLOCKS)))
    blocks: list[Block] = []
    waiting: list[Source] = []
    for group in group_files(sources):
        waiting += group
        if len(waiting) >= size:
            blocks.append(Block(_part_name(waiting, request), tuple(waiting)))
            waiting = []
    return [*blocks, Block(_part_name(waiting, request), tuple(waiting))] if waiting else blocks


def group_files(sources: Iterable[Source]) -> list[list[Source]]:
    """Neighbours that lie in one file: the frames of a video, or an image alone."""
    return [list(group) for _, group in itertools.groupby(sources, key=lambda source: source.path)]


def _part_name(sources: Sequence[Source], request: str) -> str:
    words = [request, [[source.name, str(source.path), source.frame] for source in sources]]
    return f"part-{hashlib.sha256(json.dumps(words).encode()).hexdigest()[:24]}.parquet"


def make_schema() -> Any:
    """Columns of a manifest (a pyarrow schema).

    `name` of the results below the output folder, unique; `path` and `frame` of the image;
    `sha256` of its file; `classes` and `coverage`, lists in label order; `unlabelled`, share of
    pixels without a class; `output`, the JSON file below the output folder; `request`, the hash of
    what was asked for; `error`, null where all went well. Of an image that failed, only name,
    path, frame, sha256 (null where there is no file), request and error are given.
    """
    import pyarrow as pa

    kinds = {"frame": pa.int64(), "unlabelled": pa.float64()}
    kinds |= {"classes": pa.list_(pa.string()), "coverage": pa.list_(pa.float64())}
    order = "name path frame sha256 classes coverage unlabelled output request error"
    return pa.schema([(name, kinds.get(name, pa.string())) for name in order.split()])


def make_row(source: Source, out: Path, request: str, error: str = "") -> dict[str, Any]:
    """The row of an image whose results lie below `out`, or that failed with an error."""
    path, digest = source.path, None
    if path.is_file():
        state = path.stat()
        digest = _hash_of(path, state.st_size, state.st_mtime_ns)
    row: dict[str, Any] = {"name": source.name, "path": str(path), "frame": source.frame}
    row |= {"sha256": digest, "request": request}
    if error:
        return {**row, "error": error}
    values = json.loads((out / f"{source.name}.json").read_text(encoding="utf-8"))
    names, shares = ([entry[key] for entry in values["classes"]] for key in ("name", "coverage"))
    row |= {"classes": names, "coverage": shares, "unlabelled": values["unlabelled"]}
    return {**row, "output": f"{source.name}.json"}


@lru_cache(maxsize=1)  # a video, whose frames follow one another, is hashed once
def _hash_of(path: Path, size: int, changed: int) -> str:
    return file_sha256(path)


def write_part(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the rows of a block, under a temporary name first."""
    import pyarrow as pa

    _write(file, pa.Table.from_pylist(list(rows), schema=make_schema()))


def _write(file: Path, table: Any) -> None:
    import pyarrow.parquet as pq

    write_whole(file, lambda part: pq.write_table(table, part))


def is_complete(folder: Path, block: Block) -> bool:
    """Whether the rows of a block are there, all of them and without errors."""
    import pyarrow.parquet as pq

    file = folder / block.part
    if not file.is_file():
        return False
    table = pq.read_table(file, columns=["name", "error"])
    same = table["name"].to_pylist() == [source.name for source in block.sources]
    return bool(same and table["error"].null_count == len(table))


def clear_folder(folder: Path, blocks: Iterable[Block]) -> None:
    """Delete the rows of a manifest that a call will write to other files, and earlier notes.

    Otherwise blocks that are cut differently, or another request, would give an image two rows.
    """
    import pyarrow.parquet as pq

    blocks = list(blocks)
    planned = {block.part for block in blocks}
    names = {source.name for block in blocks for source in block.sources}
    for file in folder.glob(".part-*"):
        file.unlink()
    for file in folder.glob("part-*.parquet"):
        if file.name in planned:
            continue
        table = pq.read_table(file)
        stays = [name not in names for name in table["name"].to_pylist()]
        if not any(stays):
            file.unlink()
        elif not all(stays):
            _write(file, table.filter(stays))


def read_manifest(out: Path) -> list[dict[str, Any]]:
    """All rows below an output folder, in the order of names.

    Raises:
        FileNotFoundError: no manifest there.
    """
    import pyarrow.parquet as pq

    files = sorted((out / FOLDER).glob("part-*.parquet"))
    if not files:
        raise MissingFileError(f"no manifest in {out / FOLDER}; segment --engine ray writes one")
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    return sorted(rows, key=lambda row: str(row["name"]))
