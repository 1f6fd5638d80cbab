"""What a MODEL is, however much of it the host has loaded: its own weights, and what the user put on them."""

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from comfy import model_management
from comfy.model_patcher import get_key_weight
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

from ...adapters.joint import PARTS
from ...errors import ContinualLoraError
from ..fingerprint import fingerprint_of, sample_bytes
from .private import model_dtype

PREFIX = "diffusion_model."


def check_layers(model: Any) -> None:
    """Whether a MODEL's layers can be trained through.

    Raises:
        ContinualLoraError: a LoRA is put into them for each pass, or they multiply in fp8, whatever is asked of them.
    """
    if model.injections:
        raise ContinualLoraError(
            "MODEL should carry its LoRAs as Load LoRA puts them on.",
            f"Something is put into its layers for each pass: {', '.join(model.injections)}.",
            "Use Load LoRA instead of Load LoRA (Bypass).",
        )
    config = model.model.model_config
    in_fp8 = getattr(config, "scaled_fp8", None) is not None and config.optimizations.get("fp8")  # older hosts alone
    if in_fp8 and model_management.supports_fp8_compute(model.load_device):
        raise ContinualLoraError(
            "The layers of MODEL should multiply in a number format that can be trained through.",
            "They are of a file in scaled fp8, by which this version of ComfyUI multiplies in fp8 on this GPU.",
            "Update ComfyUI (0.28.0 will do), or load the same model from a file in another format.",
        )


def model_weights_fingerprint(model: Any, layers: Iterable[str]) -> str:
    """The fingerprint of a MODEL with the LoRAs that the user applied.

    Without any it is that of the weights. A LoRA counts by its own numbers and its strength, not by the weights that
    come out: these differ in the last bits between a GPU and the CPU, and by the host's rounding, so that the same
    MODEL under --lowvram would be another one.

    Args:
        model: MODEL, loaded or not.
        layers: the keys and values in the U-Net, or the parts of its joint projections.
    """
    modules = dict(model.model.named_modules())
    weights = {}
    for layer in layers:
        joint, _, part = layer.rpartition(".")
        if f"{PREFIX}{layer}" in modules:
            weights[layer] = _own_weight(model, layer)
        else:
            weights[layer] = _own_weight(model, joint).chunk(len(PARTS))[PARTS.index(part)]
    return fingerprint_of(weights, patches_digest(model.patches))


@torch.no_grad()
def _own_weight(model: Any, layer: str) -> Tensor:
    """Without the LoRAs; not by the host's `get_key_patches`, which looks for layers' scales where they are not."""
    key = f"{PREFIX}{layer}.weight"
    weight, _, convert = get_key_weight(model.model, key)
    for backup in (model.backup, model.hook_backup):
        weight = backup[key][0] if key in backup else weight
    weight = weight.to(model_dtype(model.model.get_submodule(f"{PREFIX}{layer}"), "weight", weight))
    return _plain(convert(weight) if convert and not isinstance(weight, QuantizedTensor) else weight)


def patches_digest(patches: dict[str, list[Any]]) -> bytes:
    """Of all LoRAs and other patches on a MODEL, in their order; empty where there are none."""
    if not patches:
        return b""
    total = hashlib.sha256()
    for key in sorted(patches):
        total.update(key.encode())
        for patch in patches[key]:
            _add(total, patch)
    return total.digest()


def _plain(weight: Tensor) -> Tensor:
    if isinstance(weight, QuantizedTensor):  # in fp32, as its scales are: the host computes in what suits the device
        weight = weight.to(torch.float32).dequantize()
    return (weight.data if type(weight) in (Tensor, nn.Parameter) else weight).as_subclass(Tensor)


def _add(total: Any, value: Any) -> None:
    """Numbers, samples of tensors, and names, wherever they are in a patch; the host's adapters hold `weights`."""
    if isinstance(value, Tensor):
        total.update(f"{list(value.shape)}".encode() + sample_bytes(_plain(value), torch.float32))
    elif isinstance(value, list | tuple):
        total.update(f"[{len(value)}".encode())
        for part in value:
            _add(total, part)
    elif hasattr(value, "weights"):
        _add(total, (type(value).__name__, value.weights))
    elif value is None or isinstance(value, bool | int | float | str):
        total.update(f"{value!r};".encode())
    else:
        total.update(f"{getattr(value, '__qualname__', type(value).__name__)};".encode())
