"""The diffusion loss: noise an image, predict, compare."""

from collections.abc import Iterator, Sequence
from copy import copy

import torch
from torch import Tensor

from ..denoiser import Conditioning, Denoiser, Parameterization


def add_noise(x_0: Tensor, noise: Tensor, scales: tuple[Tensor, Tensor]) -> Tensor:
    """x_t = signal x_0 + spread noise.

    Diffusion has signal = sqrt(a), spread = sqrt(1 - a); a flow has signal = 1 - sigma, spread = sigma.
    Source: Ho et al., arXiv 2006.11239, eq. 4; Esser et al., arXiv 2403.03206, eq. 13, for the flow.

    Args:
        x_0: latents, [B, C, H, W].
        noise: standard normal, [B, C, H, W].
        scales: signal and spread, [B] in 0..1 each.
    """
    signal, spread = (scale[:, None, None, None] for scale in scales)
    return signal * x_0 + spread * noise


def prediction_target(
    x_0: Tensor, noise: Tensor, scales: tuple[Tensor, Tensor], parameterization: Parameterization
) -> Tensor:
    """What the network should answer: noise (eps), signal noise - spread x_0 (v), or noise - x_0 (flow).

    Source: Salimans & Ho, arXiv 2202.00512, for v; Liu et al., arXiv 2209.03003, for the flow.

    Args:
        x_0: latents, [B, C, H, W].
        noise: standard normal, [B, C, H, W].
        scales: signal and spread, [B] in 0..1 each.
        parameterization: "eps", "v" or "flow".
    """
    if parameterization == "eps":
        return noise
    if parameterization == "flow":
        return noise - x_0
    signal, spread = (scale[:, None, None, None] for scale in scales)
    return signal * noise - spread * x_0


def denoising_error(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Error e = mean over C, H, W of (target - prediction)^2, per sample.

    Source: Jha et al., arXiv 2410.00700, eq. 2; Ho et al., eq. 14.

    Args:
        prediction: [B, C, H, W].
        target: [B, C, H, W].
        mask: [B, 1, H, W] in 0..1, the weight of each place; None weighs all the same.

    Returns:
        [B], >= 0, computed in fp32.
    """
    squares = (target.float() - prediction.float()).square()
    if mask is None:
        return squares.mean((1, 2, 3))
    return (squares * mask).sum((1, 2, 3)) / (mask.sum((1, 2, 3)) * squares.shape[1]).clamp_min(1e-8)


class NoisedBatch:
    """One draw of (image, t, noise), shared by all prompts that are compared on it.

    Args:
        denoiser: gives the schedule and the parameterization.
        x_0: latents, [B, C, H, W].
        t: timesteps, [B] in 0..999.
        noise: standard normal, [B, C, H, W].
        mask: [B, 1, H, W] in 0..1 or None.
    """

    def __init__(self, denoiser: Denoiser, x_0: Tensor, t: Tensor, noise: Tensor, mask: Tensor | None = None) -> None:
        scales = denoiser.scales(t)
        self.denoiser, self.t, self.mask = denoiser, t, mask
        self.x_t = add_noise(x_0, noise, scales)
        self.target = prediction_target(x_0, noise, scales, denoiser.parameterization)

    def __len__(self) -> int:
        return len(self.t)

    def parts(self, count: int) -> list["NoisedBatch"]:
        """The same draw in parts, of sizes that differ by one at most."""
        parts = [copy(self) for _ in range(count)]
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                for part, piece in zip(parts, value.tensor_split(count), strict=True):
                    setattr(part, name, piece)
        return parts

    def predict(self, conditionings: list[Conditioning]) -> Tensor:
        """The predictions under K prompts in one pass of the U-Net, [K, B, C, H, W]."""
        count, batch = len(conditionings), len(self)
        prompts = Conditioning.cat([c.expand(batch) for c in conditionings])
        x_t, t = self.x_t.repeat(count, 1, 1, 1), self.t.repeat(count)
        prediction = self.denoiser.predict(x_t, t, prompts)
        return prediction.view(count, batch, *prediction.shape[1:])

    def distance(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Mean squared distance of predictions [B, C, H, W] where the mask counts, [B]."""
        return denoising_error(prediction, target, self.mask)

    def error(self, conditioning: Conditioning) -> Tensor:
        """Denoising error of each sample under one prompt, [B]."""
        return self.errors([conditioning])[0]

    def errors(self, conditionings: list[Conditioning]) -> Tensor:
        """Denoising errors under K prompts in one pass of the U-Net, [K, B]."""
        return self.errors_of(self.predict(conditionings))

    def errors_of(self, predictions: Tensor) -> Tensor:
        """Denoising errors of predictions [K, B, C, H, W], [K, B]."""
        return torch.stack([self.distance(prediction, self.target) for prediction in predictions])


def draw_batch(
    denoiser: Denoiser, latents: Tensor, masks: Tensor | None, indices: Tensor, rng: torch.Generator
) -> NoisedBatch:
    """Noise the chosen latents with t uniform in 0..999 and standard normal noise, both drawn on the CPU from `rng`."""
    (batch,) = draw_batches(denoiser, latents, masks, [indices], rng)
    return batch


def draw_batches(
    denoiser: Denoiser, latents: Tensor, masks: Tensor | None, indices: Sequence[Tensor], rng: torch.Generator
) -> Iterator[NoisedBatch]:
    """The same in parts, one after another; however the images are parted, each has the same t and noise."""
    sizes = [len(part) for part in indices]
    t = torch.randint(1000, (sum(sizes),), generator=rng).split(sizes)
    noise = torch.randn(sum(sizes), *latents.shape[1:], generator=rng).split(sizes)
    for part, its_t, its_noise in zip(indices, t, noise, strict=True):
        chosen = None if masks is None else masks[part]
        yield NoisedBatch(denoiser, latents[part], its_t.to(latents.device), its_noise.to(latents), chosen)
