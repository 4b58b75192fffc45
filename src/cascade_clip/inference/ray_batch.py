"""Segment blocks of images on a Ray cluster; each actor loads its own model.

An actor does what the command does without a cluster (`segment_sources`), so the files are the
same; images that are done are skipped. A block is retried when its actor dies. All machines must
see the same files under the same paths.
"""

import contextlib
import dataclasses
import json
import logging
import math
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

from cascade_clip.config import Device, InferenceConfig
from cascade_clip.errors import MissingPackageError, SettingError, StorageError, explain_error
from cascade_clip.files import report_defect
from cascade_clip.inference.class_binding import BoundClasses
from cascade_clip.inference.image_batch import (
    Done,
    Source,
    is_done,
    request_fingerprint,
    segment_sources,
)
from cascade_clip.inference.loading import LoadOptions
from cascade_clip.inference.predictor import Predictor
from cascade_clip.inference.ray_manifest import (
    FOLDER,
    Block,
    clear_folder,
    cut_blocks,
    group_files,
    is_complete,
    make_row,
    write_part,
)
from cascade_clip.results import Output

TRIES = 2
"""Deaths of an actor, alone with one image, after which the image counts as failed."""

OBJECT_STORE = 200 * 2**20
"""Bytes of shared memory of a cluster that is started here: blocks are lists of paths."""


@dataclass(frozen=True)
class Recipe:
    """All that an actor needs to know, the images apart."""

    model: str
    """As `load_predictor` takes it; the same on every machine."""
    loading: LoadOptions
    settings: InferenceConfig
    bound: BoundClasses
    """Class names, bound; its tensors on the CPU."""
    outputs: tuple[Output, ...]
    out: Path
    """Folder for the results, absolute."""
    request: str
    """See `request_fingerprint`; an actor whose model gives another one refuses to work."""
    overwrite: bool = False
    folder: Path = Path()
    """The folder that relative paths start from."""


class Report(NamedTuple):
    """What became of one block."""

    done: int = 0
    skipped: int = 0
    errors: tuple[str, ...] = ()
    stopped: str = ""
    """Why nothing more can be done: a full disk, a missing model."""
    defects: int = 0
    """How many of the errors, or whether what stopped it, are defects of this program."""


class BlockWorker:
    """What runs in an actor: one model, loaded for the first block, and one block after another."""

    def __init__(self, recipe: Recipe) -> None:
        # the model is loaded later, so that an error becomes the report of a block
        self.recipe = recipe

    @cached_property
    def predictor(self) -> Predictor:
        """The model, checked to be that of the command."""
        recipe = self.recipe
        predictor = recipe.loading.load(recipe.model).with_settings(recipe.settings)
        if request_fingerprint(predictor, recipe.bound, recipe.outputs) != recipe.request:
            where = f"the model {recipe.model} on {socket.gethostname()}"
            raise SettingError(f"{where} differs from the one where the command runs; copy it")
        return predictor

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Do a block, written as text for Ray (see `pack_block`), and return its report as text."""
        try:
            # another machine may lack it; absolute paths still hold there
            with contextlib.suppress(OSError):
                os.chdir(self.recipe.folder)
            report = self.work(unpack_block(row))
        except Exception as error:
            text = explain_error(error)
            reason = f"{text or report_defect(error)} (on {socket.gethostname()})"
            report = Report(stopped=reason, defects=int(not text))
        return {"report": json.dumps(report)}

    def work(self, block: Block) -> Report:
        """Segment the images of a block that are not done, then write its rows.

        A note holds the number of images done before; if it is found again, an actor died here.
        """
        recipe, folder = self.recipe, self.recipe.out / FOLDER
        note = folder / f".{block.part}.begun"
        lines = note.read_text(encoding="utf-8").splitlines() if note.exists() else []
        there = 0
        if not recipe.overwrite:
            there = sum(is_done(source, recipe.out, recipe.request) for source in block.sources)
        before = int(lines[0]) if lines else there
        if there == len(block.sources) and is_complete(folder, block):
            note.unlink(missing_ok=True)
            return Report(there - before, before)
        if there < len(block.sources):  # rows of images that are about to change
            (folder / block.part).unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        if lines:
            results = self._segment_each(block.sources, note, Counter(lines))
        else:
            note.write_text(f"{before}\n", encoding="utf-8")
            results = self._segment_all(block.sources)
        failed = [one for one in results if one.error]
        errors = {one.source.name: one.error for one in failed}
        make = partial(make_row, out=recipe.out, request=recipe.request)
        rows = [make(source, error=errors.get(source.name, "")) for source in block.sources]
        write_part(folder / block.part, rows)
        note.unlink(missing_ok=True)
        done, defects = len(block.sources) - before - len(errors), sum(one.defect for one in failed)
        return Report(done, before, tuple(errors.values()), defects=defects)

    def _segment_all(self, sources: Sequence[Source]) -> Iterator[Done]:
        recipe = self.recipe
        segment = partial(segment_sources, overwrite=recipe.overwrite, request=recipe.request)
        return segment(self.predictor, recipe.bound, list(sources), recipe.out, recipe.outputs)

    def _segment_each(
        self, sources: Sequence[Source], note: Path, lines: Counter[str]
    ) -> Iterator[Done]:
        """Segment file by file and note the start and end of each, to find files that kill."""
        for group in group_files(sources):
            word = json.dumps(str(group[0].path))
            if lines[f"begin {word}"] - lines[f"end {word}"] >= TRIES:
                why = f"{TRIES} processes died while working on it alone (memory, or a decoder)"
                error = f"{group[0].path}: {why}"
                yield from (Done(source, error=error) for source in group)
                continue
            _append(note, f"begin {word}")
            yield from self._segment_all(group)
            _append(note, f"end {word}")


def _append(file: Path, line: str) -> None:
    with file.open("a", encoding="utf-8") as stream:
        stream.write(line + "\n")


def pack_block(block: Block) -> dict[str, Any]:
    """A block as one row of a Ray data set: text, so that no path is changed on its way."""
    sources = [[str(source.path), source.name, source.frame] for source in block.sources]
    return {"part": block.part, "sources": json.dumps(sources)}


def unpack_block(row: dict[str, Any]) -> Block:
    """What `pack_block` packed."""
    sources = json.loads(row["sources"])
    return Block(row["part"], tuple(Source(Path(path), *rest) for path, *rest in sources))


def share_devices(actors: int, device: Device, cpus: int, gpus: int) -> tuple[int, float]:
    """Number of actors and GPUs of each, for a cluster of so many processors and GPUs.

    Args:
        actors: wanted number; 0 takes one per GPU, or one per processor where no GPU is used.
        device: `auto` takes GPUs where there are any.
        cpus: processors of the cluster.
        gpus: GPUs of the cluster; if there are fewer than actors, each is shared by several.

    Raises:
        ValueError: cuda is wanted and the cluster has no GPU.
    """
    if device == "cuda" and not gpus:
        text = "--device cuda, but the Ray cluster has no GPU"
        raise SettingError(f"{text}; choose --device cpu or start the cluster with GPUs")
    if device not in ("auto", "cuda") or not gpus:
        return actors or max(1, cpus), 0.0
    actors = actors or gpus
    return actors, 1 / math.ceil(actors / gpus)


def require_ray() -> Any:
    """Import `ray`, by default without its usage statistics and the messages of its C++ part.

    Raises:
        ImportError: not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray Data's own actors raise a warning about their restart there
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import pyarrow  # noqa: F401
        import ray
        import ray.data
    except ImportError as error:
        text = "--engine ray needs Ray Data: pip install 'cascade-clip[ray]'"
        raise MissingPackageError(text) from error
    return ray


@contextlib.contextmanager
def join_cluster(actors: int) -> Iterator[Any]:
    """Connect to the current Ray cluster, the one at RAY_ADDRESS, or a new one; yields `ray`."""
    ray = require_ray()
    if ray.is_initialized():
        yield ray
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if os.environ.get("RAY_ADDRESS"):
        try:
            ray.init(**quiet)
        except ConnectionError as error:
            raise StorageError(f"no Ray cluster answers at RAY_ADDRESS: {error}") from error
    else:
        quiet |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE}
        ray.init(address="local", num_cpus=max(actors, count_processors()), **quiet)
    try:
        yield ray
    finally:
        ray.shutdown()


def count_processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def segment_on_cluster(
    recipe: Recipe,
    sources: list[Source],
    actors: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Report]:
    """Segment images on a Ray cluster and write a manifest; yields the report of each done block.

    Args:
        recipe: model, request and places.
        sources: the images (see `find_sources`).
        actors: number of actors, see `share_devices`.
        progress: called with (done, total) images after every block.

    Raises:
        ImportError: Ray is not installed.
        OSError: an actor cannot go on, or the cluster does not answer.
    """
    blocks = cut_blocks(sources, recipe.request)
    total = 0
    with join_cluster(actors) as ray:
        clear_folder(recipe.out / FOLDER, blocks)
        for report in _reports(ray, recipe, blocks, actors):
            if report.stopped:
                raise (RuntimeError if report.defects else StorageError)(report.stopped)
            total += report.done + report.skipped + len(report.errors)
            yield report
            if progress is not None:
                progress(total, len(sources))


def _reports(ray: Any, recipe: Recipe, blocks: list[Block], actors: int) -> Iterator[Report]:
    resources, loading = ray.cluster_resources(), recipe.loading
    cpus, cards = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
    size, gpus = share_devices(actors, loading.device, cpus, cards)
    if gpus:
        recipe = dataclasses.replace(recipe, loading=dataclasses.replace(loading, device="cuda"))
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    count, items = len(blocks), [pack_block(block) for block in blocks]
    pool = ray.data.ActorPoolStrategy(size=min(size, count), max_tasks_in_flight_per_actor=2)
    dataset = ray.data.from_items(items, override_num_blocks=count).map(
        BlockWorker, fn_constructor_args=(recipe,), compute=pool, num_cpus=1, num_gpus=gpus
    )
    try:
        for row in dataset.iter_rows():
            done, skipped, errors, *rest = json.loads(row["report"])
            yield Report(done, skipped, tuple(errors), *rest)
    except ray.exceptions.RayError as error:
        text = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise StorageError(
            f"the Ray cluster failed ({text}); run the same command again to resume"
        ) from error
