"""The embedded base as a `Denoiser`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from ...denoiser import Conditioning, Parameterization, TokenVectors
from ...prompts import split_tokens, token_of
from ..fingerprint import autoencoder_fingerprint, fingerprint
from ..view import shared_view
from .text import END, MAX_LENGTH, START, UNKNOWN
from .weights import load_weights, weights_folder

ENCODER = "clip_l"


def scaled_linear_alphas_cumprod() -> Tensor:
    """Stable Diffusion's noise schedule: betas linear in their square root from 0.00085 to 0.012.

    Returns:
        [1000], the share of signal variance that is left at each timestep.
    """
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).float()


class TinyBase:
    """Stable Diffusion in miniature, 64x64 pixels; see `Denoiser` for the methods.

    Args:
        folder: the weights; the bundled ones by default.
        device: where to run.
    """

    parameterization: Parameterization = "eps"
    architecture = "continual-lora-tiny"
    resolution = 64
    changes: Mapping[str, str] = MappingProxyType({})
    dtype = torch.float32

    def __init__(self, folder: Path | None = None, device: str | torch.device = "cpu") -> None:
        folder = folder or weights_folder()
        self.device = torch.device(device)
        self.weights = load_weights(folder)
        for module in (self.weights.unet, self.weights.text, self.weights.autoencoder):
            module.to(self.device).train(False).requires_grad_(False)
        native = self.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        self.mixed_precision = "bf16" if native else "no"
        self.unet = shared_view(self.weights.unet)
        self.fingerprint = fingerprint(self.weights.unet)
        signal = scaled_linear_alphas_cumprod().to(self.device)
        self._scales = signal.sqrt(), (1 - signal).sqrt()

    def make_room(self, shape: Sequence[int], checkpointed: bool) -> None:
        """Nothing to do: it is small."""

    def encode_images(self, images: Tensor) -> Tensor:
        """[B, 3, 64, 64] in 0..1 -> latents [B, 8, 8, 8]."""
        return self.weights.autoencoder.encode(images.to(self.device) * 2 - 1)

    def autoencoder_fingerprint(self) -> str:
        """Of its autoencoder."""
        return autoencoder_fingerprint(self.weights.autoencoder)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Latents [B, 8, 8, 8] -> [B, 3, 64, 64] in 0..1."""
        return (self.weights.autoencoder.decode(latents) / 2 + 0.5).clamp(0, 1)

    def encode_prompt(self, prompt: str, tokens: Mapping[str, TokenVectors]) -> Conditioning:
        """The text encoder's output for the prompt, [1, MAX_LENGTH, 128]."""
        tokenizer, text = self.weights.tokenizer, self.weights.text
        rows = [text.word_vectors[tokenizer.ids[START]][None]]
        for piece in split_tokens(prompt, tokens):
            name = token_of(piece, tokens)
            rows.append(tokens[name][ENCODER][None] if name else text.word_vectors[tokenizer.encode(piece)])
        words = torch.cat(rows)[: MAX_LENGTH - 1]
        padding = text.word_vectors[tokenizer.ids[END]].expand(MAX_LENGTH - len(words), -1)
        return Conditioning(text(torch.cat([words, padding])[None]))

    def word_vectors(self, word: str) -> TokenVectors:
        """The mean vector of the words of `word`."""
        ids = self.weights.tokenizer.encode(word) or [self.weights.tokenizer.ids[UNKNOWN]]
        return {ENCODER: self.weights.text.word_vectors[ids].mean(0)}

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """[B] timesteps -> signal and spread, [B] each."""
        signal, spread = self._scales
        return signal[t], spread[t]

    def predict(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """The predicted noise, [B, 8, 8, 8]."""
        prediction: Tensor = self.unet(x_t, t, conditioning.context)
        return prediction
