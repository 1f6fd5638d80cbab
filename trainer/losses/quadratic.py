"""The quadratic penalty of elastic weight consolidation."""

from collections.abc import Mapping

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
    terms = [(fisher[name] * (value - anchor[name]).square()).sum() for name, value in parameters.items()]
    return torch.stack(terms).sum()
