"""What the commands do: typed functions over the library that print for people."""

from pathlib import Path

from rich.table import Table

from cascade_clip.cli.exit_codes import ExitCode
from cascade_clip.cli.terminal import console
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
        match_clip: store only a reference to CLIP when the file's CLIP equals the weights that
            model.clip names.
    """
    from cascade_clip.checkpoints import import_released

    checkpoint = import_released(file, config, out, match_clip=match_clip)
    trained = sum(
        parameter.numel() for parameter in checkpoint.model.parameters() if parameter.requires_grad
    )
    console.print(
        f"imported {file}: stages {[list(s) for s in checkpoint.model.stages]}, {trained:,} trained"
        " parameters",
        markup=False,
    )
    console.print(f"wrote {out}", markup=False, highlight=False)
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
        raise SettingError(
            f"--classes must lie in 1..{10**6:,} and --side in 1..{10**5:,}, got {classes}, {side}"
        )
    model = (
        load_config(settings).model if settings else ModelConfig(prompts=PromptConfig(tokens=50))
    )
    found = count_cost(model, classes, side)
    table = Table(title=f"{model.clip.name}, {classes} classes, {side} x {side}")
    for heading in ("", "ours", "published way"):
        table.add_column(heading, justify="right" if heading else "left")
    ours = found.parameters + found.text_parameters
    table.add_row("parameters", f"{ours:,}", f"{found.published_parameters:,}")
    table.add_row(
        "  of which text tower", f"{found.text_parameters:,}", f"{found.text_parameters:,}"
    )
    table.add_row("trained parameters", f"{found.trained:,}", f"{found.published_trained:,}")
    table.add_row(
        "GFLOP per image", f"{found.flops / 1e9:.1f}", f"{found.published_flops / 1e9:.1f}"
    )
    console.print(table)
    dead = f"{found.dead_parameters:,} weights and {found.dead_flops / 1e9:.1f} GFLOP"
    console.print(f"The published way counts {dead} that reach no output.", highlight=False)
    return ExitCode.DONE


def env() -> int:
    """Print versions and devices, for bug reports."""
    import platform

    import torch

    from cascade_clip.checkpoints import read_versions

    rows = {
        **read_versions(),
        "platform": platform.platform(),
        "processors": str(torch.get_num_threads()),
    }
    cuda = torch.cuda.is_available()
    rows["cuda"] = (
        f"{torch.version.cuda}, {torch.cuda.get_device_name(0)}" if cuda else "not available"
    )
    rows["mps"] = "available" if torch.backends.mps.is_available() else "not available"
    for name, value in rows.items():
        console.print(f"{name:<16} {value}", markup=False, highlight=False, soft_wrap=True)
    return ExitCode.DONE
