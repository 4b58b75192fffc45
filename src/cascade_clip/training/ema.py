"""A slow copy of the trained weights that gives steadier pseudo-labels: an exponential moving
average (beyond the paper, off by default).

Letters: B images, Q queries, D joint width, H x W pixels, h x w patches.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call


class EmaTeacher(nn.Module):
    """Averages of the trained parameters of a model, as buffers that training states include.

    Frozen parameters are not copied: the teacher borrows them from the model.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Start from the weights of `model`; after each step an average keeps `decay` of itself."""
        super().__init__()
        self.decay = decay
        trained = [name for name, value in model.named_parameters() if value.requires_grad]
        self._buffer_names = {name: name.replace(".", "/") for name in trained}
        for name, key in self._buffer_names.items():
            self.register_buffer(key, model.get_parameter(name).detach().clone())

    @torch.no_grad()
    def forward(self, model: nn.Module, images: Tensor, queries: Tensor) -> Tensor:
        """Return mask logits (B, Q, h, w) of images (B, 3, H, W) by the averages, in eval mode."""
        training = model.training
        model.eval()
        try:
            weights = {name: self.get_buffer(key) for name, key in self._buffer_names.items()}
            return cast(Tensor, functional_call(model, weights, (images, queries)))
        finally:
            model.train(training)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move every average towards the model's present weights by the share 1 - decay."""
        for name, key in self._buffer_names.items():
            self.get_buffer(key).lerp_(model.get_parameter(name), 1 - self.decay)
