"""TIES: trim small values, elect a sign for each entry, average the values that agree with it."""

import torch
from torch import Tensor

from .linear import linear


def trim(tensors: Tensor, density: float) -> Tensor:
    """Keep the `int(density * n)` largest of each tensor's `n` values by magnitude, and zero the rest.

    Source: Yadav et al., arXiv 2306.01708, algorithm 1, step 1.

    Args:
        tensors: [K, ...], trimmed one by one.
        density: the share that stays, in (0, 1].

    Returns:
        [K, ...].
    """
    flat = tensors.flatten(1)
    largest = flat.abs().topk(int(density * flat.shape[1]), dim=1).indices
    return torch.zeros_like(flat).scatter(1, largest, flat.gather(1, largest)).view_as(tensors)


def disjoint_mean(tensors: Tensor, weights: Tensor) -> Tensor:
    """`sum_{k in S} w_k X_k / max(|S|, 1)`, S = those with `sign(X_k) = sign(sum_m X_m)`, entry by entry.

    Zeros agree with neither sign. The election is by total mass and before the weights, as in peft: a negative weight
    subtracts what a LoRA has learned and does not turn its vote.

    Source: Yadav et al., arXiv 2306.01708, algorithm 1, steps 2 and 3.

    Args:
        tensors: [K, ...].
        weights: [K], any sign.

    Returns:
        [...].
    """
    elected = torch.where(tensors.sum(0) >= 0, 1, -1)
    agrees = tensors.sign() == elected
    return linear(tensors * agrees, weights) / agrees.sum(0).clamp(min=1)


def ties(tensors: Tensor, weights: Tensor, density: float) -> Tensor:
    """`disjoint_mean(trim(X, density), w)`.

    It is a mean over the LoRAs that agree, not a sum: weights of 1 give the strength of one LoRA.

    Source: Yadav et al., arXiv 2306.01708, algorithm 1; on factors as peft's `ties`.

    Args:
        tensors: [K, ...], one factor of K LoRAs.
        weights: [K], any sign.
        density: the share of values that stays, in (0, 1].

    Returns:
        [...].
    """
    return disjoint_mean(trim(tensors, density), weights)
