"""Where adapters sit."""

import re

from torch import nn

from ..errors import ContinualLoraError

# The layers that turn the prompt into keys and values (Jha et al., arXiv 2410.00700; Kumari et al., arXiv 2212.04488).
CROSS_ATTENTION_KV = r"(.*\.)?attn2\.to_[kv]"


def cross_attention_layers(unet: nn.Module) -> list[str]:
    """Names of the K and V projections of the cross-attention, in the model's order.

    Raises:
        ContinualLoraError: the model has none.
    """
    names = [name for name, _ in unet.named_modules() if re.fullmatch(CROSS_ATTENTION_KV, name)]
    if not names:
        raise ContinualLoraError(
            "Continual LoRA trains the keys and values of the cross-attention (`attn2.to_k`, `attn2.to_v`) of a U-Net.",
            f"This model is a `{type(unet).__name__}` without such layers.",
            "Use a Stable Diffusion 1.x, 2.x or XL model, or the embedded base.",
        )
    return names


def replace_layer(unet: nn.Module, name: str, layer: nn.Module) -> None:
    """Put `layer` where `name` was."""
    parent, _, child = name.rpartition(".")
    setattr(unet.get_submodule(parent), child, layer)
