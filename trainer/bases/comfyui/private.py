"""A private view of a module that the host has loaded in any of its ways.

The host may keep weights on the CPU (--lowvram, --novram, dynamic VRAM), in 8 bits or less, with scales or without, or
packed by a loader of its own, and put a LoRA on them lazily, by functions that hang on the layers. All of it goes on
working in the view, because every layer is still the host's and makes its weight by the host's means.
"""

import math
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..recast import AFFINE, make_weights_twice
from ..view import shared_view

# Where the classes are that make a weight by a cast, if it is not packed.
CASTING = ("comfy.ops", "torch.nn.modules.linear", "torch.nn.modules.conv")
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
FUNCTIONS = ("weight_function", "bias_function")
LAZY_PATCHES = ("weight_lowvram_function", "bias_lowvram_function")
# Where dynamic VRAM keeps a layer's copy on the GPU; it may take that away at any time, so the view does without.
DYNAMIC = (
    *("_v", "_v_signature", "_v_weight", "_v_bias", "_prefetch"),
    *("_pin", "_pin_state", "_pin_registered", "_pin_balancer_entry"),
    *("dynamic_vbars", "dynamic_pins"),  # of all layers, on the text encoders as a whole
)


def private_view(
    module: nn.Module, device: torch.device, adapted: Collection[str] = (), room: float = 0.0
) -> nn.Module:
    """See the module.

    Args:
        module: loaded by the host; not changed.
        device: where it computes.
        adapted: the layers that will carry an adapter, which lies where their weights do.
        room: bytes of weights that the view may bring to the device for itself; see `memory.room`.
    """
    view = shared_view(module, _shared(module))
    optional = []
    for name, layer in view.named_modules():
        _leave_dynamic_vram(layer)
        if hasattr(layer, "in_features") and hasattr(layer, "comfy_cast_weights"):
            _be_linear(layer)
        # Norms are too small to be left on the CPU, and text encoders compute where their table of words is.
        if name in adapted or not isinstance(layer, AFFINE):
            room -= _bring(layer, device)
        else:
            optional.append(layer)
    for layer in optional:
        room -= _bring(layer, device, room)
    make_weights_twice(view, _weight_is_made, _weight_is_cast)
    return view


def _bring(layer: nn.Module, device: torch.device, room: float = math.inf) -> int:
    """A layer's weights, as the host would hold them there, if there is room; returns the bytes they took."""
    away = {name: tensor for name, tensor in layer.named_parameters(recurse=False) if tensor.device != device}
    dtypes = {name: model_dtype(layer, name, tensor) for name, tensor in away.items()}
    size = sum(_bytes(tensor, dtypes[name]) for name, tensor in away.items())
    if size > room:
        size, away = 0, {}
    for name, tensor in away.items():
        layer.register_parameter(name, nn.Parameter(tensor.to(device, dtypes[name]), requires_grad=False))
    _put_on_lora(
        layer, {name for name, tensor in away.items() if type(tensor) is nn.Parameter and dtypes[name] in FLOATS}
    )
    return size


@torch.no_grad()
def _put_on_lora(layer: Any, brought: Collection[str]) -> None:
    """The host's lazy patches: onto what was brought once and for all, else in every call; 8 bits would round them."""
    for function, patch in zip(FUNCTIONS, LAZY_PATCHES, strict=True):
        name = function.removesuffix("_function")
        if lazy := vars(layer).pop(patch, None):
            if name in brought:
                layer.register_parameter(name, nn.Parameter(lazy(getattr(layer, name)), requires_grad=False))
            else:
                setattr(layer, function, [lazy, *getattr(layer, function)])


def model_dtype(layer: nn.Module, name: str, tensor: Tensor) -> torch.dtype:
    """With dynamic VRAM the host leaves weights as the file has them, and casts them when it brings them."""
    own: torch.dtype | None = getattr(layer, f"{name}_comfy_model_dtype", None)
    return own if own is not None and type(tensor) is nn.Parameter else tensor.dtype


def _bytes(tensor: Tensor, dtype: torch.dtype) -> int:
    """A weight with scales is a shell around its numbers and its scales, which keep their formats."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return tensor.numel() * dtype.itemsize
    inner = [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
    return sum(_bytes(part, part.dtype) for part in inner)


def _weight_is_made(layer: nn.Module, x: Tensor) -> bool:
    weight = layer.weight
    if type(weight) is not nn.Parameter or weight.dtype != x.dtype or weight.device != x.device:
        return True
    return any(getattr(layer, name, None) for name in FUNCTIONS)


def _weight_is_cast(layer: nn.Module, x: Tensor) -> bool:
    """It is there already, and of a class that does nothing else; one of another pack's may."""
    tensors = [*layer.parameters(recurse=False)]
    plain = all(
        type(tensor) is nn.Parameter and tensor.dtype in FLOATS and tensor.device == x.device for tensor in tensors
    )
    known = type(layer).__module__ in CASTING
    return plain and known and not any(getattr(layer, name, None) for name in FUNCTIONS)


def _shared(module: nn.Module) -> Iterator[Any]:
    """The host's own things on the layers: a copy would be one of every LoRA, or of all weights."""
    for layer in module.modules():
        for name in FUNCTIONS:
            yield from getattr(layer, name, ())
        yield from (vars(layer)[name] for name in (*LAZY_PATCHES, *DYNAMIC) if name in vars(layer))


def _be_linear(layer: Any) -> None:
    """Layers that multiply in 8 bits round their input, in place, as their weights are rounded; some are not torch's.

    Here all are torch's, since peft and we go by the class. And where something is done to a weight, the host unpacks
    it first, into the input's number format, and then multiplies in that; so nothing is done to it, but called. Older
    hosts do the same for weights without scales while a layer is in training.
    """
    if not isinstance(layer, nn.Linear):
        layer.__class__ = type(type(layer).__name__, (type(layer), nn.Linear), {})
    weight = layer.weight
    if hasattr(weight, "__tensor_flatten__") or (weight.is_floating_point() and weight.dtype not in FLOATS):
        layer.weight_function = [*layer.weight_function, _nothing]
        layer.training = True


def _nothing(weight: Tensor) -> Tensor:
    return weight


def _leave_dynamic_vram(layer: Any) -> None:
    for name in [name for name in DYNAMIC if name in vars(layer)]:
        delattr(layer, name)
