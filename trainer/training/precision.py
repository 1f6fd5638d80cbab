"""The number format of the training passes."""

import torch

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
