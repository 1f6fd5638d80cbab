"""The exact sum of LoRAs: their factors side by side."""

from collections.abc import Sequence

import torch
from torch import Tensor


def cat(
    downs: Sequence[Tensor], ups: Sequence[Tensor], down_weights: Tensor, up_weights: Tensor
) -> tuple[Tensor, Tensor]:
    """`[b_1 up_1 .. b_K up_K] @ [a_1 down_1; ..; a_K down_K] = sum_k a_k b_k up_k @ down_k`.

    Source: peft's `cat`.

    Args:
        downs: K times [r_k, in_features].
        ups: K times [out_features, r_k].
        down_weights: `a`, [K].
        up_weights: `b`, [K].

    Returns:
        `down` [sum r_k, in_features] and `up` [out_features, sum r_k].
    """
    down = torch.cat([a * down for a, down in zip(down_weights, downs, strict=True)], dim=0)
    up = torch.cat([b * up for b, up in zip(up_weights, ups, strict=True)], dim=1)
    return down, up
