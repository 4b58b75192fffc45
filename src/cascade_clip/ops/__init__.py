"""Kernels without policy: attention, resizing, upsampling, running argmax, SSIM, devices.

In: tensors. Out: tensors.
"""

from cascade_clip.ops.attention import attend
from cascade_clip.ops.devices import autocast_type, find_device
from cascade_clip.ops.resize import (
    normalise,
    resize_image,
    resize_mask,
    resize_shape,
    short_side_shape,
)
from cascade_clip.ops.running_argmax import RunningBest, best_by_label, coarse_size, first_best
from cascade_clip.ops.ssim import similarity_map
from cascade_clip.ops.upsampling import (
    WindowImage,
    upsample_bilinear,
    upsample_guided,
    window_guide,
)
