"""All that changes while one concept is taught."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..adapters.adapter import Adapter
from ..denoiser import TokenVectors
from ..settings import TrainSettings
from .optimizers import build_optimizer, load_optimizer_state, optimizer_state, set_training
from .precision import FIRST_SCALE, NO_SCALER


class TrainState:
    """All that changes while one concept is taught; saved and restored to the bit.

    Args:
        adapter: live on the view.
        token: where the new token's vectors start.
        settings: optimizer, learning rates, weight decay and `ema_decay`.
        scaler: of the loss; by default it is not scaled.
    """

    def __init__(
        self,
        adapter: Adapter,
        token: TokenVectors,
        settings: TrainSettings,
        scaler: torch.amp.GradScaler = NO_SCALER,
    ) -> None:
        self.adapter = adapter
        self.token = {name: nn.Parameter(value.detach().clone().float()) for name, value in token.items()}
        self.step = 0
        self.whole = True  # False while a step is applied: an interrupt may come in the middle of it
        self.losses: list[float] = []
        self.penalties: list[float] = []
        self.norms: list[float] = []
        self.scales: list[float] = []  # of the loss, after each step in fp16
        self.validations: dict[int, float] = {}  # step -> error
        self.parameters: dict[str, nn.Parameter] = {
            **adapter.parameters,
            **{f"token.{name}": value for name, value in self.token.items()},
        }
        groups = [
            {
                "params": list(adapter.parameters.values()),
                "lr": settings.learning_rate,
                "weight_decay": settings.weight_decay,
            },
            {"params": list(self.token.values()), "lr": settings.token_learning_rate, "weight_decay": 0.0},
        ]
        self.optimizer = build_optimizer(settings.optimizer, groups)
        self.peaks = [settings.learning_rate, settings.token_learning_rate]
        for value in self.token.values():
            value.requires_grad_(settings.token_learning_rate > 0)
        self.scaler = scaler
        self.ema_decay = settings.ema_decay
        averaged = self.parameters if settings.ema_decay else {}
        self.average = {name: value.detach().clone() for name, value in averaged.items()}

    @property
    def skipped_steps(self) -> int:
        """Steps in fp16 that were left out because a gradient overflowed: those that lowered the scale."""
        return sum(after < before for before, after in pairwise([FIRST_SCALE, *self.scales]))

    def trained(self) -> list[nn.Parameter]:
        """What the optimizer changes: all parameters but those that are frozen."""
        return [p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad]

    def log(self, loss: float, penalty: float) -> None:
        """Write down what the step just made was."""
        self.losses.append(loss)
        self.penalties.append(penalty)
        self.norms.append(self.adapter.norm())
        if self.scaler.is_enabled():
            self.scales.append(self.scaler.get_scale())

    def figures(self) -> dict[str, list[float]]:
        """What every step so far was, as it goes to `log.json`."""
        log = {"loss": [*self.losses], "penalty": [*self.penalties], "adapter_norm": [*self.norms]}
        if self.scales:
            log["loss_scale"] = [*self.scales]
        if self.validations:
            log |= {"validation_step": [*self.validations], "validation_loss": [*self.validations.values()]}
        return log

    def update_average(self) -> None:
        """Take the step just made into the average: average <- d average + (1 - d) theta.

        d = min(ema_decay, (1 + step) / (10 + step)), so that where a short training started is not averaged in for
        long; nothing where the decay is 0.
        """
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        for name, value in self.average.items():
            value.lerp_(self.parameters[name].detach(), 1 - decay)

    def finish(self) -> None:
        """Put the parameters to what is handed on: the average, where there is one; no step can follow."""
        self.whole = False
        set_training(self.optimizer, False)
        for name, value in self.average.items():
            self.parameters[name].data.copy_(value)

    @contextmanager
    def result(self) -> Iterator[None]:
        """Be for a while what would be handed on if this step were the last."""
        own = {name: value.detach().clone() for name, value in self.parameters.items()}
        try:
            self.finish()
            yield
        finally:
            set_training(self.optimizer, True)
            for name, value in own.items():  # to the bit, which switching back and forth is not
                self.parameters[name].data.copy_(value)
            self.whole = True

    def frozen_token(self) -> TokenVectors:
        """The token's vectors as they are now, copies without a graph."""
        return {name: value.detach().clone() for name, value in self.token.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Parameters, average, optimizer, logs and step; the generator is a function of the seed and the step."""
        tensors = {f"parameter.{name}": value.detach().cpu() for name, value in self.parameters.items()}
        tensors |= {f"average.{name}": value.cpu() for name, value in self.average.items()}
        tensors |= optimizer_state(self.optimizer, self.parameters)
        tensors["step"] = torch.tensor(self.step)
        tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        tensors["penalties"] = torch.tensor(self.penalties, dtype=torch.float64)
        tensors["norms"] = torch.tensor(self.norms, dtype=torch.float64)
        if self.scales:
            tensors["scales"] = torch.tensor(self.scales, dtype=torch.float64)
            tensors["scaled_steps"] = torch.tensor(self.scaler.state_dict()["_growth_tracker"])
        if self.validations:
            tensors["validations"] = torch.tensor(list(self.validations.items()), dtype=torch.float64)
        return tensors

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Go on from a saved state."""
        self.step = int(tensors["step"])
        self.losses, self.penalties = tensors["losses"].tolist(), tensors["penalties"].tolist()
        self.norms = tensors["norms"].tolist()
        if "scales" in tensors:
            self.scales = tensors["scales"].tolist()
            counted = {"scale": self.scales[-1], "_growth_tracker": int(tensors["scaled_steps"])}
            self.scaler.load_state_dict({**self.scaler.state_dict(), **counted})
        if "validations" in tensors:
            self.validations = {int(step): error for step, error in tensors["validations"].tolist()}
        for name, parameter in self.parameters.items():
            parameter.data.copy_(tensors[f"parameter.{name}"])
        for name, value in self.average.items():
            value.copy_(tensors[f"average.{name}"])
        load_optimizer_state(self.optimizer, self.parameters, tensors)
