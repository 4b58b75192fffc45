"""Previews: what a model predicts for a few images while it trains.

They are made through the predictor, as every prediction is, and change neither the random state nor
the modes of the model's parts: a run has the same weights with and without them.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.seed import isolate_rng
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from torch import Tensor, nn

from cascade_clip.checkpoints import Checkpoint
from cascade_clip.data import LabelledImages
from cascade_clip.encoders import load_embeddings
from cascade_clip.evaluation import default_calibration
from cascade_clip.files import write_whole
from cascade_clip.inference import BoundClasses, Predictor
from cascade_clip.results import Segmentation

FOLDER, OLD_FOLDER = "previews", "sheets"
"""Folder of the previews in a run folder, and its name in earlier versions."""
_LEGEND_ROWS = 8


@dataclasses.dataclass(frozen=True)
class Row:
    """One image of a preview."""

    image: NDArray[np.uint8]  # (H, W, 3)
    truth: Segmentation
    prediction: Segmentation

    @property
    def accuracy(self) -> float | None:
        """Share of the labelled pixels that are right; None without any."""
        labelled = self.truth.labels >= 0
        right = (self.truth.labels == self.prediction.labels)[labelled]
        return float(right.mean()) if labelled.any() else None


class PreviewWriter(Callback):
    """Write `previews/step-000100.png` into the run folder, every few steps and after the last."""

    def __init__(
        self,
        dataset: LabelledImages,
        every: int | None = None,
        embeddings: str = "",
        images: int = 4,
        report: Callable[[int, Path], None] | None = None,
    ) -> None:
        """Show `images` images of `dataset`, spread evenly over it.

        Args:
            dataset: labelled images; truth and prediction use its class names.
            every: steps between previews; None: a tenth of the run; 0: none.
            embeddings: file (.npy) of text embeddings (C, D) of its names to use instead of the
                text tower.
            images: rows of a preview.
            report: called with (step, path) after each preview.
        """
        self.dataset, self.every, self.embeddings, self.report = dataset, every, embeddings, report
        self.text: Tensor | None = None
        count = min(images, len(dataset))
        self.places = [index * len(dataset) // count for index in range(count)]

    def on_train_batch_end(self, trainer: Any, task: Any, *batch: Any) -> None:
        """Write a preview when it is time."""
        every = max(1, trainer.max_steps // 10) if self.every is None else self.every
        step, out = trainer.global_step, Path(trainer.default_root_dir)
        if trainer.is_global_zero and every and (step % every == 0 or step == trainer.max_steps):
            path = self.write(out, task.checkpoint, task.device.type, step)
            if self.report is not None:
                self.report(step, path)

    def write(self, out: Path, checkpoint: Checkpoint, device: Any, step: int) -> Path:
        """Write the preview of one step into the run folder `out`, under a temporary name first."""
        with isolate_rng(), unchanged_modes(checkpoint.model):
            rows = self.predict(checkpoint, device)
        figure = draw_preview(rows, self.dataset.vocabulary.unseen, f"step {step:,}")
        path = out / FOLDER / f"step-{step:06}.png"
        return write_whole(path, lambda part: figure.savefig(part, dpi=110))

    def predict(self, checkpoint: Checkpoint, device: Any) -> list[Row]:
        """Return the rows of a preview."""
        if self.text is None:
            self.text = embed_names(checkpoint, self.dataset, self.embeddings)
        # the tower stays where it is
        predictor = Predictor(dataclasses.replace(checkpoint, text_encoder=None), device=device)
        vocabulary = self.dataset.vocabulary
        same = set(vocabulary.names) == set(checkpoint.vocabulary.names)
        calibration = default_calibration(checkpoint) if same else 0.0
        bound = predictor.bind(vocabulary, calibration, self.text)
        return [self._row(predictor, bound, place) for place in self.places]

    def _row(self, predictor: Predictor, bound: BoundClasses, place: int) -> Row:
        sample = self.dataset.sample(place)
        found = predictor.label_map(sample.image, bound)
        vocabulary = self.dataset.vocabulary
        truth = Segmentation(sample.labels.numpy(), vocabulary.names, vocabulary.colors)
        prediction = Segmentation(found.labels.cpu().numpy(), bound.names, bound.colors)
        return Row(sample.image.permute(1, 2, 0).numpy(), truth, prediction)


def embed_names(
    checkpoint: Checkpoint, dataset: LabelledImages, embeddings: str = ""
) -> Tensor | None:
    """Return text embeddings (C, D) from a file, training, or the text tower; None without."""
    vocabulary, encoder = dataset.vocabulary, checkpoint.text_encoder
    if embeddings:
        width = checkpoint.model.joint_width
        return load_embeddings(Path(embeddings), len(vocabulary.names), width)
    if vocabulary.synonyms == checkpoint.vocabulary.synonyms:
        return checkpoint.text
    return None if encoder is None else encoder.embed(vocabulary.synonyms, checkpoint.templates)


@contextmanager
def unchanged_modes(model: nn.Module) -> Iterator[None]:
    """Give every part of a model its training or evaluation mode back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def list_previews(out: Path) -> list[Path]:
    """Return the previews in a run folder by step, also those of earlier versions."""
    found = (path for name in (OLD_FOLDER, FOLDER) for path in (out / name).glob("step-*.png"))
    return sorted(found, key=lambda path: path.name)


def draw_preview(rows: Sequence[Row], unseen: Sequence[str], title: str) -> Figure:
    """Draw image, truth, prediction and class names in one row per image; a star marks unseen."""
    tallest = max(row.image.shape[0] / row.image.shape[1] for row in rows)
    height = min(max(2.1 * tallest, 1.6), 3.2) * len(rows) + 0.6
    figure = Figure(figsize=(9.2, height))
    note = "   (* never seen as masks)" if unseen else ""
    figure.text(0.01, 1 - 0.12 / height, title + note, fontsize=11, va="top")
    edges = {"left": 0.01, "right": 0.99, "top": 1 - 0.6 / height, "bottom": 0.06 / height}
    grid = figure.subplots(
        len(rows),
        4,
        squeeze=False,
        width_ratios=[1, 1, 1, 1.25],
        gridspec_kw={**edges, "wspace": 0.05, "hspace": 0.06},
    )
    for axes, row in zip(grid, rows, strict=True):
        parts = (row.truth, row.prediction)
        masks = (part.overlay(row.image, 0.65, legend=False) for part in parts)
        for axis, view in zip(axes, (row.image, *masks), strict=False):
            axis.imshow(np.asarray(view))
            axis.set_anchor("N")
        for axis in axes:
            axis.set_axis_off()
        _draw_legend(axes[3], row, unseen)
    for axis, name in zip(grid[0], ("image", "truth", "prediction"), strict=False):
        axis.set_title(name, fontsize=10)
    return figure


def _draw_legend(axis: Axes, row: Row, unseen: Sequence[str]) -> None:
    """Draw the names in truth or prediction, largest first, with colours, and the accuracy."""
    shares: dict[str, float] = {}
    colors: dict[str, tuple[int, int, int]] = {}
    for part in (row.prediction, row.truth):
        colors |= zip(part.class_names, part.colors, strict=True)
        shares |= {name: max(one, shares.get(name, 0.0)) for name, one in part.coverage.items()}
    present = sorted((name for name in shares if shares[name] > 0), key=lambda name: -shares[name])
    handles = [
        Patch(
            facecolor="#{:02x}{:02x}{:02x}".format(*colors[name]),
            edgecolor="0.4",
            label=(name if len(name) <= 22 else f"{name[:21]}\u2026") + " *" * (name in unseen),
        )
        for name in present[:_LEGEND_ROWS]
    ]
    if len(present) > _LEGEND_ROWS:
        handles.append(Patch(alpha=0, label=f"and {len(present) - _LEGEND_ROWS} more"))
    accuracy = row.accuracy
    axis.legend(
        handles=handles,
        title="no labels" if accuracy is None else f"{100 * accuracy:.0f} % of the pixels right",
        loc="upper left",
        bbox_to_anchor=(0, 1),
        borderaxespad=0,
        alignment="left",
        frameon=False,
        fontsize=8.5,
        title_fontproperties={"size": 9, "weight": "bold"},
        handlelength=1.2,
        handleheight=0.9,
        labelspacing=0.25,
    )
