"""The command `data prepare`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cascade_clip.cli.exit_codes import ExitCode
from cascade_clip.cli.terminal import progress_bar, say
from cascade_clip.errors import MissingFileError, SettingError

if TYPE_CHECKING:
    from cascade_clip.data import DatasetSpec
    from cascade_clip.data.prepare import Download, Source


def prepare(
    name: str, *, raw: Path, out: Path = Path("data"), workers: int = 2, no_verify: bool = False
) -> int:
    """Bring the original downloads of a dataset into the folders that training and evaluation read.

    Prints first which files are needed, how large they are and under which terms; nothing is
    downloaded. A preparation that was interrupted is started again by the same command.

    Args:
        name: voc (with SBD), coco-stuff, context, ade20k, or a dataset of another package.
        raw: folder with the downloads, as they were downloaded or unpacked.
        out: folder to write to.
        workers: processes that convert masks.
        no_verify: do not compare sizes and hashes of the downloads with the published ones.
    """
    from cascade_clip.data import find_dataset, list_recipes
    from cascade_clip.data.prepare import check_download, prepare_dataset

    recipes = list_recipes()
    if name not in recipes:
        raise SettingError(f"no recipe for {name!r}; choose one of {', '.join(recipes)}")
    recipe, raw, out = recipes[name], raw.expanduser(), out.expanduser()
    sources = _find_downloads(find_dataset(name), raw)
    for source in sources if not no_verify else ():
        with progress_bar(f"checking {source.path.name} (MB)") as step:
            check_download(source, step)
    out.mkdir(parents=True, exist_ok=True)
    with progress_bar(f"preparing {name}") as step:
        found = prepare_dataset(recipe, sources, out, workers=workers, step=step)
    say(f"wrote {out / recipe.folder}")
    for place, images in found.items():
        say(f"  {images:>7,} images in {place}")
    return ExitCode.DONE


def _find_downloads(spec: DatasetSpec, raw: Path) -> list[Source]:
    """Say what is needed and what is there.

    Raises:
        MissingFileError: something is missing; the message names every missing file and its place.
    """
    from cascade_clip.data.prepare import find_source

    say(f"{spec.title} needs, in {raw}:")
    sources, missing = [], []
    for choices in spec.recipe.needs if spec.recipe else ():
        source = find_source(choices, raw)
        _say_choices(choices, source)
        if source is None:
            missing.append(" or ".join(f"{download.file} ({download.url})" for download in choices))
        else:
            sources.append(source)
    if missing:
        names = ", ".join(missing)
        raise MissingFileError(f"not in {raw}: {names}; download what is missing and put it there")
    return sources


def _say_choices(choices: Sequence[Download], source: Source | None) -> None:
    for number, download in enumerate(choices):
        state = "missing" if source is None else "not needed"
        if source is not None and source.download is download:
            path = source.path
            state = f"found {path.name}" if path.is_file() else f"found unpacked: {path}"
        unknown = download.about or "size not published"
        size = f"{download.size / 1e9:.2f} GB" if download.size else unknown
        kind = download.digest.partition(":")[0]
        digest = f"{kind} known" if kind else "no published hash"
        say(f"  {'or ' if number else ''}{download.file}: {size}, {digest}; {state}")
        say(f"      {download.url}\n      {download.terms}")
