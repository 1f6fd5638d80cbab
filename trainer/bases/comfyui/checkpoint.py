"""A checkpoint file through a ComfyUI checkout, for the command line."""

import sys
from pathlib import Path

import torch

from ...errors import ContinualLoraError


def load_checkpoint(comfyui: Path, checkpoint: Path, dtype: torch.dtype | None = None) -> tuple[object, object, object]:
    """MODEL, CLIP and VAE of a checkpoint, loaded by ComfyUI's own code.

    Args:
        comfyui: a ComfyUI checkout; it goes on the import path of this process.
        checkpoint: a safetensors file.
        dtype: of the U-Net's weights; None leaves it to the host.

    Raises:
        ContinualLoraError: no ComfyUI or no file there.
    """
    if not (comfyui / "comfy" / "sd.py").is_file():
        raise ContinualLoraError(
            '"--comfyui" should be the folder of a ComfyUI checkout.',
            f"`{comfyui}` holds no comfy/sd.py.",
            "Correct it.",
        )
    if not checkpoint.is_file():
        raise ContinualLoraError(
            '"--checkpoint" should be a checkpoint file.', f"`{checkpoint}` is not there.", "Correct the path."
        )
    sys.path.insert(0, str(comfyui))
    import comfy.cli_args

    comfy.cli_args.args.cpu = not torch.cuda.is_available()
    import comfy.model_management
    import comfy.sd

    comfy.model_management.in_training = True  # a newer host then takes kernels with a gradient
    options = {} if dtype is None else {"dtype": dtype}
    model, clip, vae, *_ = comfy.sd.load_checkpoint_guess_config(
        str(checkpoint), output_vae=True, output_clip=True, model_options=options
    )
    return model, clip, vae
