"""The weighted sum of LoRA factors."""

from torch import Tensor


def linear(tensors: Tensor, weights: Tensor) -> Tensor:
    """`sum_k w_k X_k`.

    Applied to `down` and `up` separately it is only near the sum of the updates: `(sum up) @ (sum down)` also holds
    the products of one LoRA's `up` with another's `down`. `cat` is exact.

    Source: task arithmetic, Ilharco et al., arXiv 2212.04089; on factors as peft's `linear`.

    Args:
        tensors: [K, ...], one factor of K LoRAs.
        weights: [K], any sign.

    Returns:
        [...].
    """
    return (weights.view(-1, *[1] * (tensors.dim() - 1)) * tensors).sum(0)
