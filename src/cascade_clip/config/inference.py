"""Settings of inference."""

from dataclasses import dataclass
from typing import Literal

from cascade_clip.config.values import (
    Precision,
    Upsampler,
    check,
    check_least,
    check_part,
    check_positive,
    check_range,
)


@dataclass(frozen=True)
class InferenceConfig:
    """How an image of any size becomes mask scores (paper section 4.1)."""

    window: int = 512
    """Side of the square window, in pixels of the resized image."""
    stride: int = 426
    """Step between windows; the last one in each direction is shifted back inside the image."""
    upsampler: Upsampler = "bilinear"
    """How mask logits go from patches to pixels. `bilinear`: as published; `guided`: a guided
    filter, which lets borders of masks follow borders of colours (fast form: fitted at patch
    resolution, applied to every pixel; nothing is trained)."""
    guide_radius: int = 1
    """Radius of the guided filter in patches (only with `upsampler: guided`)."""
    guide_epsilon: float = 0.003
    """Variance of colours (0..1) below which an area counts as plain (only with `upsampler:
    guided`); smaller values follow colours more closely."""
    score_size: int = 0
    """Side to which a window's mask logits are upsampled before the sigmoid; 0 means `window`."""
    resize: bool = True
    """Resize the short side to `window` first, up or down; otherwise the image keeps its size."""
    calibration: float = 0.1
    """Subtracted from scores of seen classes (0 after transductive or supervised training)."""
    combine: Literal["sum", "confidence"] = "sum"
    """How a window's stages become one map of mask logits. `sum`: added, as published;
    `confidence`: at every patch a stage counts more the larger the margin between its two most
    probable classes (the weights add up to the number of stages). A class's mask then depends on
    which other classes are asked for."""
    class_chunk: int = 16
    """Number of classes whose full-size scores are held at once; never changes the result."""
    max_memory: int = 0
    """Mebibytes of full-size scores held at once, instead of `class_chunk`; 0 keeps that."""
    window_batch: int = 1
    """Number of windows that go through the network together."""
    precision: Precision = "fp32"
    """Number format of the network; similarities and scores are always float32."""
    flip: bool = False
    """Test-time augmentation: average the scores with those of the mirrored image."""
    scales: tuple[float, ...] = (1.0,)
    """Test-time augmentation: short sides, as parts of `window`, whose scores are averaged."""
    background: str = ""
    """Background words ("sky, wall, tree"), a file of them, or `scenery`: they compete with the
    class names, and their pixels become `background`. Empty: no background words."""
    threshold: float | None = None
    """Pixels whose best score is lower become `background`, else unlabelled; null: none do."""

    def __post_init__(self) -> None:
        check_part("upsamplers", self.upsampler, "inference.upsampler")
        check_least("inference", self, window=1, guide_radius=1, class_chunk=1, window_batch=1)
        check_least("inference", self, max_memory=0)
        check_positive("inference", self, "guide_epsilon")
        sides = (self.window, self.score_size, self.window * max(self.scales, default=1))
        check(
            min(sides) >= 0 and max(sides) <= 16384,
            f"window, score_size and window * scales must lie in 0..16384, got {sides}",
        )
        check(
            1 <= self.stride <= self.window,
            f"inference.stride must lie in 1..window ({self.window}), got {self.stride}",
        )
        positive = len(self.scales) > 0 and min(self.scales) > 0
        check(positive, f"inference.scales must be positive numbers, got {list(self.scales)}")
        if self.threshold is not None:
            check_range("inference", self, threshold=(-1, 1))
