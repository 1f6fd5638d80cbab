"""A Stable Diffusion 1.5 checkpoint with random weights and a shallow U-Net, built from ComfyUI's own classes.

Two levels with one block each instead of four with two: 107 instead of 860 million parameters in the U-Net, and still
loaded as SD1.5 with no missing key. Text encoder and VAE are full size, because the host's layouts for them are fixed.
Run as a script inside ComfyUI: `python checkpoint.py COMFYUI FILE`.
"""

# ruff: noqa: TID251 (runs inside ComfyUI)

import subprocess
import sys
from pathlib import Path

UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "channel_mult": [1, 2],
    "num_res_blocks": [1, 1],
    "transformer_depth": [1, 1],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1],
    "context_dim": 768,
    "num_heads": 8,
    "num_head_channels": -1,
    "use_spatial_transformer": True,
}
VAE = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128}
VAE |= {"ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}


def build_checkpoint(comfy_path: Path, file: Path) -> Path:
    """Write the checkpoint unless it is already there; 0.6 GB."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(".tmp")
        command = [sys.executable, __file__, str(comfy_path), str(temporary)]
        subprocess.run(command, check=True, cwd=comfy_path, capture_output=True, text=True)
        temporary.replace(file)
    return file


def write(file: Path) -> None:
    """Build the three models and save them in fp16."""
    import comfy.options

    comfy.options.enable_args_parsing()  # otherwise ComfyUI does not see --cpu
    import comfy.ops
    import torch
    from comfy.clip_model import CLIPTextModel
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from comfy.sd1_clip import SDClipModel
    from safetensors.torch import save_file

    operations = comfy.ops.disable_weight_init
    unet = UNetModel(**UNET, operations=operations)
    text: CLIPTextModel = SDClipModel().transformer
    vae = AutoencoderKL(ddconfig=VAE, embed_dim=4)
    rng = torch.Generator().manual_seed(0)
    weights = {}
    parts = {"model.diffusion_model.": unet, "first_stage_model.": vae, "cond_stage_model.transformer.": text}
    for prefix, module in parts.items():
        for name, parameter in module.named_parameters():
            if name == "text_projection.weight":  # SD1.5 has none
                continue
            if parameter.ndim == 1:  # a norm's weight is one, every bias zero
                value = torch.full(parameter.shape, float(name.endswith("weight")))
            else:
                value = torch.randn(parameter.shape, generator=rng) * 0.02
            weights[prefix + name] = value.half()
    save_file(weights, file)


if __name__ == "__main__":
    sys.path[0] = sys.argv[1]  # instead of this folder, whose `server` would hide ComfyUI's
    arguments, sys.argv[1:] = sys.argv[1:], ["--cpu"]
    write(Path(arguments[1]))
