"""The number format of the training passes."""

import torch


def uses_bf16(mixed_precision: str, device: torch.device) -> bool:
    """Whether training passes run in bf16: asked for, or "auto" on a GPU that computes in it natively."""
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return mixed_precision == "bf16" or (mixed_precision == "auto" and native)


def autocast(mixed_precision: str, device: torch.device) -> torch.autocast:
    """The context of a pass."""
    return torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16(mixed_precision, device))
