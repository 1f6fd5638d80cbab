"""Memory from the host, by its own means, and back to it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from comfy import model_management

# What autograd keeps of a pass in bf16, counted tensor by tensor at sides of 512 to 1024 pixels, is 8.6 times the
# host's estimate of a pass for SD1.5 and 18.7 times for SDXL. Where every block is checkpointed its inputs are kept,
# 1.0 times, and what one block keeps inside comes on top.
KEPT, KEPT_CHECKPOINTED = 20, 5


def load(patchers: list[Any], memory_required: float = 0) -> None:
    """Have models loaded as the host's nodes do it.

    Where gradients are taken it would fail to put a LoRA on weights of 8 bits.

    Args:
        patchers: of the models.
        memory_required: bytes to leave beside them, at least the host's own minimum.
    """
    with torch.inference_mode():
        model_management.load_models_gpu(patchers, memory_required=memory_required)


def load_for_training(patchers: list[Any], model: Any, shape: Sequence[int], checkpointed: bool) -> None:
    """Have models loaded, with room beside them for what a training pass keeps; the host moves out what it must.

    Args:
        patchers: of the models that are needed.
        model: MODEL, one of them.
        shape: of the largest x_t of a training pass, [B, C, h, w].
        checkpointed: whether each block keeps its inputs alone.
    """
    factor = KEPT_CHECKPOINTED if checkpointed else KEPT
    load(patchers, factor * model.memory_required(list(shape)))


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
