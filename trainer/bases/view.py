"""A private view of a module that shares the original's storage."""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def _alias(tensor: Tensor) -> Tensor:
    if hasattr(tensor, "__tensor_flatten__"):  # a shell around other tensors, with no storage of its own
        names, context = tensor.__tensor_flatten__()
        inner = {name: _alias(getattr(tensor, name)) for name in names}
        shell: Tensor = type(tensor).__tensor_unflatten__(inner, context, tensor.size(), tensor.stride())  # type: ignore[attr-defined]
        shell._is_param = isinstance(tensor, nn.Parameter)  # type: ignore[attr-defined] # nn.Parameter() would copy scales
        return shell
    alias = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    alias.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())
    if type(tensor) not in (Tensor, nn.Parameter):  # packed weights, with a shape and a scale of their own
        alias = alias.as_subclass(type(tensor))
        vars(alias).update(vars(tensor))
        return alias
    return nn.Parameter(alias, requires_grad=False) if isinstance(tensor, nn.Parameter) else alias


def shared_view(module: nn.Module, shared: Iterable[object] = ()) -> nn.Module:
    """Copy the module tree, not the weights.

    The copy is an ordinary trainable-with-adapters module even where the original was loaded under inference mode,
    whose tensors autograd refuses. Replacing layers in the copy leaves the original as it was.

    Args:
        module: any module; it is not changed.
        shared: what else hangs on it and is not to be copied.

    Returns:
        A copy whose parameters and buffers are aliases on the same storage, none of them requiring a gradient.
    """
    with torch.inference_mode(False):
        memo: dict[int, object] = {id(t): _alias(t) for t in (*module.parameters(), *module.buffers())}
        memo |= {id(thing): thing for thing in shared}
        return copy.deepcopy(module, memo)
