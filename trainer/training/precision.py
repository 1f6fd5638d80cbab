"""The number format of the training passes."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..denoiser import Conditioning, Denoiser, TokenVectors, Wrapped
from ..errors import ContinualLoraError

FIRST_SCALE = 65536.0


def uses_bf16(mixed_precision: str, device: torch.device) -> bool:
    """Whether training passes run in bf16: asked for, or "auto" on a GPU that computes in it natively."""
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return mixed_precision == "bf16" or (mixed_precision == "auto" and native)


def autocast(mixed_precision: str, device: torch.device) -> torch.autocast:
    """The context of a pass."""
    fp16 = mixed_precision == "fp16"
    enabled = fp16 or uses_bf16(mixed_precision, device)
    return torch.autocast(device.type, torch.float16 if fp16 else torch.bfloat16, enabled=enabled)


def text_autocast(mixed_precision: str, device: torch.device) -> torch.autocast:
    """The context in which prompts are encoded: never fp16, in which T5 overflows."""
    return autocast("no" if mixed_precision == "fp16" else mixed_precision, device)


class InBf16(Wrapped):
    """A denoiser whose passes run in bf16."""

    def predict(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """See `Denoiser`."""
        with autocast("bf16", self._denoiser.device):
            return self._denoiser.predict(x_t, t, conditioning)

    def encode_prompt(self, prompt: str, tokens: Mapping[str, TokenVectors]) -> Conditioning:
        """See `Denoiser`."""
        with autocast("bf16", self._denoiser.device):
            return self._denoiser.encode_prompt(prompt, tokens)


def unscaled(denoiser: Denoiser, mixed_precision: str) -> Denoiser:
    """The denoiser for passes whose loss is not scaled, as in the Fisher and the consolidation.

    They run in bf16 where the training does. With fp16, whose small gradients would vanish, they stay in the format
    that the denoiser has by itself.
    """
    return InBf16(denoiser) if uses_bf16(mixed_precision, denoiser.device) else denoiser


def loss_scaler(mixed_precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Scales the loss up where gradients in fp16 would vanish, and down where they would overflow; else does nothing.

    Source: Micikevicius et al., arXiv 1710.03740, section 3.2; the scale starts at `FIRST_SCALE` and is halved, and
    the step left out, where a gradient overflows.
    """
    return torch.amp.GradScaler(device.type, FIRST_SCALE, enabled=mixed_precision == "fp16")


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
