"""Gradient checkpointing: keep a block's inputs, and compute its inside again when its gradient is wanted.

Source: Chen et al., arXiv 1604.06174.
"""

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

# The blocks of a Stable Diffusion U-Net by class name, the same in the embedded base and in ComfyUI.
BLOCKS = {"ResBlock", "SpatialTransformer"}


def checkpoint_blocks(unet: nn.Module) -> int:
    """Let every block of a private view be computed twice for the memory of its inputs; results stay the same.

    Args:
        unet: a view of the trainer's own, which is changed.

    Returns:
        How many blocks were found.
    """
    blocks = [module for module in unet.modules() if type(module).__name__ in BLOCKS]
    for block in blocks:
        # No random draws inside: nothing of a generator's state has to be kept.
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)  # type: ignore[method-assign]
    return len(blocks)
