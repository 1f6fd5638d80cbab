"""The kernel inception distance of two sets of images, over the features of any encoder."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ContinualLoraError
from .features import check_feature_sets


def kid(x: Tensor, y: Tensor, *, subset_size: int = 0, num_subsets: int = 100, seed: int = 0) -> Tensor:
    """`mean_{n != n'} k(x, x') + mean_{m != m'} k(y, y') - 2 mean k(x, y)`, `k(x, y) = (x.y / D + 1)^3` (unbiased).

    The mean over random subsets, drawn without replacement, of `subset_size` images from each side. 0 stands for
    min(N, M); if that takes all images of both sides there is one subset.

    Source: Binkowski et al., arXiv 1801.01401, on features of Inception. Our encoders give unit vectors, whose
    products the division by D would hide: they are scaled to norm sqrt(D) first, so `k(x, y) = (cos(x, y) + 1)^3` [D].

    Args:
        x: [N, D], features; N at least 2.
        y: [M, D], the same.
        subset_size: images from each side in a subset, 2..min(N, M), or 0.
        num_subsets: how many subsets, at least 1.
        seed: what the subsets are drawn with.

    Returns:
        Scalar, float64, in -8..16, lower is better; below 0 by chance when the sets are alike. Tables often give it
        times 1000.
    """
    check_feature_sets(x, y)
    size = subset_size or min(len(x), len(y))
    _check_subsets(len(x), len(y), size, num_subsets)
    x, y = (F.normalize(features.to(torch.float64), dim=1) for features in (x, y))
    if size == len(x) == len(y):
        return _mmd_squared_unbiased(x, y)
    rng = torch.Generator().manual_seed(seed)
    subsets = [_mmd_squared_unbiased(_draw(x, size, rng), _draw(y, size, rng)) for _ in range(num_subsets)]
    return torch.stack(subsets).mean()


def _mmd_squared_unbiased(x: Tensor, y: Tensor) -> Tensor:
    """One subset: the U-statistic of unit vectors, [n, D] and [n, D] to a scalar."""
    return _mean_of_pairs(x) + _mean_of_pairs(y) - 2 * _kernel(x, y).mean()


def _mean_of_pairs(x: Tensor) -> Tensor:
    """The mean kernel of two different images of one set."""
    kernel = _kernel(x, x)
    return (kernel.sum() - kernel.diagonal().sum()) / (len(x) * (len(x) - 1))


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """`(x.y + 1)^3`, [n, D] and [m, D] to [n, m]."""
    return (x @ y.T + 1) ** 3


def _draw(x: Tensor, size: int, rng: torch.Generator) -> Tensor:
    """`size` different rows."""
    return x[torch.randperm(len(x), generator=rng)[:size].to(x.device)]


def _check_subsets(num_x: int, num_y: int, size: int, num_subsets: int) -> None:
    """Without two images there is no pair, and a subset cannot be larger than a set."""
    if size < 2 or size > min(num_x, num_y) or num_subsets < 1:
        raise ContinualLoraError(
            "KID compares at least 2 images on each side, in 1 subset or more that are no larger than either side.",
            f"There are {num_x} and {num_y} images, for {num_subsets} subsets of {size}.",
            "Give at least 2 images on each side, and take a subset size of 0, which fits them.",
        )
