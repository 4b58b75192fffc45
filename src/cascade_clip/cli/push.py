"""The command that uploads models."""

from cascade_clip.cli.exit_codes import ExitCode
from cascade_clip.cli.terminal import say
from cascade_clip.errors import SettingError


def push(
    model: str,
    repository: str,
    *,
    private: bool = False,
    revision: str = "",
    full: bool = False,
    half: bool = False,
) -> int:
    """Upload a model with its model card to the hub.

    The token is taken from HF_TOKEN or from `hf auth login`; HF_ENDPOINT names another hub. Four
    files are uploaded: model.safetensors, config.yaml, checkpoint.json and README.md.

    Args:
        model: checkpoint folder, run folder, or a packaged model (mini, mini-last).
        repository: OWNER/NAME; made if it is not there.
        private: make a new repository private.
        revision: branch to upload to; by default the main one.
        full: store CLIP's own weights too; done anyway where they came from a file of this machine.
        half: store float16, half the size and slightly rounded.
    """
    from cascade_clip.inference import PREFIX, load_predictor

    if model.startswith(PREFIX):
        raise SettingError(f"{model} is CLIP alone, with nothing trained to upload")
    predictor = load_predictor(model, "cpu")
    address = predictor.push_to_hub(
        repository, private=private, revision=revision or None, full=full, half=half
    )
    say(f"uploaded {model} to {repository}: {address}")
    say(f'use it: cascade-clip segment photo.jpg --model {repository} --classes "cat, grass"')
    return ExitCode.DONE
