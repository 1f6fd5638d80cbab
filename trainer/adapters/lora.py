"""LoRA on the keys and values of the prompt, through peft, on a private view of the U-Net.

Source: Hu et al., arXiv 2106.09685.
"""

import math

import torch
from torch import Tensor, nn

from ..errors import ContinualLoraError
from .adapter import Adapter, Files
from .factors import Lora, LoraFactors
from .kohya import from_kohya, to_kohya
from .layers import JOINT_KV, UNET_KV

NAME = "lora"
PEFT_NAME = "continual"


class LoraAdapter(Adapter):
    """The live LoRA; `<layer>.lora_down` [rank, in] and `<layer>.lora_up` [out, rank].

    It adds alpha / rank * up @ down. Down starts uniform in +-1/sqrt(in_features), as peft's; up at zero.
    """

    uses = Adapter.uses | {"rank", "alpha"}

    def __init__(self, unet: nn.Module, rank: int, alpha: float, rng: torch.Generator) -> None:
        from peft import LoraConfig, inject_adapter_in_model  # here, because it takes seconds to import

        super().__init__(unet, rank, alpha, rng)
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=f"{UNET_KV}|{JOINT_KV}")  # type: ignore[arg-type]
        with torch.random.fork_rng():  # peft draws from the global generator; ours follows below
            inject_adapter_in_model(config, unet, PEFT_NAME)
        for name in self.names:
            layer = unet.get_submodule(name)
            self.layers[f"{name}.lora_down"] = layer.lora_A[PEFT_NAME]  # type: ignore[index,assignment]
            self.layers[f"{name}.lora_up"] = layer.lora_B[PEFT_NAME]  # type: ignore[index,assignment]
        for name, parameter in self.parameters.items():
            weight = torch.zeros(parameter.shape)
            if name.endswith("lora_down"):
                bound = weight.shape[1] ** -0.5
                weight.uniform_(-bound, bound, generator=rng)
            parameter.data = weight.to(parameter.device)
            parameter.requires_grad_(True)

    def start_from(self, lora: Lora) -> None:
        """See `Adapter`; the same update to the model, whatever its rank and alpha were, and room to learn more."""
        theta = self.parameters
        for name, factors in lora.items():
            if factors.rank > self.rank:
                raise ContinualLoraError(
                    f'"rank" should be at least {factors.rank}, that of the existing LoRA.',
                    f"It is {self.rank}.",
                    f'Set "rank" to {factors.rank} or more.',
                )
            # Both factors by the root of what the scales differ in; the ranks beyond start as a new LoRA does, and so
            # does a LoRA of scale 0, which adds nothing and with two factors of zeros could learn nothing.
            ratio = (factors.alpha / factors.rank) / (self.alpha / self.rank)
            if not ratio:
                continue
            balance = abs(ratio) ** 0.5
            theta[f"{name}.lora_down"].data[: factors.rank].copy_(balance * factors.down)
            theta[f"{name}.lora_up"].data[:, : factors.rank].copy_(math.copysign(balance, ratio) * factors.up)

    def deltas(self) -> dict[str, Tensor]:
        """See `Adapter`."""
        theta, scale = self.parameters, self.alpha / self.rank
        return {name: scale * (theta[f"{name}.lora_up"] @ theta[f"{name}.lora_down"]) for name in self.names}

    @torch.no_grad()
    def norm(self) -> float:
        """See `Adapter`; ||up down||_F^2 = sum (up^T up) * (down down^T), without the products [out, in]."""
        theta = self.parameters
        pairs = [(theta[f"{name}.lora_down"], theta[f"{name}.lora_up"]) for name in self.names]
        squares = [((up.T @ up) * (down @ down.T)).sum() for down, up in pairs]
        return self.alpha / self.rank * float(torch.stack(squares).sum().clamp_min(0).sqrt())

    def factors(self) -> Lora:
        """The adapter as plain factors, copies on the CPU."""
        state = self.state_dict()
        return {
            name: LoraFactors(state[f"{name}.lora_down"], state[f"{name}.lora_up"], self.alpha) for name in self.names
        }

    def files(self) -> Files:
        """One LoRA file."""
        return {"lora": to_kohya(self.factors(), self.kohya_names)}

    def state_of(self, files: Files) -> dict[str, Tensor]:
        """See `Adapter`."""
        return state_of(from_kohya(files.get("lora", {}), self.names, self.kohya_names))


def state_of(lora: Lora) -> dict[str, Tensor]:
    """Plain factors as an adapter's state."""
    state = {}
    for name, factors in lora.items():
        state[f"{name}.lora_down"], state[f"{name}.lora_up"] = factors.down, factors.up
    return state


ADAPTER = LoraAdapter
