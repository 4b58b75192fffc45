"""Training protocols: which class names are queries, and what the labels of unseen classes become
(method section 6).

Letters: B images, C class names of the vocabulary, Q queries, D joint width, h x w patches, H x W
pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cascade_clip.config import Protocol
from cascade_clip.errors import SettingError
from cascade_clip.losses import upsample
from cascade_clip.vocabulary import IGNORED


class TrainingProtocol:
    """One protocol over a vocabulary whose unseen classes are known."""

    def __init__(self, name: Protocol, seen: Tensor, threshold: float = 0.0) -> None:
        """Prepare the look-up of labels; `seen` is bool (C,).

        `threshold` is the least score of a pseudo-label; a pixel below it is IGNORED. 0 lets every
        one through.

        Raises:
            ValueError: a protocol that needs unseen classes without any, or nothing seen at all.
        """
        if not bool(seen.any()):
            raise SettingError("every class is unseen; at least one seen class is needed to train")
        if name == "transductive" and bool(seen.all()):
            raise SettingError(
                "protocol transductive needs unseen classes; name them with data.unseen, or choose"
                " supervised"
            )
        self.name = name
        self.seen = seen
        self.threshold = threshold
        ranks = torch.cumsum(seen, 0) - 1  # (C,), rank among the seen classes
        own = torch.arange(len(seen))
        tables = {
            "inductive": torch.where(seen, ranks, IGNORED),  # unseen classes must leave no trace
            "transductive": own,
            "supervised": own,
        }
        first_unseen = 0 if bool(seen.all()) else int((~seen).nonzero()[0])
        shown = {
            "inductive": torch.where(seen, own, IGNORED),
            "transductive": torch.where(seen, own, first_unseen),
            "supervised": own,
        }
        self._hidden = torch.cat([shown[name], torch.tensor([IGNORED])])  # (C + 1,)
        # (C + 1,), the last row answers for IGNORED = -1
        self._table = torch.cat([tables[name], torch.tensor([IGNORED])])

    def hide(self, labels: Tensor) -> Tensor:
        """Labels (H, W) of one image without what the protocol must not know, before anything
        (cropping too) looks at them.

        Inductive: unseen classes are IGNORED. Transductive: they are one and the same class, the
        first unseen one. Supervised: unchanged.
        """
        return self._hidden[labels]  # index -1 is the last row

    def queries(self, text: Tensor) -> Tensor:
        """The rows of T (C, D) that are queries in training: (Q, D)."""
        return text[self.seen.to(text.device)] if self.name == "inductive" else text

    def targets(self, labels: Tensor, logits: Tensor, patch_size: int) -> Tensor:
        """Labels (B, H, W) of the vocabulary as indices of queries, IGNORED where they do not
        count.

        In the transductive protocol a pixel whose class is unseen gets a pseudo-label instead of
        its own: the unseen class with the highest score in the mask logits (B, Q, h, w), or IGNORED
        where that score is below the threshold. The true unseen label is used for nothing else.
        """
        targets = self._table.to(labels.device)[labels]  # (B, H, W); index -1 is the last row
        if self.name != "transductive":
            return targets
        unseen = (~self.seen).nonzero()[:, 0].to(labels.device)  # (unseen,)
        # (B, H, W)
        hidden = (labels != IGNORED) & ~self.seen.to(labels.device)[labels.clamp(min=0)]
        with torch.no_grad():
            scores = upsample(
                logits[:, unseen].detach().float(), patch_size, (labels.shape[-2], labels.shape[-1])
            ).sigmoid()
            best, position = scores.max(dim=1)  # (B, H, W) each
            guesses = torch.where(best < self.threshold, IGNORED, unseen[position])  # (B, H, W)
        return torch.where(hidden, guesses, targets)
