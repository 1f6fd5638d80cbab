"""The key layouts in which tools write a LoRA of a model: kohya's, diffusers', peft's and ComfyUI's own trainer's.

They differ in the words for a layer (the original ones, or diffusers') and in those for the two factors. kohya and
ComfyUI write alpha beside the factors; diffusers has it in the metadata, peft in a configuration file. In the original
words Q, K and V of joint attention are one layer: there a LoRA of K and V is one of the whole, zero in the rows of Q.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Size, Tensor, nn

from ..disk.files import read_tensors
from ..errors import ContinualLoraError
from .factors import Lora, LoraFactors
from .joint import join_factors, split_factors
from .kohya import (
    check_factors,
    component,
    diffusers_name,
    diffusers_prefixes,
    kohya_key,
    kohya_prefixes,
    stems_to_kohya,
)
from .layers import DIFFUSERS_JOINT_KV, UNET_KV, cross_attention_layers, joint_attention_layers

LAYOUTS = ("kohya", "comfyui", "diffusers", "peft")
# What is read; the last two of each are of older diffusers versions.
DOWN = (".lora_down.weight", ".lora_A.weight", ".lora_A.default.weight", ".lora.down.weight", "_lora.down.weight")
UP = (".lora_up.weight", ".lora_B.weight", ".lora_B.default.weight", ".lora.up.weight", "_lora.up.weight")
ALPHA = (".alpha",)
# Where diffusers keeps a LoRA's configuration: JSON in the metadata of the file, its names behind "unet." or
# "transformer.".
METADATA_KEY = "lora_adapter_metadata"
SCALES = ("alpha_pattern", "use_rslora", "use_dora")  # of peft's; where one is set the scale is another
PEFT_PREFIX = "base_model.model."


def load_lora(path: Path, unet: nn.Module) -> Lora:
    """Read a LoRA file; see `read_lora`."""
    return read_lora(*read_tensors(path), unet)


def read_lora(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], unet: nn.Module) -> Lora:
    """Read a LoRA of any of the layouts.

    Args:
        tensors: of the file.
        metadata: of the file; diffusers writes alpha there.
        unet: the model that it is for.

    Returns:
        Its factors, fp32, by the layer's name in `unet`; an alpha that is written nowhere is the rank.

    Raises:
        ContinualLoraError: a tensor is none of a K or V of the cross-attention, or half of a pair is missing; nothing
            is dropped in silence.
    """
    stems = _stems_read(unet)
    found: dict[str, dict[str, Tensor]] = {}
    foreign = []
    for key, tensor in tensors.items():
        role, stem = _split(key)
        parts = found.setdefault(stems[stem], {}) if stem in stems else {}
        if stem in stems and tensor.dim() == (0 if role == "alpha" else 2) and role not in parts:
            parts[role] = tensor
        else:
            foreign.append(key)
    if foreign or not found:
        raise ContinualLoraError(
            "An existing LoRA should hold factors of the cross-attention's keys and values (attn2.to_k, attn2.to_v; in "
            "SD 3 and Flux, attn.add_k_proj, attn.add_v_proj) of this model, and nothing else.",
            f"`{sorted(foreign)[0]}` and {len(foreign) - 1} other tensors are something else, or a layer's second time."
            if foreign
            else "It is empty.",
            "Apply this LoRA to the model with Load LoRA: it then belongs to the base, stays frozen, and the sequence "
            "is trained on top of it.",
        )
    alpha, joint = _alpha_of(metadata), joint_attention_layers(unet)
    lora: Lora = {}
    for layer, parts in found.items():
        weight = unet.get_parameter(f"{layer}.joint.weight" if layer in joint else f"{layer}.weight")
        factors = _factors(layer, parts, alpha, weight.shape)
        own = split_factors(layer, factors) if layer in joint else {layer: factors}
        if twice := lora.keys() & own.keys():
            raise ContinualLoraError(
                "The LoRA should hold each layer once.",
                f"It holds `{min(twice)}` alone and with the queries.",
                "Save or download it again.",
            )
        lora |= own
    return {layer: lora[layer] for layer in cross_attention_layers(unet) if layer in lora}


def _factors(layer: str, parts: Mapping[str, Tensor], alpha: float | None, shape: Size) -> LoraFactors:
    """The factors of one layer, whose weight has a shape."""
    if not {"down", "up"} <= parts.keys():
        raise ContinualLoraError(
            f"The LoRA should hold both factors of `{layer}`.",
            f"It holds {', '.join(sorted(parts))} only.",
            "Save or download it again.",
        )
    down, up = parts["down"].float(), parts["up"].float()
    own = float(parts["alpha"]) if "alpha" in parts else len(down) if alpha is None else alpha
    check_factors(layer, parts["down"], parts["up"], own)
    if (len(up), down.shape[1]) != tuple(shape):
        raise ContinualLoraError(
            f"The LoRA should change the weight of `{layer}`, {list(shape)}.",
            f"It changes one of the shape {[len(up), down.shape[1]]}.",
            "Use a LoRA of the same kind of model.",
        )
    return LoraFactors(down, up, own)


def write_lora(lora: Lora, unet: nn.Module, layout: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Write a LoRA in a layout; `read_lora` gives the same factors back.

    Args:
        lora: by the layer's name in `unet`.
        unet: the model that it is for.
        layout: one of `LAYOUTS`.

    Returns:
        Tensors and metadata of the file; for peft the metadata goes into `peft_config` instead.

    Raises:
        ContinualLoraError: the layout knows one rank and one alpha, and the LoRA has several.
    """
    if layout == "comfyui":
        whole = _joined(lora, unet)
        return stems_to_kohya({f"diffusion_model.{layer}": factors for layer, factors in whole.items()}), {}
    stems = _stems_written(unet, layout)
    if layout == "kohya":
        return stems_to_kohya({stems[layer]: factors for layer, factors in lora.items()}), {}
    tensors: dict[str, Tensor] = {}
    for layer, factors in lora.items():
        tensors[f"{stems[layer]}.lora_A.weight"] = factors.down.contiguous()
        tensors[f"{stems[layer]}.lora_B.weight"] = factors.up.contiguous()
    if layout != "diffusers":
        return tensors, {}
    prefix = next(iter(stems.values())).partition(".")[0]
    config = {f"{prefix}.{name}": value for name, value in peft_config(lora).items()}
    return tensors, {METADATA_KEY: json.dumps(config, sort_keys=True)}


def _joined(lora: Lora, unet: nn.Module) -> Lora:
    """The same with K and V of joint attention as one, where a model has it."""
    joint = {
        name: {p: lora[f"{name}.{p}"] for p in ("to_k", "to_v") if f"{name}.{p}" in lora}
        for name in joint_attention_layers(unet)
    }
    return {name: join_factors(parts) for name, parts in joint.items() if parts} if joint else lora


def peft_config(lora: Lora) -> dict[str, Any]:
    """What peft's adapter_config.json says of a LoRA.

    Raises:
        ContinualLoraError: it has several ranks or alphas.
    """
    kinds = sorted({(factors.rank, factors.alpha) for factors in lora.values()})
    if len(kinds) != 1:
        raise ContinualLoraError(
            "For peft and diffusers all layers of a LoRA should have one rank and one alpha.",
            f"This one has (rank, alpha) {', '.join(map(str, kinds))}.",
            "Convert it to kohya's layout, which keeps them by layer.",
        )
    rank, alpha = kinds[0]
    target = UNET_KV if any(re.fullmatch(UNET_KV, layer) for layer in lora) else DIFFUSERS_JOINT_KV
    return {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": target}


def _stems_written(unet: nn.Module, layout: str) -> dict[str, str]:
    """Every layer -> its name in a file of the layout."""
    layers = cross_attention_layers(unet)
    if layout == "kohya":
        names = kohya_prefixes(unet)
        return {layer: kohya_key(layer, names) for layer in layers}
    if layout == "comfyui":
        return {layer: f"diffusion_model.{layer}" for layer in layers}
    names = diffusers_prefixes(unet)
    words = {layer: diffusers_name(layer, names) for layer in layers}
    if layout == "peft":
        return {layer: PEFT_PREFIX + word for layer, word in words.items()}
    return {layer: f"{component(word)}.{word}" for layer, word in words.items()}


def _stems_read(unet: nn.Module) -> dict[str, str]:
    """Every name under which a layer may stand in a file -> the layer."""
    names = diffusers_prefixes(unet)
    by_layout = [_stems_written(unet, layout) for layout in LAYOUTS]
    stems: dict[str, str] = {}
    for layer in cross_attention_layers(unet):
        name = diffusers_name(layer, names)
        written = {written[layer] for written in by_layout}
        # Some tools write XL's layers in diffusers' words, too; peft without its prefix is a bare state dict.
        written |= {name, layer, *("lora_unet_" + word.replace(".", "_") for word in (name, layer))}
        stems |= dict.fromkeys(written, layer)
    for layer in joint_attention_layers(unet):
        written = {layer, f"diffusion_model.{layer}", "lora_unet_" + layer.replace(".", "_")}
        stems |= dict.fromkeys(written, layer)
    return stems


def _split(key: str) -> tuple[str, str]:
    """A tensor's role and its layer's name in the file; an older diffusers put a processor in between."""
    for role, endings in (("down", DOWN), ("up", UP), ("alpha", ALPHA)):
        for ending in endings:
            if key.endswith(ending):
                return role, key.removesuffix(ending).replace(".processor.", ".")
    return "", key


def _alpha_of(metadata: Mapping[str, str]) -> float | None:
    if METADATA_KEY not in metadata:
        return None
    try:
        config = json.loads(metadata[METADATA_KEY])
        found = [config[name] for name in ("unet.lora_alpha", "transformer.lora_alpha") if name in config]
        odd = [name for name in SCALES if any(config.get(f"{part}.{name}") for part in ("unet", "transformer"))]
        alpha = float(found[0]) if found and found[0] is not None else None
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ContinualLoraError(
            f"`{METADATA_KEY}` in the metadata of the LoRA should be a table with the number of its alpha.",
            f"It is another text: {error}.",
            "Save or download the LoRA again.",
        ) from error
    if odd:
        raise ContinualLoraError(
            "All layers of the LoRA should have one alpha, and the scale alpha / rank.",
            f"Its metadata has {', '.join(odd)}.",
            "Convert it to kohya's layout with the program that made it.",
        )
    return alpha
