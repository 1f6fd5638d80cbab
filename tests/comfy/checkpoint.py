"""Checkpoints of the families of models with random weights, built from ComfyUI's own classes.

But for `sd15_full`, which the benchmark takes, the U-Nets are shallow and narrow, with what the host tells the families
by, and load with no missing key: SD1.5 with two levels of one block instead of four of two; SD2 with all of its blocks
(the host looks into the last one for v-prediction), but as wide everywhere as at the first level; SDXL as its small
relative KOALA, which has one block a level, as wide everywhere as at the first. SD3 has two blocks instead of 24, with
what 3.5 medium added, and no T5; Flux one double and one single block, as wide as ever, and a T5 of one narrow layer.
CLIP and VAE are full size, because the host's layouts for them are fixed. Run as a script inside ComfyUI:
`python checkpoint.py COMFYUI FAMILY FILE`.
"""

# ruff: noqa: TID251 (runs inside ComfyUI)

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PLAIN = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "use_spatial_transformer": True}
HEADS_OF_SD1 = {"context_dim": 768, "num_heads": 8, "num_head_channels": -1}
UNETS: dict[str, dict[str, Any]] = {
    "sd15": {
        "channel_mult": [1, 2],
        "num_res_blocks": [1, 1],
        "transformer_depth": [1, 1],
        "transformer_depth_middle": 1,
        "transformer_depth_output": [1, 1, 1, 1],
        **HEADS_OF_SD1,
    },
    "sd15_full": {
        "channel_mult": [1, 2, 4, 4],
        "num_res_blocks": [2, 2, 2, 2],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_middle": 1,
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        **HEADS_OF_SD1,
    },
    "sd2_v": {
        "channel_mult": [1, 1, 1, 1],
        "num_res_blocks": [2, 2, 2, 2],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_middle": 1,
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        "context_dim": 1024,
        "num_heads": -1,
        "num_head_channels": 64,
        "use_linear_in_transformer": True,
    },
    "sdxl": {
        "channel_mult": [1, 1, 1],
        "num_res_blocks": [1, 1, 1],
        "transformer_depth": [0, 2, 5],
        "transformer_depth_middle": 5,
        "transformer_depth_output": [0, 0, 2, 2, 5, 5],
        "context_dim": 2048,
        "num_heads": -1,
        "num_head_channels": 64,
        "use_linear_in_transformer": True,
        "adm_in_channels": 2816,
        "num_classes": "sequential",
    },
}
SD3 = {
    "in_channels": 16,
    "depth": 2,  # blocks, and heads of 64
    "adm_in_channels": 2048,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 128}},
    "pos_embed_max_size": 192,
    "num_patches": 192**2,
    "qk_norm": "rms",
    "x_block_self_attn_layers": [0],
}
FLUX = {
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 3072,
    "mlp_ratio": 4.0,
    "num_heads": 24,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
}
# What the host has to be told of the T5 in the checkpoint of Flux; its vocabulary and its width are the real ones.
SMALL_T5 = {"t5xxl_model_config": {"num_layers": 1, "d_ff": 64, "num_heads": 2}}
VAE = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128}
VAE |= {"ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}


def build_checkpoint(comfy_path: Path, family: str, folder: Path) -> Path:
    """Write `random_<family>.safetensors` unless it is already there; 0.6 to 2 GB."""
    file = folder / f"random_{family}.safetensors"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}.tmp")  # another session may be at it
        command = [sys.executable, __file__, str(comfy_path), family, str(temporary)]
        subprocess.run(command, check=True, cwd=comfy_path, capture_output=True, text=True)
        temporary.replace(file)
    return file


def text_encoder(family: str) -> Any:
    """The host's text encoder, and what turns its state into that of a checkpoint."""
    import comfy.sd1_clip
    import comfy.sdxl_clip
    import comfy.supported_models as known
    import comfy.text_encoders.flux
    import comfy.text_encoders.sd2_clip
    import comfy.text_encoders.sd3_clip

    if family == "sd3":
        text = comfy.text_encoders.sd3_clip.sd3_clip(t5=False)()
        return text, lambda state: {f"text_encoders.{name}": value for name, value in state.items()}
    if family == "flux":
        text = comfy.text_encoders.flux.flux_clip()(model_options=SMALL_T5)
        return text, lambda state: {f"text_encoders.{name}": value for name, value in state.items()}
    kinds = {
        "sd15": (comfy.sd1_clip.SD1ClipModel, known.SD15),
        "sd15_full": (comfy.sd1_clip.SD1ClipModel, known.SD15),
        "sd2_v": (comfy.text_encoders.sd2_clip.SD2ClipModel, known.SD20),
        "sdxl": (comfy.sdxl_clip.SDXLClipModel, known.SDXL),
    }
    model, config = kinds[family]
    return model(), config(dict(PLAIN, **UNETS[family])).process_clip_state_dict_for_saving


def network(family: str) -> Any:
    """The host's U-Net or transformer."""
    import comfy.ops
    import torch
    from comfy.ldm.flux.model import Flux, FluxParams
    from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    operations = comfy.ops.disable_weight_init
    if family == "sd3":
        return OpenAISignatureMMDITWrapper(input_size=None, **SD3, operations=operations)
    if family == "flux":
        newer = {"txt_ids_dims": []} if "txt_ids_dims" in FluxParams.__dataclass_fields__ else {}
        return Flux(image_model="flux", **FLUX, **newer, dtype=torch.half, operations=operations)
    return UNetModel(**PLAIN, **UNETS[family], operations=operations)


def autoencoder(family: str) -> Any:
    """The host's, with 4 channels or, for the newer families, with 16 and no convolutions around them."""
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from torch import nn

    if family not in ("sd3", "flux"):
        return AutoencoderKL(ddconfig=VAE, embed_dim=4)
    vae = AutoencoderKL(ddconfig=VAE | {"z_channels": 16}, embed_dim=16)
    vae.quant_conv, vae.post_quant_conv = nn.Identity(), nn.Identity()
    return vae


def write(family: str, file: Path) -> None:
    """Build the three models and save them in fp16."""
    import comfy.options

    comfy.options.enable_args_parsing()  # otherwise ComfyUI does not see --cpu
    import torch
    from safetensors.torch import save_file

    rng = torch.Generator().manual_seed(0)

    def random(module: Any) -> dict[str, Any]:
        values = {}
        for name, parameter in module.named_parameters():
            if parameter.ndim == 1:  # a norm's weight is one, every bias zero
                values[name] = torch.full(parameter.shape, float(name.endswith(("weight", "scale")))).half()
            else:
                values[name] = (torch.randn(parameter.shape, generator=rng) * 0.02).half()
        return values

    text, saved = text_encoder(family)
    unet = random(network(family))
    if family == "sd3":
        unet["pos_embed"] = (torch.randn(1, 192**2, 128, generator=rng) * 0.02).half()
    if family == "flux":  # newer hosts have other names for the norms than the files
        unet = {name.replace("_norm.weight", "_norm.scale"): value for name, value in unet.items()}
    if family == "sd2_v":  # what the host tells v-prediction by
        unet["output_blocks.11.1.transformer_blocks.0.norm1.bias"][::2] = 1.0
    vae_prefix = "vae." if family == "flux" else "first_stage_model."
    parts = {"model.diffusion_model.": unet, vae_prefix: random(autoencoder(family))}
    weights = {prefix + name: value for prefix, tensors in parts.items() for name, value in tensors.items()}
    weights |= {name: value for name, value in saved(random(text)).items() if value.is_floating_point()}
    save_file({name: value.contiguous() for name, value in weights.items()}, file)


def load(comfy_path: Path, file: Path, **model_options: Any) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE on the CPU; of Flux with its small T5 and prompts of 16 pieces instead of 256."""
    sys.path.insert(0, str(comfy_path))
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    import comfy.model_management
    import comfy.sd

    comfy.model_management.in_training = True
    options = SMALL_T5 if "flux" in file.name else {}
    model, clip, vae, *_ = comfy.sd.load_checkpoint_guess_config(
        str(file), embedding_directory=[str(file.parent)], te_model_options=options, model_options=model_options
    )
    if options:
        clip.tokenizer.t5xxl.min_length = 16
    return model, clip, vae


if __name__ == "__main__":
    sys.path[0] = sys.argv[1]  # instead of this folder, of which nothing may hide ComfyUI's
    arguments, sys.argv[1:] = sys.argv[1:], ["--cpu"]
    write(arguments[1], Path(arguments[2]))
