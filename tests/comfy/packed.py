"""A stand-in for a loader of quantized files, written by the facts of what such loaders do to the host's models.

A weight is a tensor of bytes with a shape of its own, each row a scale in 4 bytes and then its numbers in 8 bits; a
layer unpacks it in every pass; a LoRA hangs on the weight until then; and the MODEL has no `cached_patcher_init`.
"""

# ruff: noqa: TID251 (runs inside ComfyUI)

import collections
from typing import Any

import comfy.lora
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.utils
import torch
from torch import Tensor, nn

Backup = collections.namedtuple("Backup", ["weight", "inplace_update"])


class Packed(Tensor):
    """Bytes [out, 4 + in] that call themselves [out, in]."""

    packed_shape: torch.Size
    patches: list[Any]

    @property
    def shape(self) -> torch.Size:
        return self.packed_shape

    def to(self, *args: Any, **kwargs: Any) -> "Packed":
        return packed(super().to(*args, **kwargs), self.patches)

    def clone(self, *_: Any, **__: Any) -> "Packed":
        return self

    def detach(self) -> "Packed":
        return self


def packed(data: Tensor, patches: list[Any]) -> Packed:
    plain = data.as_subclass(Tensor)
    alias = plain.view(plain.shape).as_subclass(Packed)
    alias.packed_shape, alias.patches = torch.Size((plain.shape[0], plain.shape[1] - 4)), patches
    return alias


def pack(weight: Tensor) -> Packed:
    """Round each row to 255 steps."""
    scale = weight.float().abs().amax(1, keepdim=True).clamp_min(1e-8) / 127
    numbers = (weight.float() / scale).round().to(torch.int8)
    return packed(torch.cat([scale.view(torch.uint8), numbers.view(torch.uint8)], 1), [])


def unpack(weight: Packed) -> Tensor:
    """[out, in] in float32."""
    plain = weight.as_subclass(Tensor)
    return plain[:, :4].contiguous().view(torch.float32) * plain[:, 4:].view(torch.int8).float()


class Operations(comfy.ops.manual_cast):
    """The host's layers, linear ones with packed weights."""

    class Linear(comfy.ops.manual_cast.Linear):
        def __init__(self, in_features: int, out_features: int, **_: Any) -> None:
            nn.Module.__init__(self)
            self.in_features, self.out_features = in_features, out_features
            self.weight, self.bias = None, None

        def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *_: Any) -> None:
            self.weight = nn.Parameter(state[f"{prefix}weight"], requires_grad=False)
            if f"{prefix}bias" in state:
                self.bias = nn.Parameter(state[f"{prefix}bias"], requires_grad=False)

        def forward_comfy_cast_weights(self, x: Tensor) -> Tensor:
            weight = unpack(self.weight).to(x.device, x.dtype)
            for patches, key in self.weight.patches:
                weight = comfy.lora.calculate_weight(patches, weight, key)
            return nn.functional.linear(x, weight, None if self.bias is None else self.bias.to(x.dtype))


class PackedPatcher(comfy.model_patcher.ModelPatcher):
    """Hangs a LoRA on the packed weights, however much is loaded."""

    def load(self, *args: Any, force_patch_weights: bool = False, **kwargs: Any) -> Any:
        return super().load(*args, force_patch_weights=True, **kwargs)

    def patch_weight_to_device(self, key: str, *args: Any, **kwargs: Any) -> Any:
        weight = comfy.utils.get_attr(self.model, key)
        if not isinstance(weight, Packed):
            return super().patch_weight_to_device(key, *args, **kwargs)
        if key in self.patches:
            self.backup.setdefault(key, Backup(weight, False))
            comfy.utils.set_attr_param(self.model, key, packed(weight, [(self.patches[key], key)]))
        return None


def load_packed(weights: dict[str, Tensor]) -> Any:
    """A MODEL of a U-Net's weights, its linear layers packed."""
    state = {name: pack(value) if value.ndim == 2 else value.float() for name, value in weights.items()}
    options = {"custom_operations": Operations, "dtype": torch.float32}
    plain = comfy.sd.load_diffusion_model_state_dict(state, model_options=options)
    device = comfy.model_management.get_torch_device()
    return PackedPatcher(plain.model, load_device=device, offload_device=torch.device("cpu"))
