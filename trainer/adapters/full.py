"""Full keys and values, as in Custom Diffusion (Kumari et al., arXiv 2212.04488).

Trained as a difference D that starts at zero: y = W x + D x. The base's own weights stay shared and untouched, and the
file is exact, since D alone is saved.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from .adapter import Adapter, Files
from .factors import Lora
from .kohya import differences_from_kohya, differences_to_kohya
from .layers import replace_layer

NAME = "full"


class WithDifference(nn.Module):
    """A linear layer and a trainable difference of its weight."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        weight: Tensor = base.weight  # type: ignore[assignment]
        # Without the initialisation of nn.Linear, which would draw from the global generator.
        self.difference = skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=False, device=weight.device)
        nn.init.zeros_(self.difference.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(W + D) x, D in fp32."""
        output: Tensor = self.base(x)
        update: Tensor = self.difference(x.to(self.difference.weight.dtype))
        return output + update.to(output.dtype)


class FullAdapter(Adapter):
    """`<layer>.difference` [out, in]; rank and alpha have no effect."""

    def __init__(self, unet: nn.Module, rank: int, alpha: float, rng: torch.Generator) -> None:
        super().__init__(unet, rank, alpha, rng)
        for name in self.names:
            layer = WithDifference(unet.get_submodule(name))
            replace_layer(unet, name, layer)
            self.layers[f"{name}.difference"] = layer.difference

    def start_from(self, lora: Lora) -> None:
        """See `Adapter`."""
        for name, factors in lora.items():
            self.parameters[f"{name}.difference"].data.copy_(factors.delta)

    def deltas(self) -> dict[str, Tensor]:
        """See `Adapter`."""
        return {name: self.parameters[f"{name}.difference"] for name in self.names}

    def files(self) -> Files:
        """One difference patch."""
        differences = {name: delta.detach().cpu().clone() for name, delta in self.deltas().items()}
        return {"lora": differences_to_kohya(differences, self.kohya_names)}

    def state_of(self, files: Files) -> dict[str, Tensor]:
        """See `Adapter`."""
        found = differences_from_kohya(files.get("lora", {}), self.names, self.kohya_names)
        return {f"{name}.difference": difference for name, difference in found.items()}


ADAPTER = FullAdapter
