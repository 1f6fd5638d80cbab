"""LoRA on the keys and values of the cross-attention, through peft, on a private view of the U-Net."""

import re
from typing import cast

import torch
from torch import Tensor, nn

from ..errors import ContinualLoraError
from .factors import Lora, LoraFactors

# The layers that turn the prompt into keys and values (Jha et al., arXiv 2410.00700; Kumari et al., arXiv 2212.04488).
CROSS_ATTENTION_KV = r"(.*\.)?attn2\.to_[kv]"
NAME = "continual"


def cross_attention_layers(unet: nn.Module) -> list[str]:
    """Names of the K and V projections of the cross-attention, in the model's order.

    Raises:
        ContinualLoraError: the model has none.
    """
    names = [name for name, _ in unet.named_modules() if re.fullmatch(CROSS_ATTENTION_KV, name)]
    if not names:
        raise ContinualLoraError(
            "Continual LoRA trains the keys and values of the cross-attention (`attn2.to_k`, `attn2.to_v`) of a U-Net.",
            f"This model is a `{type(unet).__name__}` without such layers.",
            "Use a Stable Diffusion 1.x or 2.x model, or the embedded base.",
        )
    return names


class LoraAdapter:
    """The live LoRA: injected into a view, trained in place, read out as plain factors.

    Args:
        unet: a private view; its K/V layers are replaced.
        rank: inner dimension, >= 1.
        alpha: the scale is alpha / rank.
        rng: draws the initial down factors (uniform in +-1/sqrt(in_features), as peft); up starts at zero.
    """

    def __init__(self, unet: nn.Module, rank: int, alpha: float, rng: torch.Generator) -> None:
        from peft import LoraConfig, inject_adapter_in_model  # here, because it takes seconds to import

        self.names = cross_attention_layers(unet)
        self.rank, self.alpha = rank, alpha
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=CROSS_ATTENTION_KV)  # type: ignore[arg-type]
        with torch.random.fork_rng():  # peft draws from the global generator; ours follows below
            inject_adapter_in_model(config, unet, NAME)
        self.layers: dict[str, nn.Linear] = {}
        for name in self.names:
            layer = unet.get_submodule(name)
            self.layers[f"{name}.lora_down"] = layer.lora_A[NAME]  # type: ignore[index,assignment]
            self.layers[f"{name}.lora_up"] = layer.lora_B[NAME]  # type: ignore[index,assignment]
        for name, layer in self.layers.items():
            weight = torch.zeros(layer.weight.shape)
            if name.endswith("lora_down"):
                weight.uniform_(-(layer.in_features**-0.5), layer.in_features**-0.5, generator=rng)
            layer.weight.data = weight.to(layer.weight.device)
            layer.weight.requires_grad_(True)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Trainable tensors by name, `<layer>.lora_down` [rank, in] and `<layer>.lora_up` [out, rank], fp32."""
        return {name: cast(nn.Parameter, layer.weight) for name, layer in self.layers.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of the parameters on the CPU."""
        return {name: value.detach().cpu().clone() for name, value in self.parameters.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over saved parameters, in place.

        Raises:
            ContinualLoraError: another rank, or another model's layers.
        """
        for name, parameter in self.parameters.items():
            if name not in state or state[name].shape != parameter.shape:
                came = f"of shape {list(state[name].shape)}" if name in state else "missing"
                raise ContinualLoraError(
                    f"The saved adapter should hold `{name}` of shape {list(parameter.shape)}.",
                    f"It is {came}.",
                    'Set "rank" to the rank it was trained at, or start a new sequence.',
                )
            parameter.data.copy_(state[name])

    def factors(self) -> Lora:
        """The adapter as plain factors, copies on the CPU."""
        state = self.state_dict()
        return {
            name: LoraFactors(state[f"{name}.lora_down"], state[f"{name}.lora_up"], self.alpha) for name in self.names
        }

    def norm(self) -> float:
        """Frobenius norm of all updates together, sqrt(sum ||alpha / rank * up down||^2)."""
        deltas = [
            (f.up.T @ f.up * (f.down @ f.down.T)).sum() * (f.alpha / f.rank) ** 2 for f in self.factors().values()
        ]
        return float(torch.stack(deltas).sum().clamp_min(0).sqrt())


def state_of(lora: Lora) -> dict[str, Tensor]:
    """Plain factors as an adapter's state."""
    state = {}
    for name, factors in lora.items():
        state[f"{name}.lora_down"], state[f"{name}.lora_up"] = factors.down, factors.up
    return state
