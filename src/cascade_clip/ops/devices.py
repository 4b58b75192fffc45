"""Devices and number formats."""

import torch

from cascade_clip.config import Device, Precision
from cascade_clip.errors import SettingError


def find_device(device: Device) -> torch.device:
    """The device of that name; `auto` takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        ValueError: a device that this machine or this build of torch does not have.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device == "auto":
        return torch.device(next(name for name, there in available.items() if there))
    if device not in available:
        raise SettingError(f"unknown device {device!r}; choose auto, cpu, cuda or mps")
    if not available[device]:
        there = [name for name, found in available.items() if found]
        raise SettingError(f"device {device} is not available here; choose one of {there}")
    return torch.device(device)


def autocast_type(precision: Precision) -> torch.dtype:
    """The type of matrix products for a precision setting."""
    return torch.float16 if precision == "fp16" else torch.bfloat16
