"""The autoencoder of the embedded base: 64x64 RGB to 8x8 latents with 8 channels, and back."""

import torch.nn.functional as F
from torch import Tensor, nn

LATENT_CHANNELS = 8
WIDTHS = (48, 96, 160)
NUM_GROUPS = 16


class _Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(NUM_GROUPS, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(NUM_GROUPS, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.layers(x)
        return out


class _Upsample(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class Autoencoder(nn.Module):
    """Deterministic autoencoder; `to_latent` and `from_latent` hold the normalization to unit variance."""

    def __init__(self) -> None:
        super().__init__()
        first, second, third = WIDTHS
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(12, first, 3, padding=1),
            _Block(first),
            nn.Conv2d(first, second, 3, stride=2, padding=1),
            _Block(second),
            nn.Conv2d(second, third, 3, stride=2, padding=1),
            _Block(third),
            nn.GroupNorm(NUM_GROUPS, third),
            nn.SiLU(),
            nn.Conv2d(third, LATENT_CHANNELS, 3, padding=1),
        )
        self.to_latent = nn.BatchNorm2d(LATENT_CHANNELS, affine=False, momentum=0.01)
        self.decoder = nn.Sequential(
            nn.Conv2d(LATENT_CHANNELS, third, 3, padding=1),
            _Block(third),
            _Block(third),
            _Upsample(third, second),
            _Block(second),
            _Upsample(second, first),
            _Block(first),
            nn.GroupNorm(NUM_GROUPS, first),
            nn.SiLU(),
            nn.Conv2d(first, 12, 3, padding=1),
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
