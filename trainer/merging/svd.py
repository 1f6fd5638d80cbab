"""The best LoRA of a given rank for an update that is already in factors."""

import torch
import torch.nn.functional as F
from torch import Tensor


def truncate(down: Tensor, up: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """`U_r sqrt(S_r), sqrt(S_r) V_r^T` of `up @ down = U S V^T`: the nearest update of that rank.

    With `up = Q_u R_u` and `down^T = Q_d R_d` only the small core `R_u R_d^T` goes through the decomposition, so
    [out_features, in_features] is never formed. Peft decomposes the full matrix and leaves `S` on one side; the product
    is the same.

    Source: Eckart and Young, Psychometrika 1 (1936); peft's `svd`.

    Args:
        down: [R, in_features].
        up: [out_features, R].
        rank: r, at least 1; above the rank of the update the rest is zero.

    Returns:
        `down` [r, in_features] and `up` [out_features, r].
    """
    q_up, r_up = torch.linalg.qr(up)
    q_down, r_down = torch.linalg.qr(down.T)
    u, s, v_t = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
    root = s[:rank].sqrt()
    missing = rank - len(root)
    new_down = root[:, None] * (v_t[:rank] @ q_down.T)
    new_up = (q_up @ u[:, :rank]) * root
    return F.pad(new_down, (0, 0, 0, missing)), F.pad(new_up, (0, missing))
