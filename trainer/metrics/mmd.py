"""The distance between two sets of images: maximum mean discrepancy of their features."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .features import check_feature_sets


def mmd_squared(x: Tensor, y: Tensor) -> Tensor:
    """`mean k(x, x') + mean k(y, y') - 2 mean k(x, y)`, `k(x, y) = (x.y + 1)^2`, all pairs (biased, V-statistic).

    Since `(x.y + 1)^2 = <a a^T, b b^T>` with `a = [x, 1]`, `b = [y, 1]`, this is `||mean a a^T - mean b b^T||_F^2`, and
    that is what is computed: never negative, exactly 0 for the same set, no difference of near-equal sums.

    Source: Gretton et al., JMLR 13 (2012), equation 5; kernel: Jha et al., arXiv 2410.00700, which leaves the
    estimator open. Biased [D]: only then is the root a distance.

    Args:
        x: [N, D], L2-normalized features.
        y: [M, D], the same.

    Returns:
        Scalar, float64, in 0..8.
    """
    return _mean_difference(x, y).square().sum()


def mmd(x: Tensor, y: Tensor) -> Tensor:
    """`sqrt(mmd_squared(x, y))`, a distance: symmetric, with the triangle inequality.

    Args:
        x: [N, D], L2-normalized features.
        y: [M, D], the same.

    Returns:
        Scalar, float64, in 0..2.83.
    """
    return mmd_squared(x, y).sqrt()


def _mean_difference(x: Tensor, y: Tensor) -> Tensor:
    """The difference of the two sets' mean embeddings, [D + 1, D + 1]."""
    check_feature_sets(x, y)
    return _mean_embedding(x) - _mean_embedding(y)


def _mean_embedding(x: Tensor) -> Tensor:
    """`mean a a^T`, `a = [x, 1]`: [N, D] to [D + 1, D + 1] in float64."""
    a = F.pad(x.to(torch.float64), (0, 1), value=1.0)
    return a.T @ a / len(a)
