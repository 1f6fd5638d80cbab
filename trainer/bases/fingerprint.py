"""Which base model is this? A digest that survives another number format."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..adapters.layers import cross_attention_layers

SAMPLES = 64


def fingerprint(unet: nn.Module) -> str:
    """The sha256 over names, shapes and a sample of the values of the cross-attention's keys and values.

    The values are rounded to fp16, so a checkpoint loaded in fp16 or in fp32 is the same model; a merge or a LoRA that
    the user applied makes another one. A coarser format would not do: rounding twice is not rounding once.

    Args:
        unet: before an adapter is put in.

    Returns:
        64 hex digits.
    """
    return _digest((name, unet.get_parameter(f"{name}.weight")) for name in cross_attention_layers(unet))


def autoencoder_fingerprint(autoencoder: nn.Module) -> str:
    """The same over all parameters of an autoencoder, and their number format, which its latents depend on too."""
    return _digest((f"{name} {value.dtype}", value) for name, value in autoencoder.named_parameters())


def _digest(parameters: Iterable[tuple[str, Tensor]]) -> str:
    total = hashlib.sha256()
    for name, parameter in parameters:
        weight = parameter.detach().flatten()
        sample = weight[:: max(1, weight.numel() // SAMPLES)][:SAMPLES]
        bits = sample.half().view(torch.int16).cpu()
        total.update(f"{name} {weight.numel()}".encode() + bits.numpy().tobytes())
    return total.hexdigest()
