"""Images of a sequence by the host's own sampler."""

from collections.abc import Iterator
from typing import Any

import comfy.sample
import torch
from torch import Tensor

from ...disk.sequence import ConceptSequence
from ...evaluation.pictures import Artist
from ..fingerprint import autoencoder_fingerprint
from .apply import apply_lora, clip_with_tokens
from .changes import clip_changes
from .memory import host_mode
from .noising import changed_sampling
from .options import options_name

AT_ONCE = 4  # images in a batch: what fits beside a model on a small GPU


def host_artist(
    model: Any,
    clip: Any,
    vae: Any,
    count: int,
    seed: int,
    steps: int,
    cfg: float,
    sampler: str,
    scheduler: str,
    size: int,
) -> Artist:
    """Draws as KSampler would, with an empty negative prompt.

    Args:
        model: MODEL, without the sequence.
        clip: CLIP.
        vae: VAE.
        count: images of each prompt.
        seed: of the noise, the same for every prompt and every task.
        steps: of the sampler.
        cfg: classifier-free guidance.
        sampler: a name of the host's.
        scheduler: a name of the host's.
        size: side in pixels.
    """

    @host_mode()
    def draw(line: ConceptSequence, prompts: list[str]) -> Iterator[Tensor]:
        taught = apply_lora(model, line.lora(line.tasks[-1]), 1.0)
        text = clip_with_tokens(clip, line.tokens())
        empty = comfy.sample.fix_empty_latent_channels(taught, torch.zeros(count, 4, size // 8, size // 8))
        noise = comfy.sample.prepare_noise(empty, seed)
        negative = text.encode_from_tokens_scheduled(text.tokenize(""))
        for prompt in prompts:
            positive = text.encode_from_tokens_scheduled(text.tokenize(prompt))
            parts = []
            for own_noise, own_empty in zip(noise.split(AT_ONCE), empty.split(AT_ONCE), strict=True):
                latents = comfy.sample.sample(
                    taught, own_noise, steps, cfg, sampler, scheduler, positive, negative, own_empty, seed=seed
                )
                parts.append(vae.decode(latents).movedim(-1, 1).float().cpu())
            yield torch.cat(parts)

    how = {"sampler": f"{sampler}, {scheduler}", "count": count, "seed": seed, "steps": steps, "guidance": cfg}
    return Artist(draw, {**how, "size": size, "vae": _vae_name(vae), **_changes(model, clip)})


def _vae_name(vae: Any) -> str:
    """Another one decodes other images; that MODEL is the sequence's own is checked elsewhere."""
    return autoencoder_fingerprint(vae.first_stage_model)[:12]


def _changes(model: Any, clip: Any) -> dict[str, str]:
    """What nodes did to MODEL and CLIP; empty if nothing."""
    found = {"model sampling": changed_sampling(model), "model options": options_name(model)}
    return {name: value for name, value in found.items() if value} | clip_changes(clip)
