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
    window_batch: int = 1
    """Number of windows that go through the network together."""
    precision: Precision = "fp32"
    """Number format of the network; similarities and scores are always float32."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check(self.window >= 1, f"inference.window must be at least 1, got {self.window}")
        check(1 <= self.stride <= self.window, f"inference.stride must lie in 1..window ({self.window}), got {self.stride}")
        check(self.class_chunk >= 1, f"inference.class_chunk must be at least 1, got {self.class_chunk}")
        check(self.window_batch >= 1, f"inference.window_batch must be at least 1, got {self.window_batch}")
