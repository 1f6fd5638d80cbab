"""The contract between the trainer and a base model.

The core sees only this; everything about one kind of base (the embedded one, a host's model) is behind it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

Parameterization = Literal["eps", "v"]
# One learned token: text encoder name ("clip_l", for SDXL also "clip_g") -> word vector [D].
TokenVectors = dict[str, Tensor]


@dataclass(frozen=True)
class Conditioning:
    """A prompt as the U-Net takes it.

    Attributes:
        context: [1 or B, M, D], for the cross-attention.
        pooled: [1 or B, P], the vector conditioning of SDXL; None where the base has none.
    """

    context: Tensor
    pooled: Tensor | None = None

    def expand(self, batch: int) -> "Conditioning":
        """The same prompt for `batch` samples, without a copy."""
        pooled = None if self.pooled is None else self.pooled.expand(batch, -1)
        return Conditioning(self.context.expand(batch, -1, -1), pooled)

    @staticmethod
    def cat(parts: "list[Conditioning]") -> "Conditioning":
        """Put batches of prompts one behind the other."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return Conditioning(torch.cat([part.context for part in parts]), torch.cat(pooled) if pooled else None)


class Denoiser(Protocol):
    """A private view of a base model: shares its weights, may carry adapters, never changes the original."""

    parameterization: Parameterization
    architecture: str
    fingerprint: str
    resolution: int
    device: torch.device
    unet: nn.Module

    def make_room(self, shape: Sequence[int], checkpointed: bool) -> None:
        """Get the memory for a training on x_t [B, C, h, w]; `unet` is another one afterwards, without an adapter."""
        ...

    def encode_images(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in 0..1 -> latents x_0 [B, C, h, w], in the scale that the U-Net was trained on."""
        ...

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Latents x_0 [B, C, h, w] -> images [B, 3, H, W] in 0..1."""
        ...

    def encode_prompt(self, prompt: str, tokens: Mapping[str, TokenVectors]) -> Conditioning:
        """Encode `prompt`; each `<name>` of `tokens` in it stands for that learned vector. Keeps the graph."""
        ...

    def word_vectors(self, word: str) -> TokenVectors:
        """The mean vector of the word's pieces in each text encoder: where a new token starts."""
        ...

    def alphas_cumprod(self, t: Tensor) -> Tensor:
        """Share of signal variance at timesteps t [B] in 0..999 -> [B], 1 = clean."""
        ...

    def predict(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """Run the U-Net: x_t [B, C, h, w], t [B] in 0..999 -> prediction [B, C, h, w]."""
        ...


def encode_one_by_one(denoiser: Denoiser, images: Iterable[Tensor]) -> Tensor:
    """Latents of images, without a graph and at the memory of one image.

    Args:
        denoiser: its autoencoder does it.
        images: [3, H, W] each, in 0..1, all of one size.

    Returns:
        x_0, [N, C, h, w] in float32 on the denoiser's device.
    """
    with torch.no_grad():
        return torch.cat([denoiser.encode_images(image[None].to(denoiser.device)) for image in images]).float()
