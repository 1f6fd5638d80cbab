"""Memory from the host, by its own means, and back to it; and what it says of the device."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from comfy import model_management

SCORED = 8  # samples of a pass that keeps nothing


def host_mode() -> torch.inference_mode:
    """The mode that the host's nodes run in; whatever may make it move a model belongs inside.

    Moved in any other mode, a weight that a loader node made is neither an inference tensor afterwards nor an ordinary
    one, and the next product with it fails: "Inference tensors do not track version counter".
    """
    return torch.inference_mode()


def load(patchers: list[Any], memory_required: float = 0) -> None:
    """Have models loaded as the host's nodes do it.

    Args:
        patchers: of the models.
        memory_required: bytes to leave beside them, at least the host's own minimum.
    """
    with host_mode():
        model_management.load_models_gpu(patchers, memory_required=memory_required)


def mixed_precision(device: torch.device) -> str:
    """Which format the host finds worth computing in, "no" beside CUDA: what "auto" is."""
    if device.type != "cuda":
        return "no"
    if model_management.should_use_bf16(device):
        return "bf16"
    return "fp16" if model_management.should_use_fp16(device) else "no"


def needed_for_scores(model: Any, channels: int, side: int) -> float:
    """Bytes that a pass without gradients takes beside the model, by the host's estimate.

    Args:
        model: MODEL.
        channels: of its latents.
        side: of its latents.
    """
    return float(model.model.memory_required([SCORED, channels, side, side]))


def needed_for_training(model: Any, shape: Sequence[int], kept: float) -> float:
    """Bytes that a training pass keeps beside the model.

    Args:
        model: MODEL.
        shape: of the largest x_t of a training pass, [B, C, h, w].
        kept: how many times the host's estimate of a pass autograd keeps.
    """
    return float(kept * model.model.memory_required(list(shape)))


def room(patcher: Any, needed: float) -> float:
    """Bytes of a model's weights that we may bring to its device ourselves.

    With dynamic VRAM the host brings each layer when it is called, and takes it away whenever it likes; a training
    calls all of them in every step, so what fits is brought once. Without it the host has already brought what fits,
    and there is none.

    Args:
        patcher: of a loaded model.
        needed: bytes to leave.
    """
    if not getattr(patcher, "is_dynamic", bool)():
        return 0.0
    free = patcher.get_free_memory(patcher.load_device)
    return float(free - needed - model_management.minimum_inference_memory())


@contextmanager
def lent_models() -> Iterator[None]:
    """Whatever the host has loaded for the block is unloaded after it; what was there before stays."""
    before = {id(patcher.model) for patcher in model_management.loaded_models() if patcher is not None}
    try:
        yield
    finally:
        loaded = model_management.current_loaded_models
        keep = [entry for entry in loaded if entry.model is None or id(entry.model.model) in before]
        for device in {entry.device for entry in loaded if entry not in keep}:
            model_management.free_memory(1e30, torch.device(device), keep)
