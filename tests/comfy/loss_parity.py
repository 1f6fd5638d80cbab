"""Compute the training loss on a checkpoint a second way: by the host's own noising, prompt and prediction of x_0.

`python loss_parity.py COMFYUI PARENT CHECKPOINT`: PARENT holds the pack as `continual_lora`. Prints a JSON object: what
was compared -> the largest difference, and the losses.
"""

import json
import sys
from pathlib import Path
from typing import Any

PROMPT = "photo of a (red:1.2) fox"


def compared(comfyui: Path, checkpoint: Path) -> dict[str, Any]:
    """Differences in x_t, target and error, with the error by both."""
    import torch
    from continual_lora.trainer.bases.comfyui.checkpoint import load_checkpoint
    from continual_lora.trainer.losses.denoising import NoisedBatch

    model, clip, vae = load_checkpoint(comfyui, checkpoint)
    from continual_lora.trainer.bases.comfyui.base import ComfyBase

    base = ComfyBase(model, clip, vae)
    rng = torch.Generator().manual_seed(0)
    x_0, noise = torch.randn(3, 4, 8, 8, generator=rng), torch.randn(3, 4, 8, 8, generator=rng)
    t = torch.tensor([10, 500, 950])
    with torch.no_grad():
        ours = NoisedBatch(base, x_0, t, noise)
        error = ours.error(base.encode_prompt(PROMPT, {}))

        host: Any = model.model
        sigma = host.model_sampling.sigma(t.float())
        x = host.model_sampling.noise_scaling(sigma, noise.clone(), x_0)
        context, pooled = clip.encode_from_tokens(clip.tokenize(PROMPT), return_pooled=True)
        more = {}
        if host.adm_channels:
            more["y"] = host.encode_adm(pooled_output=pooled, width=64, height=64).expand(3, -1)
        x_0_by_host = host.apply_model(x, sigma, c_crossattn=context.expand(3, -1, -1), **more)

    # By hand: alpha and sigma of the variance-preserving x_t, then what the prediction of x_0 says of eps or v.
    s = sigma[:, None, None, None]
    alpha, spread = 1 / (1 + s**2).sqrt(), s / (1 + s**2).sqrt()
    x_t = alpha * x_0 + spread * noise
    if base.parameterization == "eps":
        target, prediction = noise, (x_t - alpha * x_0_by_host) / spread
    else:
        target, prediction = alpha * noise - spread * x_0, (alpha * x_t - x_0_by_host) / spread
    by_hand = (target - prediction).square().mean((1, 2, 3))
    return {
        "parameterization": base.parameterization,
        "x_t": float((ours.x_t - x_t).abs().max()),
        "x_t of the host": float((ours.x_t - host.model_sampling.calculate_input(sigma, x)).abs().max()),
        "target": float((ours.target - target).abs().max()),
        "errors": error.tolist(),
        "errors by hand": by_hand.tolist(),
    }


if __name__ == "__main__":
    sys.path[0] = sys.argv[2]  # instead of this folder, whose `server` would hide ComfyUI's
    sys.stdout.write(json.dumps(compared(Path(sys.argv[1]), Path(sys.argv[3]))))
