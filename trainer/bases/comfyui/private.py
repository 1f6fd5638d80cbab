"""A private view of a module that the host has loaded in any of its ways.

The host may keep weights on the CPU (--lowvram, --novram, dynamic VRAM), in 8 bits, or packed by a loader of its own,
and put a LoRA on them lazily, by functions that hang on the layers. All of it goes on working in the view, because
every layer is still the host's and makes its weight by the host's means.
"""

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..recast import AFFINE, make_weights_twice
from ..view import shared_view

FUNCTIONS = ("weight_function", "bias_function")
LAZY_PATCHES = ("weight_lowvram_function", "bias_lowvram_function")
# Where dynamic VRAM keeps a layer's copy on the GPU; it may take that away at any time, so the view does without.
DYNAMIC = ("_v", "_v_signature", "_v_weight", "_v_bias", "_pin", "_pin_state", "_pin_registered", "_prefetch")


def private_view(module: nn.Module, device: torch.device, adapted: Collection[str] = ()) -> nn.Module:
    """See the module.

    Args:
        module: loaded by the host; not changed.
        device: where it computes.
        adapted: the layers that will carry an adapter, which lies where their weights do.
    """
    view = shared_view(module, _shared(module))
    for name, layer in view.named_modules():
        _leave_dynamic_vram(layer)
        # Norms are too small to be left on the CPU.
        if name in adapted or not isinstance(layer, (*AFFINE, nn.Embedding)):
            _bring(layer, device)
    make_weights_twice(view, _weight_is_made)
    return view


def _bring(layer: nn.Module, device: torch.device) -> None:
    for name, tensor in layer.named_parameters(recurse=False):
        if tensor.device != device:
            layer.register_parameter(name, nn.Parameter(tensor.to(device), requires_grad=False))


def _weight_is_made(layer: nn.Module, x: Tensor) -> bool:
    weight = layer.weight
    if type(weight) is not nn.Parameter or weight.dtype != x.dtype or weight.device != x.device:
        return True
    return any(getattr(layer, name, None) for name in FUNCTIONS)


def _shared(module: nn.Module) -> Iterator[Any]:
    """The host's own things on the layers: a copy would be one of every LoRA, or of all weights."""
    for layer in module.modules():
        for name in FUNCTIONS:
            yield from getattr(layer, name, ())
        yield from (vars(layer)[name] for name in (*LAZY_PATCHES, *DYNAMIC) if name in vars(layer))


def _leave_dynamic_vram(layer: Any) -> None:
    for name in [name for name in DYNAMIC if name in vars(layer)]:
        delattr(layer, name)
    for function, patch in zip(FUNCTIONS, LAZY_PATCHES, strict=True):
        if lazy := vars(layer).pop(patch, None):
            setattr(layer, function, [lazy, *getattr(layer, function)])
