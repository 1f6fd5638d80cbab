"""A private view of a module that shares the original's storage."""

import copy

import torch
from torch import Tensor, nn


def _alias(tensor: Tensor) -> Tensor:
    alias = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    alias.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())
    return nn.Parameter(alias, requires_grad=False) if isinstance(tensor, nn.Parameter) else alias


def shared_view(module: nn.Module) -> nn.Module:
    """Copy the module tree, not the weights.

    The copy is an ordinary trainable-with-adapters module even where the original was loaded under inference mode,
    whose tensors autograd refuses. Replacing layers in the copy leaves the original as it was.

    Args:
        module: any module; it is not changed.

    Returns:
        A copy whose parameters and buffers are aliases on the same storage, none of them requiring a gradient.
    """
    with torch.inference_mode(False):
        memo: dict[int, object] = {id(t): _alias(t) for t in (*module.parameters(), *module.buffers())}
        return copy.deepcopy(module, memo)
