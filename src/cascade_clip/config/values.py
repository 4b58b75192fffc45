"""Value types that settings share, and checks of their ranges."""

import math
from typing import TYPE_CHECKING, Literal

from cascade_clip.config.parts import names_of
from cascade_clip.errors import SettingError

IMAGENET_MEAN = (123.675 / 255, 116.28 / 255, 103.53 / 255)
IMAGENET_STD = (58.395 / 255, 57.12 / 255, 57.375 / 255)

Precision = Literal["fp32", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Resume = Literal["never", "auto", "always"]

if TYPE_CHECKING:  # names that other packages add are known only when the program runs
    Aggregation = str
    Decoder = str
    Protocol = str
    TextEncoder = str
    Upsampler = str
else:
    Aggregation = Literal[names_of("aggregations")]
    Decoder = Literal[names_of("decoders")]
    Protocol = Literal[names_of("protocols")]
    TextEncoder = Literal[names_of("text_encoders")]
    Upsampler = Literal[names_of("upsamplers")]


def check(condition: bool, message: str) -> None:
    """Refuse a setting.

    Raises:
        SettingError: the condition does not hold.
    """
    if not condition:
        raise SettingError(message)


def check_part(kind: str, name: str, setting: str) -> None:
    """Refuse the name of a part that does not exist."""
    names = names_of(kind)
    check(name in names, f"{setting} must be one of {list(names)}, got {name!r}")


def check_least(group: str, settings: object, **lowest: float) -> None:
    """Refuse settings of a group, such as `train.loss`, below the number given for each."""
    for name, low in lowest.items():
        value, allowed = getattr(settings, name), f"at least {low}" if low else "0 or more"
        check(low <= value < math.inf, f"{group}.{name} must be {allowed}, got {value}")


def check_range(group: str, settings: object, **ranges: tuple[float, float]) -> None:
    """Refuse settings of a group outside the lowest and the highest number given for each."""
    for name, (low, high) in ranges.items():
        value = getattr(settings, name)
        check(low <= value <= high, f"{group}.{name} must lie in {low}..{high}, got {value}")


def check_share(group: str, settings: object, *names: str) -> None:
    """Refuse settings of a group below 0, or of 1 and above."""
    for name in names:
        value = getattr(settings, name)
        check(0 <= value < 1, f"{group}.{name} must lie in [0, 1), got {value}")


def check_positive(group: str, settings: object, *names: str) -> None:
    """Refuse settings of a group that are 0, negative or infinite."""
    for name in names:
        value = getattr(settings, name)
        check(0 < value < math.inf, f"{group}.{name} must be positive, got {value}")
