"""How alike generated and real images are."""

import torch
import torch.nn.functional as F
from torch import Tensor

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
