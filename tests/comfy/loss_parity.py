"""Compute the training loss on a checkpoint a second way: by the host's own noising, prompt and prediction of x_0.

`python loss_parity.py COMFYUI PARENT CHECKPOINT`: PARENT holds the pack as `continual_lora`. Prints a JSON object: what
was compared -> the largest difference, and the losses.
"""

# ruff: noqa: TID251 (runs inside ComfyUI)

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROMPT = "photo of a (red:1.2) fox"


def main(comfyui: Path, checkpoint: Path) -> dict[str, Any]:
    """Of a checkpoint, and of the same held in bf16."""
    import torch
    from continual_lora.tests.comfy.checkpoint import load

    found = compared(*load(comfyui, checkpoint))
    return found | held_in_bf16(load(comfyui, checkpoint, dtype=torch.bfloat16), draw(found["channels"]))


def draw(channels: int) -> tuple[Any, Any, Any]:
    """x_0 and times and noise, the same whenever it is asked."""
    import torch

    rng, shape = torch.Generator().manual_seed(0), (3, channels, 8, 8)
    x_0, noise = torch.randn(shape, generator=rng), torch.randn(shape, generator=rng)
    return x_0, torch.tensor([10, 500, 950]), noise


def compared(model: Any, clip: Any, vae: Any) -> dict[str, Any]:
    """Differences in x_t, target and error, with the error by both."""
    import torch
    from continual_lora.trainer.bases.comfyui.base import ComfyBase
    from continual_lora.trainer.losses.denoising import NoisedBatch

    base = ComfyBase(model, clip, vae)
    channels = model.model.latent_format.latent_channels
    x_0, t, noise = draw(channels)
    with torch.no_grad():
        ours, prompt = NoisedBatch(base, x_0, t, noise), base.encode_prompt(PROMPT, {})
        with no_attention_in_chunks():
            error = ours.error(prompt)

        host: Any = model.model
        sigma = host_sigma(host, t)
        x = host.model_sampling.noise_scaling(sigma, noise.clone(), x_0)
        context, pooled = clip.encode_from_tokens(clip.tokenize(PROMPT), return_pooled=True)
        more = more_of(host, pooled)
        conditioning = {"c_crossattn": context.expand(3, -1, -1), **more}
        x_0_by_host = host.apply_model(x, sigma, **conditioning)
        try:
            with no_attention_in_chunks():
                host.apply_model(x, sigma, **conditioning)
            in_chunks = False
        except InChunksError:
            in_chunks = True

    # By hand: how much of the image and of the noise is in x_t, then what the prediction of x_0 says of eps, v or flow.
    s = sigma[:, None, None, None]
    if base.parameterization == "flow":
        alpha, spread = 1 - s, s
    else:
        alpha, spread = 1 / (1 + s**2).sqrt(), s / (1 + s**2).sqrt()
    x_t = alpha * x_0 + spread * noise
    if base.parameterization == "eps":
        target, prediction = noise, (x_t - alpha * x_0_by_host) / spread
    elif base.parameterization == "flow":
        target, prediction = noise - x_0, (x_t - x_0_by_host) / spread
    else:
        target, prediction = alpha * noise - spread * x_0, (alpha * x_t - x_0_by_host) / spread
    by_hand = (target - prediction).square().mean((1, 2, 3))
    return {
        "parameterization": base.parameterization,
        "channels": channels,
        "host attends in chunks": in_chunks,
        "sigma": sigma.tolist(),
        "x_t": float((ours.x_t - x_t).abs().max()),
        "x_t of the host": float((ours.x_t - host.model_sampling.calculate_input(sigma, x)).abs().max()),
        "target": float((ours.target - target).abs().max()),
        "errors": error.tolist(),
        "errors by hand": by_hand.tolist(),
    }


class InChunksError(Exception):
    """An attention asked how much memory is free, to cut itself into chunks."""


@contextmanager
def no_attention_in_chunks() -> Iterator[None]:
    """It depends on the memory of the moment, so that gradient checkpointing could not repeat it."""
    from comfy import model_management

    def refuse(*_: Any) -> Any:
        raise InChunksError

    plain, model_management.get_free_memory = model_management.get_free_memory, refuse
    try:
        yield
    finally:
        model_management.get_free_memory = plain


def held_in_bf16(models: tuple[Any, Any, Any], draw: tuple[Any, Any, Any]) -> dict[str, Any]:
    """The errors of a model whose weights are in bf16, in a training pass in bf16 and outside; what its network got."""
    import torch
    from continual_lora.trainer.bases.comfyui.base import ComfyBase
    from continual_lora.trainer.losses.denoising import NoisedBatch
    from continual_lora.trainer.training.precision import in_format

    base, formats = ComfyBase(*models), []
    base.unet.register_forward_pre_hook(lambda _, args: formats.append(str(args[0].dtype)))
    found = {}
    with torch.no_grad():
        for name, choice in (("bf16", "bf16"), ("host's format", "no")):
            denoiser = in_format(base, choice)
            found[f"errors in {name}"] = NoisedBatch(denoiser, *draw).error(denoiser.encode_prompt(PROMPT, {})).tolist()
    return {**found, "formats": formats, "format of the host": str(models[0].model.manual_cast_dtype)}


def host_sigma(host: Any, t: Any) -> Any:
    """The host's noise level at the timesteps 0..999; flows count to 1000 or to 1, and have no level 0."""
    from comfy.model_sampling import ModelSamplingDiscrete

    sampling = host.model_sampling
    if isinstance(sampling, ModelSamplingDiscrete):
        return sampling.sigma(t.float())
    return sampling.sigma((t + 1) / 1000 * getattr(sampling, "multiplier", 1.0))


def more_of(host: Any, pooled: Any) -> dict[str, Any]:
    """What the host's sampler passes on beside the prompt: 3 times the vector, and the guidance of Flux as ours is."""
    import torch

    vector = host.encode_adm(pooled_output=pooled, width=64, height=64)
    guided = host.model_config.unet_config.get("guidance_embed")
    more = {} if vector is None else {"y": vector.expand(3, -1)}
    return more | ({"guidance": torch.ones(1)} if guided else {})


if __name__ == "__main__":
    sys.path[0] = sys.argv[2]  # instead of this folder, of which nothing may hide ComfyUI's
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[3]))))
