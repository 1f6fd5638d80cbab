"""The number format of the training passes."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..denoiser import Conditioning, Denoiser, TokenVectors, Wrapped
from ..errors import ContinualLoraError

FIRST_SCALE = 65536.0
FORMATS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
NO_SCALER = torch.amp.GradScaler("cpu", enabled=False)  # has no state


def number_format(denoiser: Denoiser, mixed_precision: str) -> torch.dtype | None:
    """What autocast makes the passes compute in; None where they stay as the denoiser makes them."""
    return FORMATS[denoiser.mixed_precision if mixed_precision == "auto" else mixed_precision]


def in_format(denoiser: Denoiser, mixed_precision: str) -> Denoiser:
    """The denoiser whose passes compute in the chosen format."""
    dtype = number_format(denoiser, mixed_precision)
    return denoiser if dtype is None else InFormat(denoiser, dtype)


class InFormat(Wrapped):
    """A denoiser whose passes run under autocast.

    Args:
        denoiser: what it is around.
        dtype: of the passes; prompts are never encoded in fp16, in which T5 overflows.
    """

    def __init__(self, denoiser: Denoiser, dtype: torch.dtype) -> None:
        super().__init__(denoiser)
        self._dtype = dtype

    def predict(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """See `Denoiser`."""
        with torch.autocast(self.device.type, self._dtype):
            return self._denoiser.predict(x_t, t, conditioning)

    def encode_prompt(self, prompt: str, tokens: Mapping[str, TokenVectors]) -> Conditioning:
        """See `Denoiser`."""
        with torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float16):
            return self._denoiser.encode_prompt(prompt, tokens)


def loss_scaler(denoiser: Denoiser, mixed_precision: str) -> torch.amp.GradScaler:
    """Scales the loss up where gradients in fp16 would vanish, and down where they would overflow; else does nothing.

    Passes are in fp16 by choice, or because the host computes so by itself. On Apple's GPUs nothing is scaled: most
    versions of PyTorch cannot there.
    Source: Micikevicius et al., arXiv 1710.03740, section 3.2; the scale starts at `FIRST_SCALE` and is halved, and
    the step left out, where a gradient overflows.
    """
    computed_in = number_format(denoiser, mixed_precision) or denoiser.dtype
    enabled = computed_in == torch.float16 and denoiser.device.type != "mps"
    return torch.amp.GradScaler(denoiser.device.type, FIRST_SCALE, enabled=enabled)


def clipped_norm(
    scaler: torch.amp.GradScaler, optimizer: Optimizer, trained: list[nn.Parameter], limit: float
) -> float:
    """Take the scale out of the gradients and clip them; 0 where they overflowed, and a lower scale may help."""
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(trained, limit).item()
    return norm if math.isfinite(norm) or scaler.get_scale() <= 1 else 0.0


def check_precision(mixed_precision: str, device: torch.device) -> None:
    """Whether the device can train in the chosen format.

    Raises:
        ContinualLoraError: it cannot.
    """
    if mixed_precision == "fp16" and device.type != "cuda":
        raise ContinualLoraError(
            "fp16 with a scaled loss should run on a CUDA GPU.",
            f"This model is on {device.type}.",
            'Set "mixed_precision" to auto.',
        )
