"""Training protocols: which class names are queries, what unseen labels become (method section 6).

Letters: B images, C class names of the vocabulary, Q queries, D joint width, h x w patches, H x W
pixels.
"""

from typing import cast

import torch
from torch import Tensor

from cascade_clip.config import TrainConfig, find_part
from cascade_clip.errors import SettingError
from cascade_clip.losses import upsample
from cascade_clip.vocabulary import IGNORED


class TrainingProtocol:
    """What training may know of labels; here, in the supervised protocol, everything."""

    def __init__(self, seen: Tensor, threshold: float = 0.0) -> None:
        """Apply the protocol to a vocabulary whose seen classes are True in `seen`, (C,).

        `threshold` is the least score of a pseudo-label; a pixel below it is IGNORED. 0 lets every
        one through.

        Raises:
            SettingError: a protocol that needs unseen classes without any, or nothing seen at all.
        """
        if not bool(seen.any()):
            raise SettingError("every class is unseen; at least one seen class is needed to train")
        self.seen, self.threshold = seen, threshold

    def hide(self, labels: Tensor) -> Tensor:
        """Remove what the protocol must not know from labels (H, W), even before cropping."""
        return labels

    def queries(self, text: Tensor) -> Tensor:
        """Choose the rows of T (C, D) that are queries in training, (Q, D)."""
        return text

    def targets(self, labels: Tensor, logits: Tensor, patch_size: int) -> Tensor:
        """Turn labels (B, H, W) of the vocabulary into indices of queries, IGNORED where they do
        not count; `logits` are the model's mask logits (B, Q, h, w)."""
        return labels.long()


class Inductive(TrainingProtocol):
    """Unseen classes leave no trace: they are no queries, and their pixels are IGNORED."""

    def hide(self, labels: Tensor) -> Tensor:
        """Ignore the pixels of unseen classes."""
        return torch.where(_is_seen(self.seen, labels), labels, IGNORED)

    def queries(self, text: Tensor) -> Tensor:
        """Choose the seen classes."""
        return text[self.seen.to(text.device)]

    def targets(self, labels: Tensor, logits: Tensor, patch_size: int) -> Tensor:
        """Count among the seen classes only."""
        ranks = (torch.cumsum(self.seen, 0) - 1).to(labels.device)  # (C,)
        return torch.where(_is_seen(self.seen, labels), ranks[labels.clamp(min=0)], IGNORED)


class Transductive(TrainingProtocol):
    """The names of unseen classes are known, and which pixels are of an unseen class, but not of
    which: their labels are the model's own guesses."""

    def __init__(self, seen: Tensor, threshold: float = 0.0) -> None:
        super().__init__(seen, threshold)
        if bool(seen.all()):
            raise SettingError(
                "protocol transductive needs unseen classes; name them with data.unseen, or choose"
                " supervised"
            )
        self.unseen = (~seen).nonzero()[:, 0]  # (unseen,)

    def hide(self, labels: Tensor) -> Tensor:
        """Make all unseen classes one and the same: the first of them."""
        return torch.where(self._is_hidden(labels), int(self.unseen[0]), labels)

    def targets(self, labels: Tensor, logits: Tensor, patch_size: int) -> Tensor:
        """Replace the label of a pixel of an unseen class by a pseudo-label: the unseen class with
        the highest score, or IGNORED where that score is below the threshold.

        The true label of such a pixel is used for nothing else.
        """
        unseen = self.unseen.to(labels.device)
        with torch.no_grad():
            size = (labels.shape[-2], labels.shape[-1])
            scores = upsample(logits[:, unseen].detach().float(), patch_size, size).sigmoid()
            best, position = scores.max(dim=1)  # (B, H, W) each
            guesses = torch.where(best < self.threshold, IGNORED, unseen[position])  # (B, H, W)
        return torch.where(self._is_hidden(labels), guesses, labels.long())

    def _is_hidden(self, labels: Tensor) -> Tensor:
        return (labels != IGNORED) & ~_is_seen(self.seen, labels)


def _is_seen(seen: Tensor, labels: Tensor) -> Tensor:
    """Which labels are those of seen classes; IGNORED is not."""
    return (labels != IGNORED) & seen.to(labels.device)[labels.clamp(min=0)]


def build_protocol(config: TrainConfig, seen: Tensor) -> TrainingProtocol:
    """Build the protocol that `train.protocol` names, for the seen classes (C,) of a vocabulary."""
    kind = cast(type[TrainingProtocol], find_part("protocols", config.protocol))
    return kind(seen, config.pseudo_threshold)
