"""Images from a denoiser: DDIM with classifier-free guidance, for bases that have no host with samplers of its own."""

from collections.abc import Callable

import torch
from torch import Tensor

from .denoiser import Conditioning, Denoiser, Parameterization


def predicted_x_0_and_noise(
    prediction: Tensor, x_t: Tensor, scales: tuple[Tensor, Tensor], parameterization: Parameterization
) -> tuple[Tensor, Tensor]:
    """What the prediction says the image and the noise were.

    Args:
        prediction: the network's output, [B, C, h, w].
        x_t: what it was given, [B, C, h, w].
        scales: signal and spread, x_t = signal x_0 + spread noise, scalars in 0..1.
        parameterization: "eps", "v" or "flow".
    """
    signal, spread = scales
    if parameterization == "flow":
        return x_t - spread * prediction, x_t + signal * prediction
    if parameterization == "v":
        return signal * x_t - spread * prediction, signal * prediction + spread * x_t
    return (x_t - spread * prediction) / signal, prediction


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    conditioning: Conditioning,
    unconditional: Conditioning,
    noise: Tensor,
    steps: int = 25,
    guidance: float = 3.0,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """Deterministic DDIM from pure noise to latents; of a flow, the same steps are Euler's.

    Source: Song et al., arXiv 2010.02502, eq. 12 with sigma 0; Ho & Salimans, arXiv 2207.12598, for the guidance.

    Args:
        denoiser: the model, with whatever adapter it carries.
        conditioning: the prompt, one or B.
        unconditional: the empty prompt.
        noise: x_T, standard normal, [B, C, h, w].
        steps: passes, at equal distances in 0..999.
        guidance: 1 follows the prompt alone; larger exaggerates it.
        on_step: told (done, total); may raise to stop.

    Returns:
        Latents x_0, [B, C, h, w].
    """
    batch, x_t = len(noise), noise
    both = Conditioning.cat([conditioning.expand(batch), unconditional.expand(batch)])
    timesteps = torch.linspace(999, 0, steps, device=noise.device).round().long()
    for index, t in enumerate(timesteps):
        prediction = denoiser.predict(x_t.repeat(2, 1, 1, 1), t.expand(2 * batch), both)
        wanted, plain = prediction.chunk(2)
        prediction = plain + guidance * (wanted - plain)
        x_0, eps = predicted_x_0_and_noise(prediction, x_t, denoiser.scales(t), denoiser.parameterization)
        if index < steps - 1:
            signal, spread = denoiser.scales(timesteps[index + 1])
            x_t = signal * x_0 + spread * eps
        else:
            x_t = x_0
        on_step(index + 1, steps)
    return x_t


def generate(
    denoiser: Denoiser,
    prompt: Conditioning,
    unconditional: Conditioning,
    count: int,
    seed: int,
    steps: int = 25,
    guidance: float = 3.0,
    size: int = 0,
) -> Tensor:
    """Images [count, 3, size, size] in 0..1, size 0 being the base's own; the same seed is the same noise anywhere."""
    side = size or denoiser.resolution
    shape = denoiser.encode_images(torch.zeros(1, 3, side, side)).shape[1:]
    noise = torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed)).to(denoiser.device)
    return denoiser.decode_latents(sample(denoiser, prompt, unconditional, noise, steps, guidance))
