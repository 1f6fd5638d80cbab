"""A fresh LoRA for every concept, on top of the frozen sum of the earlier ones.

Source: C-LoRA, Smith et al., arXiv 2304.06027 (with its penalty, methods/c_lora.py); merge and re-initialise,
arXiv 2410.04891 (without one). The sum is a full matrix a layer, so the state is constant in the number of concepts.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..errors import ContinualLoraError
from .adapter import Files
from .factors import Lora
from .full import WithDifference
from .joint import Rows
from .kohya import differences_from_kohya, differences_to_kohya
from .layers import replace_layer
from .lora import LoraAdapter

NAME = "fresh_lora"
FOLDABLE = (torch.float32, torch.float16, torch.bfloat16)


class FreshLoraAdapter(LoraAdapter):
    """LoRA on a private copy of the K and V weights into which the past was folded."""

    def __init__(self, unet: nn.Module, rank: int, alpha: float, rng: torch.Generator) -> None:
        super().__init__(unet, rank, alpha, rng)
        self._past: dict[str, Tensor] = {}

    @property
    def past(self) -> dict[str, Tensor]:
        """See `Adapter`."""
        return self._past

    def files(self) -> Files:
        """The past and this update, as one difference patch."""
        with torch.no_grad():
            total = {name: (delta + self._past.get(name, 0.0)).cpu() for name, delta in self.deltas().items()}
        return {"lora": differences_to_kohya(total, self.kohya_names)}

    def start_from(self, lora: Lora) -> None:
        """Fold it in: it is the past of the first concept."""
        none = {name: torch.zeros_like(delta) for name, delta in self.deltas().items()}
        self._fold(none | {name: factors.delta for name, factors in lora.items()})

    def go_on_from(self, files: Files) -> None:
        """Fold what was learned so far into the view's own weights; the LoRA stays as it starts.

        Weights of 8 bits would lose it, packed ones cannot be added to, and rows of a joint layer have no weights of
        their own: there it is kept beside them.
        """
        self._fold(differences_from_kohya(files.get("lora", {}), self.names, self.kohya_names))

    def _fold(self, differences: Mapping[str, Tensor]) -> None:
        for name, difference in differences.items():
            base = self.unet.get_submodule(f"{name}.base_layer")
            weight = base.get_parameter("weight")
            if difference.shape != weight.shape:
                raise ContinualLoraError(
                    f"The file should hold a difference of shape {list(weight.shape)} for `{name}`.",
                    f"It is of shape {list(difference.shape)}.",
                    "Use a file of this pack that was trained on the same kind of model.",
                )
            self._past[name] = difference.to(self.parameters[f"{name}.lora_up"].device)
            if isinstance(base, Rows) or type(weight) is not nn.Parameter or weight.dtype not in FOLDABLE:
                beside = WithDifference(base)
                beside.difference.weight = nn.Parameter(self._past[name], requires_grad=False)
                replace_layer(self.unet, f"{name}.base_layer", beside)
                continue
            folded = (weight.float() + self._past[name].to(weight.device)).to(weight.dtype)
            base.register_parameter("weight", nn.Parameter(folded, requires_grad=False))


ADAPTER = FreshLoraAdapter
