"""Checkpoints of Stable Diffusion's families with random weights, built from ComfyUI's own classes.

But for `sd15_full`, which the benchmark takes, the U-Nets are shallow and narrow, with what the host tells the families
by, and load with no missing key: SD1.5 with two levels of one block instead of four of two; SD2 with all of its blocks
(the host looks into the last one for v-prediction), but as wide everywhere as at the first level; SDXL as its small
relative KOALA, which has one block a level, as wide everywhere as at the first. Text encoders and VAE are full size,
because the host's layouts for them are fixed. Run as a script inside ComfyUI:
`python checkpoint.py COMFYUI FAMILY FILE`.
"""

# ruff: noqa: TID251 (runs inside ComfyUI)

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
VAE = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128}
VAE |= {"ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}


def build_checkpoint(comfy_path: Path, family: str, folder: Path) -> Path:
    """Write `random_<family>.safetensors` unless it is already there; 0.6 to 2 GB."""
    file = folder / f"random_{family}.safetensors"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(".tmp")
        command = [sys.executable, __file__, str(comfy_path), family, str(temporary)]
        subprocess.run(command, check=True, cwd=comfy_path, capture_output=True, text=True)
        temporary.replace(file)
    return file


def text_encoder(family: str) -> Any:
    """The host's text encoder, and what turns its state into that of a checkpoint."""
    import comfy.sd1_clip
    import comfy.sdxl_clip
    import comfy.supported_models as known
    import comfy.text_encoders.sd2_clip

    kinds = {
        "sd15": (comfy.sd1_clip.SD1ClipModel, known.SD15),
        "sd15_full": (comfy.sd1_clip.SD1ClipModel, known.SD15),
        "sd2_v": (comfy.text_encoders.sd2_clip.SD2ClipModel, known.SD20),
        "sdxl": (comfy.sdxl_clip.SDXLClipModel, known.SDXL),
    }
    model, config = kinds[family]
    return model(), config(dict(PLAIN, **UNETS[family])).process_clip_state_dict_for_saving


def write(family: str, file: Path) -> None:
    """Build the three models and save them in fp16."""
    import comfy.options

    comfy.options.enable_args_parsing()  # otherwise ComfyUI does not see --cpu
    import comfy.ops
    import torch
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from safetensors.torch import save_file

    rng = torch.Generator().manual_seed(0)

    def random(module: Any) -> dict[str, Any]:
        values = {}
        for name, parameter in module.named_parameters():
            if parameter.ndim == 1:  # a norm's weight is one, every bias zero
                values[name] = torch.full(parameter.shape, float(name.endswith("weight"))).half()
            else:
                values[name] = (torch.randn(parameter.shape, generator=rng) * 0.02).half()
        return values

    text, saved = text_encoder(family)
    unet = random(UNetModel(**PLAIN, **UNETS[family], operations=comfy.ops.disable_weight_init))
    if family == "sd2_v":  # what the host tells v-prediction by
        unet["output_blocks.11.1.transformer_blocks.0.norm1.bias"][::2] = 1.0
    parts = {"model.diffusion_model.": unet, "first_stage_model.": random(AutoencoderKL(ddconfig=VAE, embed_dim=4))}
    weights = {prefix + name: value for prefix, tensors in parts.items() for name, value in tensors.items()}
    weights |= {name: value for name, value in saved(random(text)).items() if value.is_floating_point()}
    save_file({name: value.contiguous() for name, value in weights.items()}, file)


if __name__ == "__main__":
    sys.path[0] = sys.argv[1]  # instead of this folder, whose `server` would hide ComfyUI's
    arguments, sys.argv[1:] = sys.argv[1:], ["--cpu"]
    write(arguments[1], Path(arguments[2]))
