"""What a training step minimises (paper Eq. 8).

In: mask logits (B, C, h, w) and labels (B, H, W). Out: sums of losses.
"""

from cascade_clip.losses.mask_losses import mask_loss, present_pairs, upsample
from cascade_clip.losses.objective import StepLoss, step_loss
