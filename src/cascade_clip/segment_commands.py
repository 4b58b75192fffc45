"""The command that labels pictures."""

from __future__ import annotations

from pathlib import Path

from cascade_clip.results import Segmentation
from cascade_clip.terminal import DEFAULT_RUN, RunOptions, console, warn

REAL_MODELS = "for your own photos train one on CLIP weights (README, section Models) and give it with --model"


def segment(
    images: list[str],
    *,
    model: str = "mini",
    classes: str = "",
    out: Path = Path("output"),
    calibration: float = 0.0,
    run: RunOptions = DEFAULT_RUN,
) -> int:
    """Label every pixel of images with your own class names.

    Writes an overlay with legend, an index PNG and a JSON file per image.

    Args:
        images: image files.
        model: checkpoint folder or run folder, or a packaged model of the built-in world: mini, mini-last.
        classes: class names, "cat, grass, sofa = couch; settee", or a file with one a line, or a packaged
            list by name (voc, coco-stuff, ...); by default those of the checkpoint.
        out: folder for the results.
        calibration: subtracted from the scores of names that were seen in training.
        run: how to load and run.
    """
    from cascade_clip.predictor import load_predictor
    from cascade_clip.transforms import load_image
    from cascade_clip.vocabulary import load_words

    vocabulary = load_words(classes) if classes else None
    predictor = load_predictor(model, run.device, run.precision, run.clip_weights or None)
    if predictor.checkpoint.config.data.name == "sandbox":
        warn(f"{model} knows only the built-in world ({', '.join(predictor.vocabulary.names[:5])}, ...): {REAL_MODELS}")
    target = predictor.bind(vocabulary, calibration)
    stems = _result_names(images)
    failed = 0
    for source, stem in zip(images, stems, strict=True):
        try:
            pixels = load_image(source)  # (3, H, W)
            labels, scores, _ = predictor.label_map(pixels, target)
        except (ValueError, OSError) as error:
            failed += 1
            warn(f"cascade-clip: error: {error}")
            continue
        result = Segmentation(labels.cpu().numpy(), target.names, target.colors, scores.cpu().numpy())
        written = result.save(out, stem, pixels.permute(1, 2, 0).numpy())
        console.print(f"{source}: {_describe(result)}", markup=False, highlight=False, soft_wrap=True)
        console.print(f"  wrote {', '.join(str(path) for path in written)}", markup=False, highlight=False, soft_wrap=True)
    return 2 if failed else 0


def _result_names(images: list[str]) -> list[str]:
    """One file stem per image; images of the same name in different folders get their folder in front."""
    stems = [Path(image).stem for image in images]
    names = []
    for image, stem in zip(images, stems, strict=True):
        name = stem if stems.count(stem) == 1 else f"{Path(image).resolve().parent.name}_{stem}"
        while name in names:
            name += "_2"
        names.append(name)
    return names


def _describe(result: Segmentation) -> str:
    shares = sorted(((share, name) for name, share in result.coverage.items() if share > 0), reverse=True)
    text = ", ".join(f"{name} {100 * share:.1f} %" for share, name in shares[:8])
    return text + (f" and {len(shares) - 8} more" if len(shares) > 8 else "")
