"""The commands that write models for other runtimes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from cascade_clip.cli.exit_codes import ExitCode
from cascade_clip.cli.options import DEFAULT_NAMES, FolderOptions, NameOptions, read_classes
from cascade_clip.cli.terminal import console, make_table, progress_bar, say
from cascade_clip.errors import SettingError
from cascade_clip.inference import DEFAULT_LOADING, LoadOptions
from cascade_clip.results import format_percent

if TYPE_CHECKING:
    from cascade_clip.inference import Predictor

DEFAULT_DATA = FolderOptions()


def onnx(
    model: str,
    *,
    out: Path,
    classes: str = "",
    int8: bool = False,
    names: NameOptions = DEFAULT_NAMES,
    loading: LoadOptions = DEFAULT_LOADING,
) -> int:
    """Write a model as FILE.onnx with a runner that needs only onnxruntime, numpy and Pillow.

    Beside FILE.onnx come FILE.json (how to run it), FILE.npy (text embeddings of the class names)
    and FILE_run.py (the runner).

    Args:
        model: checkpoint folder, run folder, a packaged model (mini, mini-last), or CLIP alone
            (clip:NAME/WEIGHTS, clip:mini).
        out: file to write, ending in .onnx.
        classes: class names to bake in, as in `cascade-clip segment`; without, text embeddings are
            an input of the graph, and FILE.npy holds those of the checkpoint's own names.
        int8: store the weights of matrix products in 8 bits; smaller, slightly other results.
        names: which pixels get which name.
        loading: how to load the model.
    """
    from cascade_clip.export import export_onnx, require

    require("onnx", "onnxscript", "onnxruntime")
    predictor = _load(model, loading)
    bound = names.bind(predictor, read_classes(classes))
    written = export_onnx(predictor, out, bound, bake=bool(classes), int8=int8, name=model)
    say(f"wrote {', '.join(map(str, written))} ({out.stat().st_size / 1e6:.1f} MB)")
    say(f"try it: python {written[-1]} photo.jpg --out output")
    return ExitCode.DONE


def torch(
    model: str, *, out: Path, classes: str = "", loading: LoadOptions = DEFAULT_LOADING
) -> int:
    """Write a model as a torch.export program, which torch.export.load reads without this package.

    Args:
        model: checkpoint folder, run folder, a packaged model (mini, mini-last), or CLIP alone
            (clip:NAME/WEIGHTS, clip:mini).
        out: file to write, ending in .pt2.
        classes: class names to bake in; without, text embeddings are an input.
        loading: how to load the model.
    """
    from cascade_clip.export import export_torch

    predictor = _load(model, loading)
    bound = DEFAULT_NAMES.bind(predictor, read_classes(classes)) if classes else None
    export_torch(predictor, out, bound)
    say(f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB)")
    return ExitCode.DONE


def text(
    model: str,
    *,
    classes: str,
    out: Path,
    names: NameOptions = DEFAULT_NAMES,
    loading: LoadOptions = DEFAULT_LOADING,
) -> int:
    """Write other class names, and their embeddings, for a model exported without --classes.

    Args:
        model: the model that was exported.
        classes: class names, as in `cascade-clip segment`.
        out: file to write, ending in .json, with the .npy beside it; the runner's --words takes it.
        names: which pixels get which name.
        loading: how to load the model.
    """
    from cascade_clip.export import export_text

    predictor = _load(model, loading)
    written = export_text(predictor, out, names.bind(predictor, read_classes(classes)))
    say(f"wrote {' and '.join(str(path) for path in written)}")
    return ExitCode.DONE


def check(
    model: str,
    files: list[str],
    *,
    data: FolderOptions = DEFAULT_DATA,
    picture: Path | None = None,
    loading: LoadOptions = DEFAULT_LOADING,
) -> int:
    """Compare exported ONNX files with their model: mask logits at three sizes, speed, and mIoU.

    The exit code is 1 when mask logits of a file that is not int8 differ by more than 1e-4 of their
    range (of 1 where that is smaller).

    Args:
        model: the model that was exported.
        files: ONNX files, exported without --classes.
        data: labelled images; without any (no --data, no --images) there is no mIoU.
        picture: PNG to draw: the first labelled image and what every model makes of it.
        loading: how to load the model.
    """
    from cascade_clip.export import (
        compare_logits,
        draw_models,
        exported_predictor,
        random_text,
        read_facts,
        require,
        windows_per_second,
    )

    require("onnxruntime")
    predictor = _load(model, loading)
    others = [exported_predictor(Path(file), predictor) for file in files]
    embeddings = random_text(20, predictor.model.joint_width)
    speeds = windows_per_second([predictor, *others], embeddings)
    labelled = data.data != "folder" or bool(data.images)
    if picture is not None and not labelled:
        needed = "--data sandbox, or --images, --masks and --classes"
        raise SettingError(f"--picture needs labelled images: {needed}")
    heads = ("", "MB", "windows/s", "largest difference of a logit", "mIoU %", "hIoU %")
    table = make_table(f"{model}, window {predictor.settings.window}, 20 classes", heads)
    table.add_row("PyTorch", "", f"{speeds[0]:.1f}", "", *_score(predictor, data, labelled))
    good = True
    for path, other, speed in zip(map(Path, files), others, speeds[1:], strict=True):
        found = compare_logits(predictor, other, embeddings)
        if not read_facts(path).get("onnx", {}).get("int8", False):
            good &= all(one.largest <= 1e-4 * max(1.0, one.range) for one in found)
        worst = max(found, key=lambda one: one.largest)
        sizes = ", ".join(f"{one.height} x {one.width}: {one.largest:.1e}" for one in found)
        values = (f"{speed:.1f}", f"{sizes} (of {worst.range:.1f})")
        megabytes = f"{path.stat().st_size / 1e6:.1f}"
        table.add_row(path.name, megabytes, *values, *_score(other, data, labelled))
    console.print(table)
    if picture is not None:
        from cascade_clip.data import build_dataset

        dataset = build_dataset(data.to_config(), "val")
        predictors = {"PyTorch": predictor}
        predictors |= {Path(file).name: other for file, other in zip(files, others, strict=True)}
        image, vocabulary = dataset.sample(0).image, dataset.vocabulary
        say(f"wrote {draw_models(predictors, image, vocabulary, picture)}")
    return ExitCode.DONE if good else ExitCode.FINDINGS


def _score(predictor: Predictor, data: FolderOptions, labelled: bool) -> tuple[str, str]:
    """mIoU and hIoU of a predictor in percent."""
    if not labelled:
        return "-", "-"
    from cascade_clip.data import build_dataset
    from cascade_clip.evaluation import evaluate

    with progress_bar("evaluating") as step:
        found = evaluate(predictor, build_dataset(data.to_config(), "val"), progress=step).scores
    return format_percent(found.miou), format_percent(found.hiou)


def _load(model: str, loading: LoadOptions) -> Predictor:
    """Load the model on the CPU in float32, where graphs are recorded."""
    if loading.device not in ("auto", "cpu") or loading.precision != "fp32":
        raise SettingError("export runs on the CPU in fp32; leave --device and --precision out")
    return dataclasses.replace(loading, device="cpu").load(model)
