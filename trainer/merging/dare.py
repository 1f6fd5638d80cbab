"""DARE: drop values at random and rescale the rest, then merge."""

import torch
from torch import Tensor

from .linear import linear
from .ties import disjoint_mean


def drop_and_rescale(tensors: Tensor, density: float, rng: torch.Generator) -> Tensor:
    """`X * m / density`, `m ~ Bernoulli(density)` for each value: unbiased, `E[result] = X`.

    Source: Yu et al., arXiv 2311.03099 (their drop rate is `1 - density`).

    Args:
        tensors: [...].
        density: the chance to stay, in (0, 1]; at 1 the result is `X` to the bit.
        rng: draws the mask on its own device, so that one seed gives one mask wherever the tensors are.

    Returns:
        [...].
    """
    stays = torch.rand(tensors.shape, generator=rng, device=rng.device) < density
    return tensors * stays.to(tensors.device) / density


def dare_linear(tensors: Tensor, weights: Tensor, density: float, rng: torch.Generator) -> Tensor:
    """`linear(drop_and_rescale(X), w)`.

    Source: Yu et al., arXiv 2311.03099; on factors as peft's `dare_linear`.

    Args:
        tensors: [K, ...], one factor of K LoRAs.
        weights: [K], any sign.
        density: the chance of each value to stay, in (0, 1].
        rng: draws what is dropped.

    Returns:
        [...].
    """
    return linear(drop_and_rescale(tensors, density, rng), weights)


def dare_ties(tensors: Tensor, weights: Tensor, density: float, rng: torch.Generator) -> Tensor:
    """`disjoint_mean(drop_and_rescale(X), w)`: DARE's dropping in the place of TIES' trimming.

    Source: Yu et al., arXiv 2311.03099; on factors as peft's `dare_ties`.

    Args:
        tensors: [K, ...], one factor of K LoRAs.
        weights: [K], any sign.
        density: the chance of each value to stay, in (0, 1].
        rng: draws what is dropped.

    Returns:
        [...].
    """
    return disjoint_mean(drop_and_rescale(tensors, density, rng), weights)
