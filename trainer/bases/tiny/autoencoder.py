"""The autoencoder of the embedded base: 64x64 RGB to 8x8 latents with 8 channels, and back."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

LATENT_CHANNELS = 8
WIDTHS = (48, 96, 160)
NUM_GROUPS = 16


class _Block(nn.Module):
    def __init__(self, layers: Any, channels: int) -> None:  # noqa: ANN401
        super().__init__()
        self.layers = nn.Sequential(
            layers.GroupNorm(NUM_GROUPS, channels),
            nn.SiLU(),
            layers.Conv2d(channels, channels, 3, padding=1),
            layers.GroupNorm(NUM_GROUPS, channels),
            nn.SiLU(),
            layers.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.layers(x)
        return out


class _Upsample(nn.Module):
    def __init__(self, layers: Any, in_channels: int, out_channels: int) -> None:  # noqa: ANN401
        super().__init__()
        self.conv = layers.Conv2d(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class _Normalization(nn.BatchNorm2d):
    """Works wherever its input is: a host that brings layers one by one does not know of this one."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return super().forward(x)
        assert self.running_mean is not None and self.running_var is not None
        return F.batch_norm(x, self.running_mean.to(x), self.running_var.to(x), eps=self.eps)


class Autoencoder(nn.Module):
    """Deterministic autoencoder; `to_latent` makes the variance of latents 1.

    Args:
        layers: has `Conv2d` and `GroupNorm`; a host has its own, which it can leave on the CPU.
    """

    def __init__(self, layers: Any = nn) -> None:  # noqa: ANN401
        super().__init__()
        first, second, third = WIDTHS
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(2),
            layers.Conv2d(12, first, 3, padding=1),
            _Block(layers, first),
            layers.Conv2d(first, second, 3, stride=2, padding=1),
            _Block(layers, second),
            layers.Conv2d(second, third, 3, stride=2, padding=1),
            _Block(layers, third),
            layers.GroupNorm(NUM_GROUPS, third),
            nn.SiLU(),
            layers.Conv2d(third, LATENT_CHANNELS, 3, padding=1),
        )
        self.to_latent = _Normalization(LATENT_CHANNELS, affine=False, momentum=0.01)
        self.decoder = nn.Sequential(
            layers.Conv2d(LATENT_CHANNELS, third, 3, padding=1),
            _Block(layers, third),
            _Block(layers, third),
            _Upsample(layers, third, second),
            _Block(layers, second),
            _Upsample(layers, second, first),
            _Block(layers, first),
            layers.GroupNorm(NUM_GROUPS, first),
            nn.SiLU(),
            layers.Conv2d(first, 12, 3, padding=1),
            nn.PixelShuffle(2),
        )

    def encode(self, images: Tensor) -> Tensor:
        """[B, 3, 8h, 8w] in -1..1 -> latents [B, 8, h, w] of unit variance."""
        latents: Tensor = self.to_latent(self.encoder(images))
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, 8, h, w] -> [B, 3, 8h, 8w] about -1..1."""
        images: Tensor = self.decoder(latents)
        return images
