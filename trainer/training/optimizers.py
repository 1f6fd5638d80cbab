"""The optimizers to choose from, and their state as plain tensors, so that a training goes on to the bit."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ContinualLoraError
from ..settings import TrainSettings

# name -> module, class, and what to install; torch's own needs nothing
OPTIMIZERS = {
    "adamw": ("torch.optim", "AdamW", "torch"),
    "adamw8bit": ("bitsandbytes.optim", "AdamW8bit", "bitsandbytes"),
    "prodigy": ("prodigyopt", "Prodigy", "prodigyopt"),
    "adamw_schedulefree": ("schedulefree", "AdamWScheduleFree", "schedulefree"),
}
LEAST_8BIT = 4096  # numbers of a tensor, from which bitsandbytes takes 8 bits


def check_optimizer(settings: TrainSettings, device: torch.device) -> None:
    """Whether the chosen optimizer is there and can do what is asked, before any training.

    Raises:
        ContinualLoraError: its package is not installed, or it cannot take the device or the learning rates.
    """
    _class_of(settings.optimizer)
    rates = {settings.learning_rate, settings.token_learning_rate} - {0.0}
    if settings.optimizer == "prodigy" and len(rates) > 1:
        raise ContinualLoraError(
            'With prodigy, which finds the rates itself, "learning_rate" and "token_learning_rate" should be equal.',
            f"They are {settings.learning_rate:g} and {settings.token_learning_rate:g}.",
            "Set both to 1.",
        )
    if settings.optimizer == "adamw8bit":
        _check_8bit(device)
    if settings.optimizer == "adamw_schedulefree" and (settings.schedule != "constant" or settings.warmup_steps):
        raise ContinualLoraError(
            'With adamw_schedulefree "schedule" should be constant and "warmup_steps" 0: it averages instead.',
            f"They are {settings.schedule} and {settings.warmup_steps}.",
            "Change them, or choose adamw.",
        )
    if settings.optimizer == "adamw_schedulefree" and settings.ema_decay:
        raise ContinualLoraError(
            'With adamw_schedulefree "ema_decay" should be 0: its result is an average already.',
            f"It is {settings.ema_decay:g}.",
            "Set it to 0, or choose adamw.",
        )


def _check_8bit(device: torch.device) -> None:
    """On which devices it makes steps is a matter of bitsandbytes' release, which says so in the step alone."""
    probe = nn.Parameter(torch.zeros(LEAST_8BIT, device=device))
    probe.grad = torch.zeros_like(probe)
    optimizer = build_optimizer("adamw8bit", [{"params": [probe]}])
    try:
        optimizer.step()
    except Exception as error:
        reason, *_ = str(error).splitlines() or [type(error).__name__]
        raise ContinualLoraError(
            f"adamw8bit should be able to make a step on this model's device, {device.type}.",
            f"The installed bitsandbytes cannot: {reason.rstrip('.:')}.",
            "Run `python -m pip install --upgrade bitsandbytes` in ComfyUI's Python, or choose adamw.",
        ) from error


def build_optimizer(name: str, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimizer of a name on groups of `params`, `lr` and `weight_decay`."""
    optimizer: torch.optim.Optimizer = _class_of(name)(groups)
    return optimizer


def set_training(optimizer: torch.optim.Optimizer, training: bool) -> None:
    """Put the parameters to where gradients are taken, or to the average that is the result.

    They differ with a schedule-free optimizer only (Defazio et al., arXiv 2405.15682).
    """
    if switch := getattr(optimizer, "train" if training else "eval", None):
        switch()


def optimizer_state(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """All that changes in an optimizer, copies on the CPU: by parameter, and what its groups count or estimate."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        for key, value in optimizer.state[parameter].items():
            kind = "optimizer" if isinstance(value, Tensor) else "optimizer_number"
            tensors[f"{kind}.{key}.{name}"] = torch.as_tensor(value).to("cpu", copy=True)  # parameters share some
    for index, group in enumerate(optimizer.param_groups):
        numbers = {key: value for key, value in group.items() if isinstance(value, bool | int | float)}
        tensors |= {f"group.{key}.{index}": torch.tensor(float(v), dtype=torch.float64) for key, v in numbers.items()}
    return tensors


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Take over what `optimizer_state` saved."""
    for full, saved in tensors.items():
        kind, _, rest = full.partition(".")
        key, _, name = rest.partition(".")
        if kind == "optimizer":
            parameter = parameters[name]
            # AdamW counts its steps on the CPU.
            device = "cpu" if key == "step" else parameter.device
            optimizer.state[parameter][key] = saved.clone().to(device)
        elif kind == "optimizer_number":
            optimizer.state[parameters[name]][key] = saved.item()
        elif kind == "group":
            group = optimizer.param_groups[int(name)]
            group[key] = type(group.get(key, 0.0))(saved.item())


def _class_of(name: str) -> Any:  # noqa: ANN401
    module, kind, package = OPTIMIZERS[name]
    try:
        return getattr(import_module(module), kind)
    except ImportError as error:
        raise ContinualLoraError(
            f'The optimizer {name} should come with the package "{package}".',
            f"It cannot be imported: {error}.",
            f"Run `python -m pip install {package}` in ComfyUI's Python, or choose adamw.",
        ) from error
