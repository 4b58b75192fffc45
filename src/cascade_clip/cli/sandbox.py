"""Commands of the built-in world."""

import logging
from pathlib import Path

from cascade_clip.cli.exit_codes import ExitCode
from cascade_clip.cli.terminal import check_ending, say
from cascade_clip.files import write_whole


def pretrain(
    *,
    out: Path = Path("mini_clip"),
    steps: int = 2600,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    seed: int = 0,
    workers: int = 1,
    save_every: int = 100,
) -> int:
    """Make the mini CLIP again from images and captions of the built-in world; no mask is used.

    Contrastive training; takes about 40 minutes on 2 cores. The same command resumes a stopped run.

    Args:
        out: folder to write, in open_clip's format; use it with --model.clip.name local-dir:OUT.
        steps: optimiser steps.
        batch_size: images per step.
        learning_rate: peak learning rate.
        seed: seed of weights, images and captions.
        workers: processes that draw images.
        save_every: steps between saved states, each with the class mAP on fresh scenes.
    """
    from cascade_clip.sandbox import PretrainConfig, pretrain_clip

    logging.getLogger("cascade_clip").setLevel(logging.INFO)
    sizes = (steps, batch_size, learning_rate)
    pretrain_clip(
        PretrainConfig(str(out), *sizes, seed=seed, workers=workers, save_every=save_every)
    )
    return ExitCode.DONE


def preview(
    *, out: Path = Path("preview.png"), seed: int = 0, count: int = 12, size: int = 128
) -> int:
    """Draw scenes of the built-in world beside their masks on one sheet.

    Args:
        out: PNG file to write.
        seed: which scenes.
        count: number of scenes.
        size: side of a scene, in pixels.
    """
    from cascade_clip.sandbox import preview_sheet

    check_ending(out, (".png", ".jpg", ".jpeg", ".webp"))
    say(f"wrote {write_whole(out, preview_sheet(seed, count, size).save)}")
    return ExitCode.DONE


def export(
    *,
    out: Path = Path("sandbox"),
    train: int = 2000,
    val: int = 200,
    seed: int = 0,
    size: int = 128,
) -> int:
    """Write the built-in world as image and mask folders with a class list, to try commands on.

    The same command resumes a stopped run.

    Args:
        out: folder to write.
        train: number of training scenes.
        val: number of validation scenes.
        seed: which scenes.
        size: side of a scene, in pixels.
    """
    from cascade_clip.sandbox import export_world

    export_world(out, train, val, size, seed)
    say(f"wrote {out}: images/{{train,val}}, masks/{{train,val}}, classes.txt, unseen.txt")
    return ExitCode.DONE
