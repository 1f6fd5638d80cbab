"""How alike generated images are to real ones, and to their prompt."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ContinualLoraError
from .features import check_feature_sets


def image_similarity(real: Tensor, generated: Tensor) -> Tensor:
    """I2I: `100 * mean_{n,m} cos(real_n, generated_m)`, over all pairs, which is the product of the mean unit vectors.

    Source: Gal et al., arXiv 2208.01618; Kumari et al., arXiv 2212.04488 (image alignment).

    Args:
        real: [N, D], features of the concept's images.
        generated: [M, D], features of what was generated for it.

    Returns:
        Scalar, float64, in -100..100, higher is better.
    """
    check_feature_sets(real, generated)
    mean_real, mean_generated = (F.normalize(x.to(torch.float64), dim=1).mean(0) for x in (real, generated))
    return 100 * (mean_real @ mean_generated)


def text_similarity(text: Tensor, generated: Tensor) -> Tensor:
    """T2I: `100 * mean_m cos(text, generated_m)`.

    Source: Gal et al., arXiv 2208.01618; Kumari et al., arXiv 2212.04488 (text alignment). No encoder knows a concept's
    new token, so they leave it out of the prompt that is encoded: "photo of a dog", not "photo of a <V> dog".

    Args:
        text: [D] or [1, D], the feature of the prompt, of the encoder that encoded the images.
        generated: [M, D], features of what was generated for the prompt.

    Returns:
        Scalar, float64, in -100..100, higher is better; CLIP's are 20 to 35 where the text fits.
    """
    prompt = text[None] if text.dim() == 1 else text
    if prompt.dim() != 2 or len(prompt) != 1:
        raise ContinualLoraError(
            "Generated images are compared to the feature of one prompt, [D] or [1, D].",
            f"The shape is {list(text.shape)}.",
            "Compare the images of each prompt on their own.",
        )
    return image_similarity(prompt, generated)
