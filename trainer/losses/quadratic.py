"""The quadratic penalty of elastic weight consolidation."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def quadratic_penalty(
    parameters: Mapping[str, Tensor], anchor: Mapping[str, Tensor], fisher: Mapping[str, Tensor]
) -> Tensor:
    """sum_i F_i (theta_i - theta*_i)^2, without the factor 1/2.

    Source: Kirkpatrick et al., arXiv 1612.00796, eq. 3; Jha et al., arXiv 2410.00700.

    Args:
        parameters: theta by name.
        anchor: theta*, where the last task ended; the same names and shapes.
        fisher: F >= 0; the same names and shapes.

    Returns:
        A scalar >= 0; 0 at the anchor.
    """
    names = list(parameters)
    own = [parameters[name] for name in names]
    penalty: Tensor = _Quadratic.apply([anchor[n] for n in names], [fisher[n] for n in names], *own)  # type: ignore[no-untyped-call]
    return penalty


class _Quadratic(torch.autograd.Function):
    """The same, with its gradient 2 F (theta - theta*): a few kernels for all tensors, since a GPU waits for each."""

    @staticmethod
    def forward(ctx: Any, anchor: list[Tensor], fisher: list[Tensor], *theta: Tensor) -> Tensor:  # noqa: ANN401
        moves = torch._foreach_sub(theta, anchor)
        weighted = torch._foreach_mul(moves, fisher)
        ctx.save_for_backward(*weighted)
        terms = torch._foreach_mul(weighted, moves)
        return torch.stack(torch._foreach_norm(terms, 1)).sum()  # none is negative, so the norm is the sum

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        return None, None, *torch._foreach_mul(ctx.saved_tensors, 2 * gradients[0])
