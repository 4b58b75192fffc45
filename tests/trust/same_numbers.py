"""Write what a fixed model computes for fixed inputs, to compare two environments: python
same_numbers.py FILE.npz"""

from __future__ import annotations

import sys

import numpy as np
import torch
from numpy.typing import NDArray

from cascade_clip.config import LossConfig
from cascade_clip.inference.loading import load_predictor
from cascade_clip.losses.mask_losses import mask_loss

NAMES = ("sky", "grass", "water", "sand", "snow", "star", "tree")


def pattern(shape: tuple[int, ...], step: float) -> NDArray[np.float32]:
    """Values in -1..1 that no random generator has a part in."""
    return (
        np.sin(np.arange(int(np.prod(shape)), dtype=np.float64) * step)
        .reshape(shape)
        .astype(np.float32)
    )


def compute() -> dict[str, NDArray[np.float32]]:
    """Text embeddings, mask logits, scores, losses and every gradient of the packaged model, in
    float32 on one thread of the CPU."""
    torch.set_num_threads(1)
    predictor = load_predictor("mini", device="cpu", precision="fp32")
    target = predictor.bind(list(NAMES))
    model = predictor.model
    side = predictor.settings.window
    images = torch.from_numpy(pattern((2, 3, side, side), 0.37))
    pixels = torch.from_numpy(((pattern((3, 150, 190), 0.011) + 1) * 127).astype(np.uint8))
    values = {"text": target.text, "scores": predictor.scores(pixels, target)}
    logits = model(images, target.text.clone())  # eval mode: no dropout
    rows = torch.arange(side * side).reshape(side, side) // 97 % (len(NAMES) + 1) - 1
    loss = mask_loss(logits, torch.stack([rows, rows.flip(0)]), model.patch_size, LossConfig())
    loss.total.backward()
    values |= {"logits": logits, "focal": loss.focal, "dice": loss.dice}
    values |= {
        f"gradient of {name}": weight.grad
        for name, weight in model.named_parameters()
        if weight.grad is not None
    }
    return {name: value.detach().float().numpy() for name, value in values.items()}


if __name__ == "__main__":
    np.savez(sys.argv[1], **compute())
