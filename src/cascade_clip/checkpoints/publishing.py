"""The predictor's methods `from_pretrained`, `save_pretrained` (folders), `push_to_hub` (hub)."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cascade_clip.checkpoints.checkpoint import (
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
    write_card,
)
from cascade_clip.checkpoints.hub import FILES, HubName, download_checkpoint, parse_hub_name
from cascade_clip.errors import SettingError, StorageError, first_lines

if TYPE_CHECKING:
    from typing_extensions import Self


class Publishable:
    """What has a checkpoint can be stored in a folder, uploaded and fetched."""

    checkpoint: Checkpoint

    @classmethod
    def from_pretrained(
        cls, source: str | Path, revision: str | None = None, **options: Any
    ) -> Self:
        """Load a model from the hub or from a folder.

        Args:
            source: OWNER/NAME, OWNER/NAME@REVISION, a checkpoint folder, a run folder, or a
                packaged model.
            revision: branch, tag or commit on the hub; a commit pins every file.
            options: `device`, `settings`: as the class takes them.

        Raises:
            FileNotFoundError: no such model.
            ValueError: a revision for a folder; a damaged file.
        """
        if revision is None:
            return cls(load_checkpoint(source), **options)  # type: ignore[call-arg]
        if Path(source).is_dir():
            fix = "write hub:OWNER/NAME for a model on the hub"
            raise SettingError(f"{source} is a folder here, without revision {revision}; {fix}")
        checkpoint = load_checkpoint(download_checkpoint(str(source), revision))
        return cls(checkpoint, **options)  # type: ignore[call-arg]

    def save_pretrained(
        self, folder: str | Path, *, full: bool = False, half: bool = False
    ) -> Path:
        """Write a checkpoint folder with its model card.

        Args:
            folder: where to; a checkpoint of that name is replaced.
            full: store CLIP's own weights too; done anyway where nobody else could find them.
            half: store float16, half the size and slightly rounded.
        """
        full = full or is_local_clip(self.checkpoint)
        return save_checkpoint(Path(folder), self.checkpoint, full=full, half=half)

    def push_to_hub(
        self,
        repository: str,
        *,
        private: bool = False,
        token: str | None = None,
        revision: str | None = None,
        full: bool = False,
        half: bool = False,
    ) -> str:
        """Upload a model with its model card; returns the address of the commit.

        Args:
            repository: OWNER/NAME; made if it is not there.
            private: whether a new repository is private.
            token: access token with write permission; by default HF_TOKEN or that of `hf auth
                login`.
            revision: branch to upload to; by default the main one.
            full: see `save_pretrained`.
            half: see `save_pretrained`.

        Raises:
            ValueError: not a name on the hub.
            OSError: the hub cannot be reached, or refuses.
        """
        name = parse_hub_name(repository)
        if name is None or name.revision:
            fix = "write OWNER/NAME (and the branch as `revision`)"
            raise SettingError(f"{repository} is not a name on the hub; {fix}")
        with tempfile.TemporaryDirectory(prefix="cascade-clip-push-") as temporary:
            folder = self.save_pretrained(Path(temporary) / "model", full=full, half=half)
            write_card(folder, self.checkpoint, name.repository)
            return _upload(folder, HubName(name.repository, revision), private=private, token=token)


def is_local_clip(checkpoint: Checkpoint) -> bool:
    """Whether CLIP's weights came from a file or folder of this machine, which nobody else has."""
    clip = checkpoint.config.model.clip
    return clip.name.startswith("local-dir:") or (
        ":" not in clip.name and Path(clip.weights).expanduser().is_file()
    )


def _upload(folder: Path, name: HubName, *, private: bool, token: str | None) -> str:
    from huggingface_hub import CommitOperationAdd, HfApi, constants

    api = HfApi(token=token, library_name="cascade-clip")
    try:
        api.create_repo(name.repository, private=private, exist_ok=True)
        if name.revision:
            api.create_branch(name.repository, branch=name.revision, exist_ok=True)
        done = api.create_commit(  # one commit: nobody ever sees half a model
            name.repository,
            [CommitOperationAdd(file, folder / file) for file in FILES],
            commit_message="Upload a Cascade-CLIP checkpoint",
            revision=name.revision,
        )
    except Exception as error:  # the hub client raises many kinds
        raise StorageError(
            f"cannot upload to {name.repository} on {constants.ENDPOINT} ({first_lines(error)})."
            " Log in with `hf auth login` or set HF_TOKEN to a token with write permission"
        ) from error
    return str(done.commit_url)
