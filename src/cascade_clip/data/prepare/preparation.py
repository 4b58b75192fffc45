"""From the original downloads of a data set to the folder layout that mmsegmentation users have.

Every file is written under a temporary name and renamed, and a journal in `OUT/.prepare` says which
files this preparation has written. So it may be killed at any point: started again, it goes on and
ends with the same bytes.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Any, NamedTuple

from cascade_clip.data.prepare.archives import (
    check_space,
    file_digest,
    list_members,
    unpacked_bytes,
    write_file,
)
from cascade_clip.data.prepare.masks import DetailMasks
from cascade_clip.data.prepare.recipes import Check, Convert, Download, Recipe, Rule, read_list
from cascade_clip.errors import CascadeClipError, DataError, SettingError, StorageError

Step = Callable[[int, int], None]
_AHEAD = 8
"""Conversions that wait for each worker; bounds the memory."""
_LISTED = 3
"""Files that a message names at most."""


class Source(NamedTuple):
    """A download and where it lies."""

    download: Download
    path: Path


class _Task(NamedTuple):
    """One file to write."""

    target: str
    load: Callable[[], Any]
    convert: Convert | None
    rule: Rule | None
    label: str
    origin: Path | None = None


def find_source(choices: Sequence[Download], raw: Path) -> Source | None:
    """The first of some downloads that is in the raw folder: its file, or a folder with what was in
    it."""
    for download in choices:
        for place in (download.file, *download.places):
            source = Source(download, raw / place)
            if source.path.is_file() or (
                source.path.is_dir() and any(True for _ in _tasks(source))
            ):
                return source
    return None


def check_download(source: Source, step: Step) -> None:
    """Compare size and hash of a downloaded file with the published ones, as far as they are known;
    folders have none.

    Raises:
        ValueError: they differ.
    """
    download, path = source
    if not path.is_file():
        return
    again = (
        f"it is incomplete or another version; download it again from {download.url}, or use it as"
        " it is with --no-verify"
    )
    size = path.stat().st_size
    if download.size and size != download.size:
        raise DataError(f"{path} has {size:,} bytes and should have {download.size:,}: {again}")
    kind, _, expected = download.digest.partition(":")
    if expected:
        found = file_digest(path, kind, step)
        if found != expected:
            raise DataError(f"{path} has the {kind} {found} and should have {expected}: {again}")


def prepare_dataset(
    recipe: Recipe, sources: Sequence[Source], out: Path, *, workers: int, step: Step
) -> dict[str, int]:
    """Write the folders of a data set, or go on with it.

    Args:
        recipe: the data set.
        sources: where its downloads lie, in the order of the recipe.
        out: output folder.
        workers: processes that convert masks; 1 converts in this process.
        step: called with files done and files expected.

    Returns:
        Images of each list or folder.

    Raises:
        ValueError: a download is damaged or incomplete, a mask has impossible values, or `out` was
            begun from other downloads.
        OSError: the disk is full, a worker process died.
    """
    if workers < 1:
        raise SettingError(f"workers must be at least 1, got {workers}")
    parts = out / ".prepare" / f"{recipe.name}-parts"
    shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir(parents=True, exist_ok=True)
    with _Journal(out / ".prepare" / f"{recipe.name}.txt", parts, sources) as journal:
        if not journal.done:
            check_space(
                out,
                sum(
                    unpacked_bytes(source.path)
                    for source in sources
                    if out.resolve() not in source.path.resolve().parents
                ),
            )
        expected = sum(rule.count for source in sources for rule in source.download.rules)
        with _Writer(
            out, parts, journal, workers, lambda done: step(done, max(done, expected))
        ) as writer:
            for source in sources:
                _unpack(source, writer)
        found = {check.listed or check.images: check_pairs(out, check) for check in recipe.checks}
        journal.finish()
    shutil.rmtree(parts)
    return found


def check_pairs(out: Path, check: Check) -> int:
    """See that every image that counts is there and has its mask; returns how many these are.

    Raises:
        ValueError: a wrong number of images, an image or a mask that is missing.
    """
    images = {name[: -len(".jpg")] for name in _names(out / check.images) if name.endswith(".jpg")}
    wanted = set(read_list(out / check.listed)) if check.listed else images
    where = out / (check.listed or check.images)
    if len(wanted) < check.count or (check.listed and len(wanted) != check.count):
        raise DataError(
            f"{where} has {len(wanted):,} images and must have {check.count:,}: a download is"
            " incomplete or another version"
        )
    _require(wanted - images, f"images of {where}", out / check.images)
    if check.masks:
        ending = f"{check.ending}.png"
        masks = {
            name[: -len(ending)] for name in _names(out / check.masks) if name.endswith(ending)
        }
        _require(wanted - masks, f"masks of {where}", out / check.masks)
    return len(wanted)


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
            raise DataError(
                f"{source.path} holds {counts[rule]:,} files {rule.pattern} and should hold"
                f" {rule.count:,}: it is incomplete or another version; download it again from"
                f" {download.url}"
            )
    for name, stems_of_list in (
        download.lists(writer.out, stems) if download.lists else {}
    ).items():
        writer.rewrite(name, "".join(f"{stem}\n" for stem in stems_of_list).encode())


def _tasks(source: Source) -> Iterator[_Task]:
    """The files to write from one download, in its order."""
    if source.path.suffix == ".json":
        yield from _detail_tasks(source)
        return
    for member in list_members(source.path):
        for rule in source.download.rules:
            if rule.takes(member.name):
                label = f"{source.path.name}: {member.name}"
                yield _Task(
                    rule.target_of(member.name), member.read, rule.convert, rule, label, member.path
                )


def _detail_tasks(source: Source) -> Iterator[_Task]:
    """The lists and masks of a PASCAL in Detail file: `images` (image_id, file_name, height, width,
    phase) and `annos_segmentation`."""
    (rule,) = source.download.rules
    try:
        found = json.loads(source.path.read_bytes())
        images = {
            image["image_id"]: image
            for image in found["images"]
            if image["phase"] in ("train", "val")
        }
        regions: dict[Any, list[tuple[int, Any]]] = {identity: [] for identity in images}
        for region in found["annos_segmentation"]:
            if region["image_id"] in regions:
                regions[region["image_id"]].append((region["category_id"], region["segmentation"]))
        del found
        phases = {
            phase: sorted(
                PurePosixPath(image["file_name"]).stem
                for image in images.values()
                if image["phase"] == phase
            )
            for phase in ("train", "val")
        }
        masks = {
            PurePosixPath(image["file_name"]): DetailMasks(
                int(image["height"]), int(image["width"]), regions[identity]
            )
            for identity, image in images.items()
        }
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise DataError(
            f"{source.path} is no PASCAL in Detail file ({type(error).__name__}: {error}); download"
            " it again"
        ) from error
    lists = PurePosixPath(rule.target).parent / "ImageSets" / "SegmentationContext"
    for phase, stems in phases.items():
        text = "".join(f"{stem}\n" for stem in stems).encode()
        yield _Task(f"{lists}/{phase}.txt", functools.partial(_given, text), None, None, "")
    for name, mask in masks.items():
        yield _Task(
            rule.target_of(name),
            functools.partial(_given, mask),
            rule.convert,
            rule,
            f"{source.path.name}: {name.name}",
        )


def _given(value: Any) -> Any:
    return value


class _Journal:
    """Which files this preparation has written: a line that names the downloads, then one file a
    line."""

    def __init__(self, path: Path, parts: Path, sources: Sequence[Source]) -> None:
        """Open the journal of an earlier start, or begin one."""
        self.path, self.parts = path, parts
        self.header = json.dumps(
            {
                source.download.file: source.path.stat().st_size
                if source.path.is_file()
                else "folder"
                for source in sources
            }
        )
        lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
        if lines and lines[0] != self.header:
            raise SettingError(
                f"this output folder was begun from other downloads, {lines[0]}; delete {path} to"
                " write everything again"
            )
        self.done = set(lines[1:-1])  # what follows the last line break was cut off
        self._save()
        self._file: IO[str] = path.open("a", encoding="utf-8", newline="\n")

    def __enter__(self) -> _Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file; it stays."""
        self._file.close()

    def add(self, target: str) -> None:
        """Note that a file is written."""
        self.done.add(target)
        self._file.write(f"{target}\n")
        self._file.flush()

    def finish(self) -> None:
        """Sort the journal, so that it does not tell how often the preparation was stopped."""
        self._file.close()
        self._save()

    def _save(self) -> None:
        write_file(
            self.path,
            "".join(f"{line}\n" for line in [self.header, *sorted(self.done)]).encode(),
            self.parts,
        )


class _Writer:
    """Writes files below the output folder, converting in several processes."""

    def __init__(
        self, out: Path, parts: Path, journal: _Journal, workers: int, step: Callable[[int], None]
    ) -> None:
        """Start the worker processes, if there are to be any."""
        self.out, self.parts, self.journal, self.workers, self.step = (
            out,
            parts,
            journal,
            workers,
            step,
        )
        self._seen: set[str] = set()
        self._pending: deque[tuple[str, Future[None]]] = deque()
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(workers, context, _begin_worker) if workers > 1 else None

    def __enter__(self) -> _Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the worker processes; what has not begun is dropped."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def write(self, task: _Task) -> bool:
        """Write a file or have it converted; the first of two with one name counts, then the answer
        is False."""
        if task.target in self._seen:
            return False
        self._seen.add(task.target)
        path = self.out / task.target
        # a power cut can leave empty files
        if task.target in self.journal.done and path.is_file() and path.stat().st_size:
            self.step(len(self._seen))
        elif task.origin is not None and path.exists() and path.samefile(task.origin):
            self._wrote(task.target)
        elif task.convert is None:
            write_file(path, task.load(), self.parts)
            self._wrote(task.target)
        elif self._pool is None:
            _convert(task.convert, task.load(), path, self.parts, task.label)
            self._wrote(task.target)
        else:
            self._submit(self._pool, task.convert, task, path)
        return True

    def rewrite(self, target: str, content: bytes) -> None:
        """Write a small file, whether it is there or not."""
        write_file(self.out / target, content, self.parts)

    def drain(self, left: int = 0) -> None:
        """Wait until at most `left` conversions are pending."""
        while len(self._pending) > left:
            target, future = self._pending.popleft()
            try:
                future.result()
            except BrokenProcessPool as error:
                raise StorageError(
                    "a worker process ended (out of memory?); start again, with fewer --workers: it"
                    " goes on where it stopped"
                ) from error
            self._wrote(target)

    def _submit(self, pool: ProcessPoolExecutor, convert: Convert, task: _Task, path: Path) -> None:
        self.drain(_AHEAD * self.workers - 1)
        try:
            future = pool.submit(_convert, convert, task.load(), path, self.parts, task.label)
        except BrokenProcessPool:
            self.drain()
            raise
        self._pending.append((task.target, future))

    def _wrote(self, target: str) -> None:
        self.journal.add(target)
        self.step(len(self._seen) - len(self._pending))


def _convert(convert: Convert, payload: Any, path: Path, parts: Path, label: str) -> None:
    """Convert and write one file; runs in a worker process."""
    try:
        content = convert(payload)
    except CascadeClipError as error:
        raise DataError(f"{label}: {error}") from error
    write_file(path, content, parts)


def _begin_worker() -> None:
    """Leave Ctrl-C to the parent, and end when the parent was killed, which a worker process would
    not notice otherwise."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _names(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() else []


def _require(missing: set[str], what: str, folder: Path) -> None:
    if missing:
        some = ", ".join(sorted(missing)[:_LISTED])
        raise DataError(
            f"{len(missing):,} {what} are not in {folder}:"
            f" {some}{', ...' if len(missing) > _LISTED else ''}"
        )
