"""From the original downloads of a dataset to the folder layout that mmsegmentation users have.

Everything is written to a folder beside the dataset, checked, then moved into it; a marker there
says that it is done. A killed preparation can be started again and ends with the same bytes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from cascade_clip.data.folder import read_list
from cascade_clip.data.prepare.archives import list_members, unpacked_bytes
from cascade_clip.data.prepare.masks import DetailMasks
from cascade_clip.data.prepare.recipes import Check, Convert, Download, Recipe, Rule
from cascade_clip.errors import CascadeClipError, DataError, SettingError, StorageError

Step = Callable[[int, int], None]
MARKER = ".prepared.json"
"""File in the folder of a finished dataset that names the downloads it was made from."""
SPARE_SPACE = 64 << 20
"""Bytes that stay free on the disk."""
_AHEAD = 8
"""Conversions that wait for each worker; bounds the memory."""
_LISTED = 3
"""Files that a message names at most."""


class Source(NamedTuple):
    """A download and where it is."""

    download: Download
    path: Path

    @property
    def identity(self) -> int | str:
        """What the marker remembers of it: bytes of a file, or that it is a folder."""
        return self.path.stat().st_size if self.path.is_file() else "folder"


class _Task(NamedTuple):
    """One file to write."""

    target: str
    load: Callable[[], Any]
    convert: Convert | None
    rule: Rule | None
    label: str
    origin: Path | None = None


class _Output(NamedTuple):
    """The folder of a dataset, and beside it the one that it is written to before it is moved."""

    folder: Path
    stage: Path

    def stems(self, target: str, ending: str) -> set[str]:
        """Files in a folder of the dataset, those to be moved there too, without their ending."""
        folders = (self.folder / target, self.stage / target)
        names = [name for folder in folders if folder.is_dir() for name in os.listdir(folder)]
        return {name.removesuffix(ending) for name in names if name.endswith(ending)}

    def read_list(self, target: str) -> list[str]:
        """The stems in a list file."""
        new = self.stage / target
        return read_list(new if new.is_file() else self.folder / target)

    def publish(self, marker: str) -> None:
        """Move what was written into the dataset, and the marker of that content last."""
        for place, _, files in os.walk(self.stage):
            folder = self.folder / Path(place).relative_to(self.stage)
            folder.mkdir(parents=True, exist_ok=True)
            for file in files:
                os.replace(Path(place, file), folder / file)
        (self.stage / MARKER).write_text(marker, encoding="utf-8")
        os.replace(self.stage / MARKER, self.folder / MARKER)


def find_source(choices: Sequence[Download], raw: Path) -> Source | None:
    """Find the first of some downloads in the raw folder: its file, or a folder of its content."""
    for download in choices:
        for place in (download.file, *download.places):
            source, path = Source(download, raw / place), raw / place
            if path.is_file() or (path.is_dir() and any(True for _ in _tasks(source))):
                return source
    return None


def check_download(source: Source, step: Step) -> None:
    """Compare size and hash of a downloaded file with the published ones, where they are known.

    Raises:
        DataError: they differ.
    """
    download, path = source
    if not path.is_file():
        return
    again = f"download it again from {download.url}, or use it as it is with --no-verify"
    size = path.stat().st_size
    if download.size and size != download.size:
        raise DataError(f"{path} has {size:,} bytes and should have {download.size:,}: {again}")
    kind, _, expected = download.digest.partition(":")
    if expected:
        found = _digest(path, kind, step)
        if found != expected:
            raise DataError(f"{path} has the {kind} {found} and should have {expected}: {again}")


def _digest(path: Path, kind: str, step: Step) -> str:
    """Hexadecimal sha256, or md5 (which finds damage, not forgery), of a file."""
    digest = hashlib.new(kind, usedforsecurity=False)
    total, done = path.stat().st_size, 0
    with path.open("rb") as file:
        for block in iter(lambda: file.read(4 << 20), b""):
            digest.update(block)
            done += len(block)
            step(done >> 20, total >> 20)
    return digest.hexdigest()


def prepare_dataset(
    recipe: Recipe, sources: Sequence[Source], out: Path, *, workers: int, step: Step
) -> dict[str, int]:
    """Write the folder of a dataset; where the marker says that it is finished, check it only.

    Args:
        recipe: the dataset.
        sources: where its downloads are, in the order of the recipe.
        out: output folder.
        workers: processes that convert masks; 1 converts in this process.
        step: called with files done and files expected.

    Returns:
        Images of each list or folder, by its path below `out`.

    Raises:
        DataError: a download is damaged or incomplete, a mask has impossible values, or the folder
            was made from other downloads.
        StorageError: the disk is full, a worker process died.
    """
    if workers < 1:
        raise SettingError(f"workers must be at least 1, got {workers}")
    folder = out / recipe.folder
    output = _Output(folder, folder.with_name(f".preparing-{folder.name}"))
    shutil.rmtree(output.stage, ignore_errors=True)  # what a killed preparation has left
    marker = folder / MARKER
    header = json.dumps({source.download.file: source.identity for source in sources}) + "\n"
    found = marker.read_text(encoding="utf-8") if marker.is_file() else header
    if found != header:
        raise SettingError(
            f"{folder} was made from other downloads, {found.strip()}; delete {marker} to redo it"
        )
    if marker.is_file():
        return _check_all(recipe, output)
    new = [source.path for source in sources if out.resolve() not in source.path.resolve().parents]
    expected = sum(rule.count for source in sources for rule in source.download.rules)
    output.stage.mkdir(parents=True)
    try:
        _check_space(output.stage, sum(map(unpacked_bytes, new)))
        with _start_workers(workers) as pool:
            writer = _Writer(output, pool, _AHEAD * workers, step, expected)
            for source in sources:
                _unpack(source, writer)
        counts = _check_all(recipe, output)
        output.publish(header)
    finally:
        shutil.rmtree(output.stage, ignore_errors=True)
    return counts


@contextlib.contextmanager
def _start_workers(count: int) -> Iterator[ProcessPoolExecutor | None]:
    """Worker processes, None for a single one; what has not begun when they end is dropped."""
    if count == 1:
        yield None
        return
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _begin_worker)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _check_all(recipe: Recipe, output: _Output) -> dict[str, int]:
    folder, checks = recipe.folder, recipe.checks
    return {f"{folder}/{item.listed or item.images}": check_pairs(output, item) for item in checks}


def check_pairs(output: _Output, check: Check) -> int:
    """See that every image that counts is there and has its mask; returns how many these are.

    Raises:
        DataError: a wrong number of images, an image or a mask that is missing.
    """
    images = output.stems(check.images, ".jpg")
    masks = output.stems(check.masks, f"{check.ending}.png") if check.masks else set()
    wanted = set(output.read_list(check.listed)) if check.listed else images
    where = output.folder / (check.listed or check.images)
    if len(wanted) < check.count or (check.listed and len(wanted) != check.count):
        counts = f"{len(wanted):,} images and must have {check.count:,}"
        raise DataError(f"{where} has {counts}: a download is incomplete or another version")
    for kind, found in (("images", images), ("masks", masks)):
        target = getattr(check, kind)
        missing = sorted(wanted - found) if target else []
        if missing:
            some = ", ".join([*missing[:_LISTED], *["..."] * (len(missing) > _LISTED)])
            place = output.folder / target
            raise DataError(f"{len(missing):,} {kind} of {where} are not in {place}: {some}")
    return len(wanted)


def _check_space(folder: Path, needed: int) -> None:
    free, needed = shutil.disk_usage(folder).free, needed + SPARE_SPACE
    if free < needed:
        sizes = f"{free / 1e9:.1f} GB free and needs {needed / 1e9:.1f} GB"
        raise StorageError(f"the disk of {folder} has {sizes}; free some space")


def _unpack(source: Source, writer: _Writer) -> None:
    """Write everything that comes from one download, and its lists."""
    download = source.download
    counts: Counter[Rule] = Counter()
    stems: set[str] = set()
    for task in _tasks(source):
        if writer.write(task) and task.rule is not None:
            counts[task.rule] += 1
            if task.convert is not None:
                stems.add(PurePosixPath(task.target).stem)
    writer.drain()
    for rule in download.rules:
        if counts[rule] < rule.count:
            files = f"{counts[rule]:,} files {rule.pattern} and should hold {rule.count:,}"
            raise DataError(f"{source.path} holds {files}: download it again from {download.url}")
    lists = download.lists(writer.output.read_list, stems) if download.lists else {}
    for target, listed in lists.items():
        _write(writer.output.stage / target, _lines(listed))


def _lines(stems: Collection[str]) -> bytes:
    return "".join(f"{stem}\n" for stem in stems).encode()


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    _check_space(path.parent, len(content))
    path.write_bytes(content)


def _tasks(source: Source) -> Iterator[_Task]:
    """The files to write from one download, in its order."""
    if source.path.suffix == ".json":
        yield from _detail_tasks(source)
        return
    for member in list_members(source.path):
        for rule in source.download.rules:
            if rule.takes(member.name):
                label, target = f"{source.path.name}: {member.name}", rule.target_of(member.name)
                yield _Task(target, member.read, rule.convert, rule, label, member.path)


def _detail_tasks(source: Source) -> Iterator[_Task]:
    """The lists and masks of a PASCAL in Detail file, from `images` and `annos_segmentation`."""
    (rule,) = source.download.rules
    try:
        content = json.loads(source.path.read_bytes())
        images = {
            image["image_id"]: (
                PurePosixPath(image["file_name"]),
                image["phase"],
                DetailMasks(int(image["height"]), int(image["width"]), []),
            )
            for image in content["images"]
            if image["phase"] in ("train", "val")
        }
        for region in content["annos_segmentation"]:
            if region["image_id"] in images:
                masks = images[region["image_id"]][2]
                masks.regions.append((region["category_id"], region["segmentation"]))
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        reason = f"({type(error).__name__}: {error}); download it again"
        raise DataError(f"{source.path} is not a PASCAL in Detail file {reason}") from error
    del content
    for phase in ("train", "val"):
        stems = sorted(name.stem for name, part, _ in images.values() if part == phase)
        target = f"ImageSets/SegmentationContext/{phase}.txt"
        yield _Task(target, functools.partial(_lines, stems), None, None, "")
    for name, _, masks in images.values():
        label, target = f"{source.path.name}: {name.name}", rule.target_of(name)
        yield _Task(target, functools.partial(_given, masks), rule.convert, rule, label)


def _given(value: Any) -> Any:
    return value


class _Writer:
    """Writes the files of a dataset; `pool` converts, and so many conversions may wait for it."""

    def __init__(
        self, output: _Output, pool: ProcessPoolExecutor | None, ahead: int, step: Step, total: int
    ) -> None:
        self.output, self.pool, self.ahead, self.step, self.total = output, pool, ahead, step, total
        self._seen: set[str] = set()
        self._pending: deque[Future[None]] = deque()

    def write(self, task: _Task) -> bool:
        """Write or convert a file; return False if one of that name has been written before."""
        if task.target in self._seen:
            return False
        self._seen.add(task.target)
        path, present = self.output.stage / task.target, self.output.folder / task.target
        if task.origin is not None and present.exists() and present.samefile(task.origin):
            pass  # it is where it belongs
        elif task.convert is None:
            _write(path, task.load())
        elif self.pool is None:
            _convert(task.convert, task.load(), path, task.label)
        else:
            self._submit(self.pool, task.convert, task, path)
        self._report()
        return True

    def _report(self) -> None:
        done = len(self._seen) - len(self._pending)
        self.step(done, max(done, self.total))

    def drain(self, left: int = 0) -> None:
        """Wait until at most `left` conversions are pending."""
        while len(self._pending) > left:
            try:
                self._pending.popleft().result()
            except BrokenProcessPool as error:
                raise StorageError(
                    "a worker process ended (out of memory?); start again, with fewer --workers"
                ) from error
            self._report()

    def _submit(self, pool: ProcessPoolExecutor, convert: Convert, task: _Task, path: Path) -> None:
        self.drain(self.ahead - 1)
        try:
            future = pool.submit(_convert, convert, task.load(), path, task.label)
        except BrokenProcessPool:
            self.drain()
            raise
        self._pending.append(future)


def _convert(convert: Convert, payload: Any, path: Path, label: str) -> None:
    """Convert and write one file; runs in a worker process."""
    try:
        content = convert(payload)
    except CascadeClipError as error:
        raise DataError(f"{label}: {error}") from error
    _write(path, content)


def _begin_worker() -> None:
    """Leave Ctrl-C to the parent process, and end when the parent was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
