"""Images in the size that a network wants."""

import torch.nn.functional as F
from torch import Tensor


def squeeze(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic with antialias, to the new height and width whatever the shape was: nothing is cropped.

    Args:
        images: [B, 3, H, W] in 0..1.
        size: the new height and width.

    Returns:
        [B, 3, *size], fp32, in 0..1: what bicubic overshoots at edges is cut off.
    """
    return F.interpolate(images.float(), size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
