"""Which base model is this? A digest that survives another number format."""

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ..adapters.layers import cross_attention_layers

SAMPLES = 64


def fingerprint(unet: nn.Module) -> str:
    """The fingerprint of a U-Net by the keys and values of its cross-attention.

    Args:
        unet: before an adapter is put in.
    """
    return fingerprint_of({name: unet.get_parameter(f"{name}.weight") for name in cross_attention_layers(unet)})


def fingerprint_of(weights: Mapping[str, Tensor], changes: bytes = b"") -> str:
    """The sha256 over names, shapes and a sample of the values.

    The values are rounded to fp16, so a checkpoint loaded in fp16 or in fp32 is the same model; a merge makes another
    one. A coarser format would not do: rounding twice is not rounding once.

    Args:
        weights: of the keys and values, by layer, in the model's order.
        changes: what names the LoRAs that the user applied; empty for none.

    Returns:
        64 hex digits.
    """
    return _digest(weights.items(), changes)


def autoencoder_fingerprint(autoencoder: nn.Module) -> str:
    """The same over all parameters of an autoencoder, and their number format, which its latents depend on too."""
    return _digest((f"{name} {value.dtype}", value) for name, value in autoencoder.named_parameters())


def _digest(tensors: Iterable[tuple[str, Tensor]], more: bytes = b"") -> str:
    total = hashlib.sha256()
    for name, tensor in tensors:
        total.update(f"{name} {tensor.numel()}".encode() + sample_bytes(tensor, torch.float16))
    total.update(more)
    return total.hexdigest()


def sample_bytes(tensor: Tensor, dtype: torch.dtype) -> bytes:
    """At most 64 of the values, evenly spread, in a number format of 16 or 32 bits."""
    values = tensor.data.flatten()  # also of weights that a host moved outside of its inference mode
    sample = values[:: max(1, values.numel() // SAMPLES)][:SAMPLES].to(dtype)
    return sample.view(torch.int16 if dtype.itemsize == 2 else torch.int32).cpu().numpy().tobytes()
