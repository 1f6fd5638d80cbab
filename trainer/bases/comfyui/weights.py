"""What a MODEL is, however much of it the host has loaded: its own weights, and what the user put on them."""

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

from ...adapters.joint import PARTS
from ..fingerprint import fingerprint_of, sample_bytes

PREFIX = "diffusion_model."


def model_weights_fingerprint(model: Any, layers: Iterable[str]) -> str:
    """The fingerprint of a MODEL with the LoRAs that the user applied.

    Without any it is that of the weights. A LoRA counts by its own numbers and its strength, not by the weights that
    come out: these differ in the last bits between a GPU and the CPU, and by the host's rounding, so that the same
    MODEL under --lowvram would be another one.

    Args:
        model: MODEL, loaded or not.
        layers: the keys and values in the U-Net, or the parts of its joint projections.
    """
    own = model.get_key_patches(PREFIX)

    def weight_of(layer: str) -> Tensor:
        weight, convert = own[f"{PREFIX}{layer}.weight"][0]
        return _plain(convert(weight))

    weights = {}
    for layer in layers:
        joint, _, part = layer.rpartition(".")
        whole = f"{PREFIX}{layer}.weight" in own
        weights[layer] = weight_of(layer) if whole else weight_of(joint).chunk(len(PARTS))[PARTS.index(part)]
    return fingerprint_of(weights, patches_digest(model.patches))


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
    plain = weight.dequantize() if isinstance(weight, QuantizedTensor) else weight
    return (plain.data if type(plain) in (Tensor, nn.Parameter) else plain).as_subclass(Tensor)


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
