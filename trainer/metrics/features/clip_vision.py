"""The image encoder that the host has loaded: a CLIP_VISION object, used by what it can do.

The host loads DINOv2 as CLIP_VISION, too; only what projects its feature to where CLIP's text is, is called CLIP.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ContinualLoraError

_BATCH_SIZE = 32


class ClipVision(Protocol):
    """What ComfyUI's Load CLIP Vision gives."""

    def encode_image(self, image: Tensor, crop: bool) -> object:
        """Images [B, H, W, 3] in 0..1 to an object whose `image_embeds` are [B, D]."""
        ...


class HostClipVision:
    """The model's feature of a whole image, of CLIP the projected one, L2-normalized; on the CPU and in fp32.

    Images are squeezed to a square by the host, not cropped, as our own encoders do.

    Args:
        clip_vision: the host's object.
    """

    def __init__(self, clip_vision: ClipVision) -> None:
        self._clip_vision = clip_vision
        network = getattr(clip_vision, "model", clip_vision)
        is_clip = isinstance(getattr(network, "visual_projection", None), nn.Module)
        self.name = f"{'CLIP' if is_clip else type(network).__name__} (CLIP_VISION)"

    @torch.inference_mode()  # as the host's nodes run: it may move the network to the GPU
    def __call__(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in 0..1 to features [B, D] of L2 norm 1, one batch at a time.

        Raises:
            ContinualLoraError: The model has no such feature.
        """
        return torch.cat([self._encode(batch) for batch in torch.split(images, _BATCH_SIZE)])

    def _encode(self, images: Tensor) -> Tensor:
        """One batch."""
        output = self._clip_vision.encode_image(images.movedim(1, -1).contiguous(), crop=False)
        features = getattr(output, "image_embeds", None)
        if not isinstance(features, Tensor) or features.dim() != 2:
            came = f"shape {list(features.shape)}" if isinstance(features, Tensor) else "none"
            raise ContinualLoraError(
                "Images are compared by one feature vector each: the `image_embeds` of a CLIP_VISION model, [B, D].",
                f"This model gives {came}.",
                "Load a CLIP vision model, such as CLIP ViT-L or ViT-H; SigLIP models give no such vector here.",
            )
        return F.normalize(features.float().cpu(), dim=1)
