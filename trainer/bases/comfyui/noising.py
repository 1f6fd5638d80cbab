"""What a MODEL's sampling says: what the network predicts, and how noise is mixed in.

The user may have put another sampling on MODEL (ModelSamplingDiscrete, ModelSamplingSD3 and others of the core), so
what counts is the one that the host samples with, not the one that it found in the checkpoint.
"""

from collections.abc import Callable
from typing import Any

import torch
from comfy import model_sampling as host
from torch import Tensor

from ...denoiser import Parameterization
from ...disk.metadata import tensor_hash
from ...disk.sequence import digest
from ...errors import ContinualLoraError

NAME = "model_sampling"
# What the host makes of the network's answer -> what the answer is.
PARAMETERIZATIONS: dict[Callable[..., Any], Parameterization] = {
    host.EPS.calculate_denoised: "eps",
    host.V_PREDICTION.calculate_denoised: "v",
    host.CONST.calculate_denoised: "flow",
}
# How the network is told of the noise: a time in 0..999, or, in flows, the noise level itself, maybe times 1000.
TIMES: dict[Callable[..., Any], tuple[Parameterization, ...]] = {
    host.ModelSamplingDiscrete.timestep: ("eps", "v"),
    host.ModelSamplingDiscreteFlow.timestep: ("flow",),
    host.ModelSamplingFlux.timestep: ("flow",),
}


def check_sampling(model: Any) -> Parameterization:
    """What the network of a MODEL of a supported family predicts.

    Raises:
        ContinualLoraError: the user put a kind of sampling on it that cannot be trained.
    """
    kind: Any = type(model.get_model_object(NAME))
    found = PARAMETERIZATIONS.get(kind.calculate_denoised)
    if found is None or found not in TIMES.get(kind.timestep, ()):
        raise ContinualLoraError(
            "MODEL should be sampled by eps, v_prediction or flow, over ComfyUI's ordinary times.",
            f"A node put another kind of sampling on it: {', '.join(base.__name__ for base in kind.__bases__)}.",
            "Take that node (ModelSampling...) away.",
        )
    return found


def changed_sampling(model: Any) -> str:
    """A name for the sampling on MODEL, by its kind and its noise levels; "" where it is that of the checkpoint."""
    own = model.object_patches_backup.get(NAME, model.model.model_sampling)  # put away while another one is in use
    own_name, name = _name(own), _name(model.get_model_object(NAME))
    return "" if name == own_name else name


def _name(sampling: Any) -> str:
    kinds, sigmas = [base.__name__ for base in type(sampling).__bases__], sampling.sigmas.float().cpu()
    return digest([kinds, tensor_hash({"sigmas": sigmas})])[:12]


def schedule(sampling: Any, parameterization: Parameterization, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The host's own, shift included: signal, spread, and what the network is told of the time, [1000] each."""
    every = len(sampling.sigmas) // 1000  # the host has 10,000 for Flux
    sigmas: Tensor = sampling.sigmas[every - 1 :: every].float().to(device)
    if parameterization == "flow":
        return 1 - sigmas, sigmas, sampling.timestep(sigmas).float()
    alphas_cumprod = 1 / (1 + sigmas.square())
    times = torch.arange(1000, dtype=torch.float32, device=device)
    return alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt(), times
