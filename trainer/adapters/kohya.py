"""LoRA files in kohya's key layout, which ComfyUI, A1111, Forge and the kohya tools read alike.

Of joint attention (SD 3, Flux), kohya's own scripts write one pair of factors for Q, K and V together. The files here
have a pair for each of K and V, under the names that OneTrainer gives them and ComfyUI reads.
"""

import math
import re
from collections.abc import Mapping

from torch import Tensor, nn

from ..errors import ContinualLoraError
from .factors import Lora, LoraFactors
from .layers import JOINT_PARTS, joint_attention_layers


def diffusers_prefixes(unet: nn.Module) -> dict[str, str]:
    """Layer prefixes of an original-layout U-Net in diffusers' words; of joint attention, the layers themselves.

    Args:
        unet: has `input_blocks`, `middle_block`, `output_blocks`, or joint attention.

    Returns:
        For example {"input_blocks.1.1": "down_blocks.0.attentions.0", "middle_block.1": "mid_block.attentions.0"}, or
        {"double_blocks.0.txt_attn.qkv.to_k": "transformer_blocks.0.attn.add_k_proj"}.
    """
    if joint := joint_attention_layers(unet):
        return {f"{name}.{p}": f"{block}.{word}" for name, block in joint.items() for p, word in JOINT_PARTS.items()}
    names: dict[str, str] = {}
    for side, diffusers, resampler in (("input", "down", "Downsample"), ("output", "up", "Upsample")):
        level = index = 0
        for position, block in enumerate(getattr(unet, f"{side}_blocks")):
            kinds = [type(layer).__name__ for layer in block.children()]
            if side == "input" and kinds in (["Conv2d"], [resampler]):
                level, index = level + (resampler in kinds), 0
                continue
            names[f"{side}_blocks.{position}.1"] = f"{diffusers}_blocks.{level}.attentions.{index}"
            index += 1
            if resampler in kinds:
                level, index = level + 1, 0
    names["middle_block.1"] = "mid_block.attentions.0"
    return names


def kohya_prefixes(unet: nn.Module) -> dict[str, str]:
    """The same in the words of kohya's keys: the original ones for XL, diffusers' for all others."""
    names = diffusers_prefixes(unet)
    return {name: name for name in names} if hasattr(unet, "label_emb") else names


def diffusers_name(layer: str, names: Mapping[str, str]) -> str:
    """A layer in other words, "input_blocks.1.1.transformer_blocks.0.attn2.to_k" -> "down_blocks.0.attentions.0....".

    Args:
        layer: name of the layer in the U-Net.
        names: what `diffusers_prefixes` or `kohya_prefixes` found.
    """
    if layer in names:
        return names[layer]
    match = re.fullmatch(r"((?:input_blocks|output_blocks)\.\d+\.\d+|middle_block\.1)\.(.+)", layer)
    assert match, layer
    return f"{names[match[1]]}.{match[2]}"


def component(name: str) -> str:
    """What diffusers calls the model that a layer is in: "unet", or "transformer"; `name` is in its or in any words."""
    return "transformer" if name.startswith("transformer_blocks.") else "unet"


def kohya_key(layer: str, names: Mapping[str, str]) -> str:
    """The key stem of a layer, "input_blocks.1.1.transformer_blocks.0.attn2.to_k" -> "lora_unet_down_blocks_0_...".

    Args:
        layer: name of the layer in the U-Net.
        names: what `kohya_prefixes` found.
    """
    name = diffusers_name(layer, names)
    return f"lora_{component(name)}_" + name.replace(".", "_")


def to_kohya(lora: Lora, names: Mapping[str, str]) -> dict[str, Tensor]:
    """Factors by layer as a file's tensors."""
    return stems_to_kohya({kohya_key(layer, names): factors for layer, factors in lora.items()})


def stems_to_kohya(lora: Lora) -> dict[str, Tensor]:
    """Factors by key stem as `<stem>.lora_down.weight`, `<stem>.lora_up.weight`, `<stem>.alpha`."""
    tensors: dict[str, Tensor] = {}
    for stem, factors in lora.items():
        tensors[f"{stem}.lora_down.weight"] = factors.down.contiguous()
        tensors[f"{stem}.lora_up.weight"] = factors.up.contiguous()
        tensors[f"{stem}.alpha"] = factors.down.new_tensor(factors.alpha)
    return tensors


def from_kohya(tensors: Mapping[str, Tensor], layers: list[str], names: Mapping[str, str]) -> Lora:
    """Read a file back.

    Args:
        tensors: of a kohya file.
        layers: the layers of the U-Net that an adapter may sit on.
        names: what `kohya_prefixes` found.

    Raises:
        ContinualLoraError: a key belongs to none of the layers; nothing is dropped in silence.
    """
    stems = {kohya_key(layer, names): layer for layer in layers}
    unknown = sorted({key.split(".")[0] for key in tensors} - set(stems))
    if unknown:
        raise ContinualLoraError(
            "Every key of the LoRA should belong to a cross-attention key or value of this model.",
            f"`{unknown[0]}` and {len(unknown) - 1} more do not.",
            "Use a LoRA of this pack that was trained on the same kind of model.",
        )
    return {stems[stem]: factors for stem, factors in stems_from_kohya(tensors).items()}


def differences_to_kohya(differences: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Full updates by layer as `<stem>.diff`, which ComfyUI adds to the weight as a difference patch."""
    return {f"{kohya_key(layer, names)}.diff": value.contiguous() for layer, value in differences.items()}


def differences_from_kohya(
    tensors: Mapping[str, Tensor], layers: list[str], names: Mapping[str, str]
) -> dict[str, Tensor]:
    """Read a difference patch back, layer -> [out, in].

    Raises:
        ContinualLoraError: a layer is missing, or there are other keys.
    """
    keys = {f"{kohya_key(layer, names)}.diff": layer for layer in layers}
    if odd := sorted(keys.keys() ^ tensors.keys()):
        raise ContinualLoraError(
            "The file should hold a difference for each cross-attention key and value of this model.",
            f"`{odd[0]}` and {len(odd) - 1} more are missing or too many.",
            "Use a file of this pack that was trained on the same kind of model.",
        )
    return {layer: tensors[key] for key, layer in keys.items()}


def stems_from_kohya(tensors: Mapping[str, Tensor]) -> Lora:
    """A file's tensors as factors by key stem, for work that needs no model.

    Raises:
        ContinualLoraError: the file holds something else than LoRA factors.
    """
    stems = sorted({key.split(".")[0] for key in tensors})
    if odd := [stem for stem in stems if f"{stem}.lora_down.weight" not in tensors]:
        raise ContinualLoraError(
            "The file should hold LoRA factors (`lora_down`, `lora_up`).",
            f"`{odd[0]}` is a full difference, as the recipes without a plain LoRA write it.",
            "Use a sequence of one of the LoRA recipes.",
        )
    return {stem: _factors(stem, tensors) for stem in stems}


def _factors(stem: str, tensors: Mapping[str, Tensor]) -> LoraFactors:
    wanted = {"lora_down.weight": 2, "lora_up.weight": 2, "alpha": 0}
    parts = [tensors.get(f"{stem}.{name}") for name in wanted]
    if any(part is None or part.dim() != dim for part, dim in zip(parts, wanted.values(), strict=True)):
        own = ", ".join(sorted(key for key in tensors if key.split(".")[0] == stem))
        raise ContinualLoraError(
            f"The LoRA should hold the matrices `lora_down` and `lora_up` and the number `alpha` of `{stem}`.",
            f"It holds {own}, or they have other shapes.",
            "Save or download it again.",
        )
    down, up, alpha = (part for part in parts if part is not None)
    check_factors(stem, down, up, float(alpha))
    return LoraFactors(down, up, float(alpha))


def check_factors(layer: str, down: Tensor, up: Tensor, alpha: float) -> None:
    """Raise unless the factors of a layer make an update: [rank, in], [out, rank], numbers, and a finite alpha."""
    numbers = down.is_floating_point() and up.is_floating_point()
    if not numbers or not 0 < len(down) == up.shape[1] or not math.isfinite(alpha):
        raise ContinualLoraError(
            f"The factors of `{layer}` should be floating-point matrices [rank, in] and [out, rank] with a finite "
            "alpha.",
            f"They are {list(down.shape)} and {list(up.shape)}, {down.dtype} and {up.dtype}, with alpha {alpha}.",
            "Save or download the LoRA again.",
        )
    if not (down.float().isfinite().all() and up.float().isfinite().all()):
        raise ContinualLoraError(
            f"The factors of `{layer}` should be numbers.",
            "Some are infinite or NaN: the training that made them had failed.",
            "Use one that was saved earlier.",
        )
