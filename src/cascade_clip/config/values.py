"""What settings share: value types and checks."""

from __future__ import annotations

from typing import Literal

from cascade_clip.errors import SettingError

IMAGENET_MEAN = (123.675 / 255, 116.28 / 255, 103.53 / 255)
IMAGENET_STD = (58.395 / 255, 57.12 / 255, 57.375 / 255)

Precision = Literal["fp32", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Protocol = Literal["inductive", "transductive", "supervised"]
Resume = Literal["never", "auto", "always"]


def check(condition: bool, message: str) -> None:
    """Refuse a setting.

    Raises:
        ValueError: the condition does not hold.
    """
    if not condition:
        raise SettingError(message)
