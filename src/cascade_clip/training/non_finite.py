"""The cause of a non-finite step: the first layer and the images where it goes wrong.

Letters: B images, Q queries, D joint width, h x w patches, H x W pixels.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Cause(NamedTuple):
    """What a forward pass over a failing batch shows."""

    place: str
    """The first parameter, input, layer or gradient that is not finite, in words."""
    images: tuple[int, ...]
    """Positions in the batch whose masks are not finite; empty where that does not tell."""


def find_cause(model: nn.Module, forward: Callable[[Tensor], Tensor], images: Tensor) -> Cause:
    """Find where normalised images (B, 3, H, W) first become non-finite on their way through
    `forward` to mask logits (B, Q, h, w).

    Parameters are looked at first, then the images, then the outputs of the layers in the order in
    which they are computed, then the gradients that the failed step has left.
    """
    with torch.no_grad(), _watch_outputs(model) as layers:
        logits = forward(images)  # (B, Q, h, w)
    bad = ~torch.isfinite(logits).flatten(1).all(dim=1)  # (B,)
    place = (
        _first("the parameter ", model.named_parameters())
        or _first("", [("the images", images)])
        or (f"the output of the layer {layers[0]}" if layers else "")
        or ("the mask logits" if bool(bad.any()) else "")
        or _first("the gradient of ", ((name, one.grad) for name, one in model.named_parameters()))
        or "the loss itself"
    )
    return Cause(place, tuple(bad.nonzero()[:, 0].tolist()))


def merge_causes(found: Sequence[tuple[Cause, list[Path]]]) -> tuple[Cause, list[Path]]:
    """Merge what the ranks found in their shares of a batch into one cause; files stay in order.

    A rank whose masks are not finite knows more than one that sees only the sum of the gradients.
    """
    place = next((cause.place for cause, _ in found if cause.images), found[0][0].place)
    files: list[Path] = []
    guilty: list[int] = []
    for cause, paths in found:
        guilty += [len(files) + index for index in cause.images]
        files += paths
    return Cause(place, tuple(guilty)), files


def describe(cause: Cause, loss: float, step: int, paths: Sequence[Path]) -> str:
    """Say in one line what is not finite at which step, where it starts, and the files."""
    what = "a gradient is not finite" if math.isfinite(loss) else f"the loss is {loss}"
    batch = ", ".join(str(path) for path in paths)
    guilty = [paths[index] for index in cause.images if index < len(paths)]
    narrowed = ""
    if 0 < len(guilty) < len(paths):
        narrowed = f"; it shows in {', '.join(str(path) for path in guilty)}"
    return (
        f"{what} at step {step}; the first value that is not finite is in {cause.place}{narrowed};"
        f" images of the batch: {batch}"
    )


def _first(word: str, tensors: Iterable[tuple[str, Tensor | None]]) -> str:
    """Return the name of the first non-finite tensor after the word for its kind, or nothing."""
    return next((word + name for name, tensor in tensors if not _is_finite(tensor)), "")


def _is_finite(value: Any) -> bool:
    tested = isinstance(value, Tensor) and value.is_floating_point()
    return not tested or bool(torch.isfinite(value).all())


@contextmanager
def _watch_outputs(model: nn.Module) -> Iterator[list[str]]:
    """Collect the names of layers with non-finite outputs, in the order of computation."""
    found: list[str] = []

    def look(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            tensors = output if isinstance(output, tuple) else (output,)
            if not all(map(_is_finite, tensors)):
                found.append(name)

        return hook

    named = [(name, module) for name, module in model.named_modules() if name]
    handles = [module.register_forward_hook(look(name)) for name, module in named]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
