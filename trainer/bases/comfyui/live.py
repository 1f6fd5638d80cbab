"""Pictures of a training that runs, by the host's own sampler on the live view."""

import copy
from typing import Any

import comfy.sample
import latent_preview
import torch
from comfy.patcher_extension import WrappersMP
from PIL import Image
from torch import Tensor

from ...denoiser import Conditioning
from ...errors import ContinualLoraError
from ...images import to_pil
from ...settings import TrainSettings
from ...training.samples import Draw
from .base import SCALE, ComfyBase
from .memory import host_mode

COMPILED = "torch.compile"  # the key of what TorchCompileModel leaves
STEPS, SAMPLER, SCHEDULER = 20, "euler", "normal"


def live_model(model: Any, base: ComfyBase) -> Any:
    """A clone of MODEL whose U-Net is the view with its adapter.

    The host finds its weights loaded already: nothing is moved or patched, and there is no second copy of them.
    """
    stand_in = copy.copy(model.model)
    sampling = model.get_model_object("model_sampling")  # what a node put on MODEL is not always there just now
    stand_in._modules = {**model.model._modules, "diffusion_model": base.unet, "model_sampling": sampling}
    clone = model.clone()
    clone.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, COMPILED)  # it would put MODEL's own U-Net in again
    clone.set_model_unet_function_wrapper(
        lambda _, given: stand_in.apply_model(given["input"], given["timestep"], **given["c"])
    )
    return clone


def live_draw(model: Any, vae: Any, base: ComfyBase, settings: TrainSettings) -> Draw:
    """Draws one picture as KSampler would, with an empty negative prompt.

    The prompts come from the view of the text encoder that the training uses, so that the host loads none.

    Args:
        model: MODEL that the training was given.
        vae: decodes, unless `sample_with_vae` is off: then the host's rough preview of latents stands in, which needs
            no memory to speak of.
        base: the view that is trained.
        settings: `seed` and `sample_with_vae` count.

    Raises:
        ContinualLoraError: the host has no rough preview for this kind of model.
    """
    latent_format = model.get_model_object("latent_format")
    factors = latent_format.latent_rgb_factors
    if settings.sample_every and not settings.sample_with_vae and factors is None:
        raise ContinualLoraError(
            '"sample_with_vae" should be on for a model that ComfyUI has no rough preview for.',
            f"It is off, and the latents are `{type(latent_format).__name__}`.",
            "Switch it on, or set sample_every to 0.",
        )

    @host_mode()
    def draw(prompt: Conditioning, empty: Conditioning, shape: torch.Size) -> Image.Image:
        blank = torch.zeros(1, *shape)
        noise = torch.randn(blank.shape, generator=torch.Generator().manual_seed(settings.seed))
        live = live_model(model, base)  # now, since the view is another one once there is room for the training
        conds = _cond(prompt), _cond(empty)
        latents = comfy.sample.sample(
            live, noise, STEPS, base.family.cfg, SAMPLER, SCHEDULER, *conds, blank, seed=settings.seed
        )
        if settings.sample_with_vae:
            return to_pil(vae.decode(latents)[0].movedim(-1, 0))
        bias, reshape = latent_format.latent_rgb_factors_bias, latent_format.latent_rgb_factors_reshape
        rough = latent_preview.Latent2RGBPreviewer(factors, bias, reshape)
        preview: Image.Image = rough.decode_latent_to_preview(model.model.process_latent_in(latents))
        return preview.resize((SCALE * shape[-1], SCALE * shape[-2]), Image.Resampling.BICUBIC)

    return draw


def _cond(prompt: Conditioning) -> list[list[Any]]:
    """A prompt as the host's samplers take it."""
    further: dict[str, Tensor] = {} if prompt.pooled is None else {"pooled_output": prompt.pooled}
    return [[prompt.context, further]]
