"""The U-Net of the embedded base: Stable Diffusion's, in miniature.

Layer names follow the original latent-diffusion layout (`input_blocks.1.1.transformer_blocks.0.attn2.to_k`),
so the host's own U-Net class and every LoRA tool reads the same weights.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LATENT_CHANNELS = 8
MODEL_CHANNELS = 96
CHANNEL_MULT = (1, 2)
NUM_RES_BLOCKS = (1, 1)
HEAD_CHANNELS = 32
CONTEXT_DIM = 128
NUM_GROUPS = 32


def timestep_embedding(timesteps: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """Sinusoidal embedding of the timesteps.

    Source: Ho et al., arXiv 2006.11239, in the cosine-first order of latent diffusion.

    Args:
        timesteps: [B], 0..999.
        dim: an even number of channels.
        max_period: the longest wavelength.

    Returns:
        [B, dim], values in [-1, 1].
    """
    half = dim // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, device=timesteps.device) / half)
    angles = timesteps[:, None].float() * frequencies[None]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class ResBlock(nn.Module):
    """Two convolutions around an added timestep embedding, with a skip connection."""

    def __init__(self, in_channels: int, out_channels: int, time_dim: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(NUM_GROUPS, in_channels), nn.SiLU(), nn.Conv2d(in_channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time_dim, out_channels))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(NUM_GROUPS, out_channels),
            nn.SiLU(),
            nn.Identity(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        same = in_channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x: [B, C, H, W], emb: [B, time_dim] -> [B, C', H, W]."""
        hidden: Tensor = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]
        out: Tensor = self.skip_connection(x) + self.out_layers(hidden)
        return out


class Attention(nn.Module):
    """Multi-head attention; without a context it attends to itself."""

    def __init__(self, query_dim: int, context_dim: int) -> None:
        super().__init__()
        self.heads = query_dim // HEAD_CHANNELS
        self.to_q = nn.Linear(query_dim, query_dim, bias=False)
        self.to_k = nn.Linear(context_dim, query_dim, bias=False)
        self.to_v = nn.Linear(context_dim, query_dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(query_dim, query_dim), nn.Identity())

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x: [B, N, query_dim], context: [B, M, context_dim] -> [B, N, query_dim]."""
        context = x if context is None else context
        q, k, v = (
            layer(source).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, source in ((self.to_q, x), (self.to_k, context), (self.to_v, context))
        )
        out: Tensor = self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


class GEGLU(nn.Module):
    """Gated linear unit with a GELU gate (Shazeer, arXiv 2002.05202)."""

    def __init__(self, dim: int, inner_dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, inner_dim * 2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, dim] -> [B, N, inner_dim]."""
        value, gate = self.proj(x).chunk(2, dim=-1)
        gated: Tensor = value * F.gelu(gate)
        return gated


class FeedForward(nn.Module):
    """GEGLU and a projection back, four times as wide inside."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(dim, dim * 4), nn.Identity(), nn.Linear(dim * 4, dim))

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, dim] -> [B, N, dim]."""
        out: Tensor = self.net(x)
        return out


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the prompt, feed-forward; each residual."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.attn1 = Attention(dim, dim)
        self.ff = FeedForward(dim)
        self.attn2 = Attention(dim, CONTEXT_DIM)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x: [B, N, dim], context: [B, M, CONTEXT_DIM] -> [B, N, dim]."""
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        out: Tensor = x + self.ff(self.norm3(x))
        return out


class SpatialTransformer(nn.Module):
    """A transformer block over the pixels of a feature map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(NUM_GROUPS, channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels)])
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x: [B, C, H, W], context: [B, M, CONTEXT_DIM] -> [B, C, H, W]."""
        height, width = x.shape[-2:]
        hidden = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            hidden = block(hidden, context)
        out: Tensor = x + self.proj_out(hidden.transpose(1, 2).unflatten(-1, (height, width)))
        return out


class Downsample(nn.Module):
    """Halves height and width with a strided convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H/2, W/2]."""
        out: Tensor = self.op(x)
        return out


class Upsample(nn.Module):
    """Doubles height and width, then smooths with a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, 2H, 2W]."""
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


def _run(layers: Sequence[nn.Module], x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
    for layer in layers:
        if isinstance(layer, ResBlock):
            x = layer(x, emb)
        elif isinstance(layer, SpatialTransformer):
            x = layer(x, context)
        else:
            x = layer(x)
    return x


class UNet(nn.Module):
    """Noise predictor on [B, 8, 8, 8] latents: two levels, attention at both."""

    def __init__(self) -> None:
        super().__init__()
        time_dim = MODEL_CHANNELS * 4
        self.time_embed = nn.Sequential(nn.Linear(MODEL_CHANNELS, time_dim), nn.SiLU(), nn.Linear(time_dim, time_dim))
        channels = MODEL_CHANNELS
        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(LATENT_CHANNELS, channels, 3, padding=1)])])
        skips = [channels]
        for level, mult in enumerate(CHANNEL_MULT):
            for _ in range(NUM_RES_BLOCKS[level]):
                out_channels = MODEL_CHANNELS * mult
                block = [ResBlock(channels, out_channels, time_dim), SpatialTransformer(out_channels)]
                self.input_blocks.append(nn.ModuleList(block))
                channels = out_channels
                skips.append(channels)
            if level != len(CHANNEL_MULT) - 1:
                self.input_blocks.append(nn.ModuleList([Downsample(channels)]))
                skips.append(channels)
        self.middle_block = nn.ModuleList(
            [
                ResBlock(channels, channels, time_dim),
                SpatialTransformer(channels),
                ResBlock(channels, channels, time_dim),
            ]
        )
        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(CHANNEL_MULT))):
            for index in range(NUM_RES_BLOCKS[level] + 1):
                out_channels = MODEL_CHANNELS * mult
                layers: list[nn.Module] = [
                    ResBlock(channels + skips.pop(), out_channels, time_dim),
                    SpatialTransformer(out_channels),
                ]
                channels = out_channels
                if level and index == NUM_RES_BLOCKS[level]:
                    layers.append(Upsample(channels))
                self.output_blocks.append(nn.ModuleList(layers))
        self.out = nn.Sequential(
            nn.GroupNorm(NUM_GROUPS, channels), nn.SiLU(), nn.Conv2d(channels, LATENT_CHANNELS, 3, padding=1)
        )

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        """Predict the noise in x.

        Args:
            x: noisy latents x_t, [B, 8, H, W].
            timesteps: [B], 0..999.
            context: text encoding, [B, M, CONTEXT_DIM].

        Returns:
            The predicted noise, [B, 8, H, W].
        """
        emb = self.time_embed(timestep_embedding(timesteps, MODEL_CHANNELS).to(x.dtype))
        skips = []
        for block in self.input_blocks:
            x = _run(block, x, emb, context)  # type: ignore[arg-type]
            skips.append(x)
        x = _run(self.middle_block, x, emb, context)  # type: ignore[arg-type]
        for block in self.output_blocks:
            x = _run(block, torch.cat([x, skips.pop()], dim=1), emb, context)  # type: ignore[arg-type]
        out: Tensor = self.out(x)
        return out
