"""The contract of an adapter: what of the keys and values is trained, and how it becomes a file."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from ..errors import ContinualLoraError
from .factors import Lora
from .kohya import kohya_prefixes
from .layers import cross_attention_layers

# File stem in the task's folder -> its tensors. "lora" is the file that ComfyUI's LoraLoader reads.
Files = Mapping[str, Mapping[str, Tensor]]


class Adapter(ABC):
    """Injected into a view of the U-Net, trained in place.

    Args:
        unet: a private view; its K and V layers may be replaced.
        rank: inner dimension, >= 1, for the adapters that have one.
        alpha: their scale is alpha / rank.
        rng: draws what starts at random.

    Attributes:
        names: the K and V layers, in the model's order.
        kohya_names: what `kohya_prefixes` found.
        layers: parameter name -> the module whose `weight` it is, for per-sample gradients.
        uses: the names of the settings that take effect through this adapter.
    """

    uses: ClassVar[frozenset[str]] = frozenset({"learning_rate", "weight_decay", "prior_images"})

    def __init__(self, unet: nn.Module, rank: int, alpha: float, rng: torch.Generator) -> None:
        self.unet, self.rank, self.alpha = unet, rank, alpha
        self.names = cross_attention_layers(unet)
        self.kohya_names = kohya_prefixes(unet)
        self.layers: dict[str, nn.Module] = {}

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Trainable tensors by name, fp32."""
        return {name: cast(nn.Parameter, layer.weight) for name, layer in self.layers.items()}

    @property
    def past(self) -> dict[str, Tensor]:
        """The frozen sum of earlier updates below this adapter, layer -> [out, in]; empty where there is none."""
        return {}

    @abstractmethod
    def deltas(self) -> dict[str, Tensor]:
        """The update of each layer's weight by what is trained, layer -> [out, in], with its graph."""

    @abstractmethod
    def files(self) -> Files:
        """What is written after the task, copies on the CPU."""

    @abstractmethod
    def state_of(self, files: Files) -> dict[str, Tensor]:
        """The state of the adapter that wrote `files`."""

    def go_on_from(self, files: Files) -> None:
        """Start where the adapter that wrote `files` ended."""
        self.load_state_dict(self.state_of(files))

    def start_from(self, lora: Lora) -> None:
        """Start a sequence where a LoRA of another training ended.

        Args:
            lora: by layer; layers that it lacks start as ever.

        Raises:
            ContinualLoraError: this adapter cannot be a LoRA, or its rank is too small.
        """
        raise ContinualLoraError(
            "A recipe that starts from an existing LoRA should train a LoRA.",
            f"This one trains another kind of adapter ({type(self).__name__}).",
            "Choose a recipe such as lora_ewc_dc with the adapter lora, or no existing LoRA.",
        )

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of the parameters on the CPU."""
        return {name: value.detach().cpu().clone() for name, value in self.parameters.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over saved parameters, in place.

        Raises:
            ContinualLoraError: another rank, or another model's layers.
        """
        self._check(state)
        for name, parameter in self.parameters.items():
            parameter.data.copy_(state[name])

    @contextmanager
    def carrying(self, state: Mapping[str, Tensor]) -> Iterator[None]:
        """Be another adapter of the same shape for a while, on the same base: a teacher costs no second U-Net."""
        self._check(state)
        own = {name: parameter.data for name, parameter in self.parameters.items()}
        try:
            for name, parameter in self.parameters.items():
                parameter.data = state[name].to(parameter.device)
            yield
        finally:
            for name, parameter in self.parameters.items():
                parameter.data = own[name]

    def _check(self, state: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            if name not in state or state[name].shape != parameter.shape:
                came = f"of shape {list(state[name].shape)}" if name in state else "missing"
                raise ContinualLoraError(
                    f"The saved adapter should hold `{name}` of shape {list(parameter.shape)}.",
                    f"It is {came}.",
                    'Set "rank" to the rank it was trained at, or start a new sequence.',
                )

    @torch.no_grad()
    def norm(self) -> float:
        """Frobenius norm of all updates together, sqrt(sum ||delta||^2)."""
        squares = [delta.float().square().sum() for delta in self.deltas().values()]
        return float(torch.stack(squares).sum().sqrt()) if squares else 0.0
