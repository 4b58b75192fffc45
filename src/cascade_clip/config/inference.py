"""Settings of inference."""

from __future__ import annotations

from dataclasses import dataclass

from cascade_clip.config.values import Precision, check


@dataclass(frozen=True)
class InferenceConfig:
    """How an image of any size becomes mask scores (paper section 4.1)."""

    window: int = 512
    """Side of the square window, in pixels of the resized image."""
    stride: int = 426
    """Step between windows; the last one in each direction is shifted back inside the image."""
    score_size: int = 0
    """Side to which mask logits of a window are upsampled before the sigmoid (the training crop); 0 means `window`."""
    resize: bool = True
    """Resize the short side to `window` first, up or down; otherwise the image is taken as it is."""
    calibration: float = 0.1
    """Subtracted from the score of every seen class (0 after transductive or supervised training)."""
    class_chunk: int = 16
    """Number of classes whose full-size scores are held at once; changes memory, never the result."""
    max_memory: int = 0
    """Mebibytes that full-size scores may take at once, instead of a fixed number of classes; 0 keeps `class_chunk`."""
    window_batch: int = 1
    """Number of windows that go through the network together."""
    precision: Precision = "fp32"
    """Number format of the network; similarities and scores are always float32."""
    flip: bool = False
    """Test-time augmentation: average the scores with those of the mirrored image."""
    scales: tuple[float, ...] = (1.0,)
    """Test-time augmentation: sizes of the short side, as parts of `window`, whose scores are averaged."""
    background: str = ""
    """Background words ("sky, wall, tree"), a file of them, or `scenery`: they compete with the class names and all mean `background`.
    Empty: no background words."""
    threshold: float | None = None
    """Pixels whose best score lies below are `background` if there is one, else unlabelled; null: every pixel gets a name."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check(self.window >= 1, f"inference.window must be at least 1, got {self.window}")
        check(1 <= self.stride <= self.window, f"inference.stride must lie in 1..window ({self.window}), got {self.stride}")
        check(self.class_chunk >= 1, f"inference.class_chunk must be at least 1, got {self.class_chunk}")
        check(self.max_memory >= 0, f"inference.max_memory must be 0 (unset) or more mebibytes, got {self.max_memory}")
        check(len(self.scales) > 0 and min(self.scales) > 0, f"inference.scales must be positive numbers, got {list(self.scales)}")
        check(self.threshold is None or -1 <= self.threshold <= 1, f"inference.threshold must lie in -1..1, got {self.threshold}")
        check(self.window_batch >= 1, f"inference.window_batch must be at least 1, got {self.window_batch}")
