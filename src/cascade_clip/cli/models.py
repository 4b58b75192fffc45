"""What the commands do: typed functions over the library that print for people."""

from pathlib import Path

from cascade_clip.cli.exit_codes import ExitCode
from cascade_clip.cli.terminal import console, make_table, say
from cascade_clip.config import ModelConfig, PromptConfig
from cascade_clip.errors import SettingError


def import_file(file: Path, *, config: Path, out: Path, match_clip: bool = False) -> int:
    """Turn a state dict of the released Cascade-CLIP or ZegCLIP program into a checkpoint folder.

    The YAML file says what a state dict cannot: model.clip, stages, heads, prompt tokens,
    data.classes, data.unseen, inference.window.

    Args:
        file: released .pth (read without executing anything) or .safetensors file.
        config: YAML file of settings.
        out: checkpoint folder to write.
        match_clip: store only a reference to CLIP where the file's equals what model.clip names.
    """
    from cascade_clip.checkpoints import import_released

    checkpoint = import_released(file, config, out, match_clip=match_clip)
    model = checkpoint.model
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    say(f"imported {file}: stages {[*map(list, model.stages)]}, {trained:,} trained parameters")
    say(f"wrote {out}")
    return ExitCode.DONE


def cost(*, settings: Path | None = None, classes: int = 171, side: int = 512) -> int:
    """Print parameters and operations of a model, our way and the published way.

    Weights are not loaded; only their number matters.

    Args:
        settings: YAML file; by default the published COCO-Stuff model (ViT-B/16, 50 prompt tokens).
        classes: number of class names.
        side: side of the image, in pixels.
    """
    from cascade_clip.checkpoints import load_config
    from cascade_clip.models import count_cost

    if not (1 <= classes <= 10**6 and 1 <= side <= 10**5):
        limits = f"--classes must lie in 1..{10**6:,} and --side in 1..{10**5:,}"
        raise SettingError(f"{limits}, got {classes}, {side}")
    published = ModelConfig(prompts=PromptConfig(tokens=50))
    model = load_config(settings).model if settings else published
    found = count_cost(model, classes, side)
    title = f"{model.clip.name}, {classes} classes, {side} x {side}"
    table = make_table(title, ("", "ours", "published way"))
    tower, flops = found.text_parameters, (found.flops / 1e9, found.published_flops / 1e9)
    table.add_row("parameters", f"{found.parameters + tower:,}", f"{found.published_parameters:,}")
    table.add_row("  of which text tower", f"{tower:,}", f"{tower:,}")
    table.add_row("trained parameters", f"{found.trained:,}", f"{found.published_trained:,}")
    table.add_row("GFLOP per image", f"{flops[0]:.1f}", f"{flops[1]:.1f}")
    console.print(table)
    dead = f"{found.dead_parameters:,} weights and {found.dead_flops / 1e9:.1f} GFLOP"
    say(f"The published way counts {dead} that reach no output.")
    return ExitCode.DONE


def env() -> int:
    """Print versions and devices, for bug reports."""
    import platform

    import torch

    from cascade_clip.checkpoints import read_versions

    threads = str(torch.get_num_threads())
    rows = {**read_versions(), "platform": platform.platform(), "processors": threads}
    rows |= {"cuda": "not available", "mps": "not available"}
    if torch.cuda.is_available():
        rows["cuda"] = f"{torch.version.cuda}, {torch.cuda.get_device_name(0)}"
    if torch.backends.mps.is_available():
        rows["mps"] = "available"
    for name, value in rows.items():
        say(f"{name:<16} {value}")
    return ExitCode.DONE
