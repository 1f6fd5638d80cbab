"""VeRA: frozen random projections that all layers share, and two trained vectors a layer.

y = W x + b * (B (d * (A x))), A [rank, in] and B [out, rank] frozen, d [rank] and b [out] trained.
Source: Kopiczko et al., arXiv 2310.11454, equation 2; A and B Kaiming-uniform, d = 0.1, b = 0 at the start.
"""

import math

import torch
from torch import Tensor, nn

from .adapter import Adapter, Files
from .factors import Lora, LoraFactors
from .kohya import to_kohya
from .layers import replace_layer

NAME = "vera"
PROJECTION_SEED = 0  # the same A and B in every task of every sequence, so that they need not be saved
INITIAL_D = 0.1


class Scale(nn.Module):
    """Elementwise factor, its weight [n]."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        """[..., n] -> [..., n]."""
        return x * self.weight


class WithVera(nn.Module):
    """A linear layer and its VeRA; `a` [rank, in] and `b` [out, rank] are slices of the shared projections."""

    def __init__(self, base: nn.Module, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.base = base
        self.a, self.b = nn.Buffer(a, persistent=False), nn.Buffer(b, persistent=False)
        self.scale_d = Scale(torch.full((a.shape[0],), INITIAL_D, device=a.device))
        self.scale_b = Scale(torch.zeros(b.shape[0], device=b.device))

    def forward(self, x: Tensor) -> Tensor:
        """The layer's answer and the update's, which is computed in fp32."""
        output: Tensor = self.base(x)
        inner = self.scale_d(nn.functional.linear(x.to(self.a.dtype), self.a))  # type: ignore[arg-type]
        update: Tensor = self.scale_b(nn.functional.linear(inner, self.b))  # type: ignore[arg-type]
        return output + update.to(output.dtype)


class VeraAdapter(Adapter):
    """`<layer>.vera_d` [rank] and `<layer>.vera_b` [out]; alpha has no effect."""

    uses = Adapter.uses | {"rank"}

    def __init__(self, unet: nn.Module, rank: int, alpha: float, rng: torch.Generator) -> None:
        super().__init__(unet, rank, alpha, rng)
        weights: dict[str, Tensor] = {name: unet.get_parameter(f"{name}.weight") for name in self.names}
        out_features, in_features = (max(w.shape[side] for w in weights.values()) for side in (0, 1))
        shared = torch.Generator().manual_seed(PROJECTION_SEED)
        a = _kaiming_uniform(rank, in_features, shared)
        b = _kaiming_uniform(out_features, rank, shared)
        self._wrapped: dict[str, WithVera] = {}
        for name, weight in weights.items():
            own_a, own_b = a[:, : weight.shape[1]].to(weight.device), b[: weight.shape[0]].to(weight.device)
            layer = self._wrapped[name] = WithVera(unet.get_submodule(name), own_a, own_b)
            replace_layer(unet, name, layer)
            self.layers[f"{name}.vera_d"], self.layers[f"{name}.vera_b"] = layer.scale_d, layer.scale_b

    def _factors(self, name: str) -> tuple[Tensor, Tensor]:
        """Down [rank, in] = diag(d) A and up [out, rank] = diag(b) B: any VeRA is a LoRA."""
        layer = self._wrapped[name]
        return layer.scale_d.weight[:, None] * layer.a, layer.scale_b.weight[:, None] * layer.b

    def deltas(self) -> dict[str, Tensor]:
        """See `Adapter`."""
        return {name: up @ down for name in self.names for down, up in [self._factors(name)]}

    def files(self) -> Files:
        """A LoRA file of alpha = rank, and the vectors themselves."""
        with torch.no_grad():
            pairs = {name: self._factors(name) for name in self.names}
            lora: Lora = {n: LoraFactors(down.cpu(), up.cpu(), float(self.rank)) for n, (down, up) in pairs.items()}
        return {"lora": to_kohya(lora, self.kohya_names), "vera": self.state_dict()}

    def state_of(self, files: Files) -> dict[str, Tensor]:
        """See `Adapter`."""
        return dict(files.get("vera", {}))


def _kaiming_uniform(rows: int, columns: int, rng: torch.Generator) -> Tensor:
    """Uniform in +-sqrt(6 / columns) (He et al., arXiv 1502.01852)."""
    return (2 * torch.rand(rows, columns, generator=rng) - 1) * math.sqrt(6 / columns)


ADAPTER = VeraAdapter
