"""The contract between the trainer and a base model.

The core sees only this; everything about one kind of base (the embedded one, a host's model) is behind it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from .errors import ContinualLoraError

Parameterization = Literal["eps", "v", "flow"]
# One learned token: text encoder name ("clip_l", by family also "clip_g", "t5xxl", ...) -> word vector [D].
TokenVectors = dict[str, Tensor]


@dataclass(frozen=True)
class Conditioning:
    """A prompt as the network takes it.

    Attributes:
        context: [1 or B, M, D], for the attention.
        pooled: [1 or B, P], the vector conditioning of SDXL, SD 3 and Flux; None where the base has none.
        joint: whether text and image attend to one another, as in SD 3 and Flux; in a cross-attention they do not.
    """

    context: Tensor
    pooled: Tensor | None = None
    joint: bool = False

    def expand(self, batch: int) -> "Conditioning":
        """The same prompt for `batch` samples, without a copy."""
        pooled = None if self.pooled is None else self.pooled.expand(batch, -1)
        return Conditioning(self.context.expand(batch, -1, -1), pooled, self.joint)

    def rows(self, chosen: Tensor) -> "Conditioning":
        """Those of a batch of prompts, by index."""
        pooled = None if self.pooled is None else self.pooled[chosen]
        return Conditioning(self.context[chosen], pooled, self.joint)

    @staticmethod
    def cat(parts: "list[Conditioning]") -> "Conditioning":
        """Put batches of prompts one behind the other; a cross-attention cannot tell that shorter ones are repeated.

        Raises:
            ContinualLoraError: prompts of different lengths, of a model that would tell.
        """
        lengths = sorted({part.context.shape[1] for part in parts})
        if len(lengths) > 1 and any(part.joint for part in parts):
            raise ContinualLoraError(
                "For this model, prompts that are trained or compared together should be of one length.",
                f"These are {', '.join(map(str, lengths))} pieces long.",
                "Shorten the longest prompt or caption.",
            )
        length = math.lcm(*lengths)
        contexts = [
            part.context
            if part.context.shape[1] == length
            else part.context.repeat(1, length // part.context.shape[1], 1)
            for part in parts
        ]
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return Conditioning(torch.cat(contexts), torch.cat(pooled) if pooled else None, parts[0].joint)


class Denoiser(Protocol):
    """A private view of a base model: shares its weights, may carry adapters, never changes the original."""

    parameterization: Parameterization
    architecture: str
    fingerprint: str
    changes: Mapping[str, str]  # what was done to it, by name: another sampling, a LoRA on its text encoder
    resolution: int
    device: torch.device
    dtype: torch.dtype  # of its passes, as it makes them by itself
    mixed_precision: str  # what "auto" is on its device: "bf16", "fp16" or "no"
    unet: nn.Module

    def make_room(self, shape: Sequence[int], checkpointed: bool) -> None:
        """Get the memory for a training on x_t [B, C, h, w]; `unet` is another one afterwards, without an adapter."""
        ...

    def encode_images(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in 0..1 -> latents x_0 [B, C, h, w], in the scale that the network was trained on."""
        ...

    def autoencoder_fingerprint(self) -> str:
        """Which autoencoder it is, for latents that are kept."""
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

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """How x_t = signal * x_0 + spread * noise is mixed at timesteps t [B] in 0..999 -> signal [B], spread [B]."""
        ...

    def predict(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """Run the network: x_t [B, C, h, w], t [B] in 0..999 -> prediction [B, C, h, w]."""
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


class Wrapped:
    """A denoiser around another one; what a subclass does not define is the other one's."""

    def __init__(self, denoiser: Denoiser) -> None:
        self._denoiser = denoiser

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._denoiser, name)
