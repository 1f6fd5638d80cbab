"""Where adapters sit: what "keys and values of the cross-attention" means in each family of models.

A U-Net (Stable Diffusion 1.x, 2.x, XL, the embedded base) has a cross-attention, whose keys and values are made from
the prompt (Jha et al., arXiv 2410.00700; Kumari et al., arXiv 2212.04488): `attn2.to_k` and `attn2.to_v`.

SD 3 (Esser et al., arXiv 2403.03206) and Flux have joint attention: text and image are two streams with weights of
their own, whose queries, keys and values are put one behind the other. What the image reads of the prompt are the keys
and values of the text stream, and these are trained [our decision]. The model has one layer `qkv` for the three
projections of a stream; `split_joint_attention` makes layers of its parts. Flux's single blocks, in which both streams
share all weights, stay as they are.
"""

import re

from torch import nn

from ..errors import ContinualLoraError
from .joint import JointProjection

# The keys and values that an adapter sits on, by family.
UNET_KV = r"(.*\.)?attn2\.to_[kv]"
JOINT_KV = r"(.*\.)?qkv\.to_[kv]"
# The layers of joint attention that hold them, by family -> what diffusers calls the block.
JOINT_QKV = {
    r"joint_blocks\.(\d+)\.context_block\.attn\.qkv": r"transformer_blocks.\1.attn",  # SD 3
    r"double_blocks\.(\d+)\.txt_attn\.qkv": r"transformer_blocks.\1.attn",  # Flux
}
# What diffusers calls their parts.
JOINT_PARTS = {"to_k": "add_k_proj", "to_v": "add_v_proj"}
DIFFUSERS_JOINT_KV = r"(.*\.)?attn\.add_[kv]_proj"


def cross_attention_layers(unet: nn.Module) -> list[str]:
    """Names of the K and V projections of the prompt, in the model's order.

    Args:
        unet: of joint attention, a view that `split_joint_attention` went over.

    Raises:
        ContinualLoraError: the model has none.
    """
    names = [name for name, _ in unet.named_modules() if re.fullmatch(f"{UNET_KV}|{JOINT_KV}", name)]
    if not names:
        raise ContinualLoraError(
            "Continual LoRA trains the keys and values of the cross-attention (`attn2.to_k`, `attn2.to_v`) of a U-Net, "
            "or those of the text in SD 3 and Flux.",
            f"This model is a `{type(unet).__name__}` without such layers.",
            "Use a Stable Diffusion 1.x, 2.x, XL or 3 model, Flux, or the embedded base.",
        )
    return names


def prompt_layers(unet: nn.Module) -> list[str]:
    """What `cross_attention_layers` would find after `split_joint_attention`; the model is left alone."""
    parts = [f"{name}.{part}" for name in joint_attention_layers(unet) for part in JOINT_PARTS]
    return parts or cross_attention_layers(unet)


def joint_attention_layers(unet: nn.Module) -> dict[str, str]:
    """The layers of a text stream's Q, K and V -> what diffusers calls the attention; empty for a U-Net."""
    return {
        name: re.sub(pattern, block, name)
        for name, _ in unet.named_modules()
        for pattern, block in JOINT_QKV.items()
        if re.fullmatch(pattern, name)
    }


def split_joint_attention(unet: nn.Module) -> nn.Module:
    """Give the keys and values of the text stream layers of their own, in place.

    Args:
        unet: a private view; a U-Net stays as it is.

    Returns:
        The same view.
    """
    for name in joint_attention_layers(unet):
        replace_layer(unet, name, JointProjection(unet.get_submodule(name)))
    return unet


def replace_layer(unet: nn.Module, name: str, layer: nn.Module) -> None:
    """Put `layer` where `name` was."""
    parent, _, child = name.rpartition(".")
    setattr(unet.get_submodule(parent), child, layer)
