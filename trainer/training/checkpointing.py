"""Gradient checkpointing: keep a block's inputs, and compute its inside again when its gradient is wanted.

Source: Chen et al., arXiv 1604.06174.
"""

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# The blocks of the families by class name: of U-Nets, the same in the embedded base and in ComfyUI; of SD 3; of Flux.
BLOCKS = {"ResBlock", "SpatialTransformer", "JointBlock", "DoubleStreamBlock", "SingleStreamBlock"}
# These add onto their inputs in place, which have to be there as they were for the second time.
IN_PLACE = {"DoubleStreamBlock", "SingleStreamBlock"}


def checkpoint_blocks(unet: nn.Module) -> int:
    """Let every block of a private view be computed twice for the memory of its inputs; results stay the same.

    Args:
        unet: a view of the trainer's own, which is changed.

    Returns:
        How many blocks were found.
    """
    blocks = [module for module in unet.modules() if type(module).__name__ in BLOCKS]
    for block in blocks:
        # Weakly, so that no block holds itself alive, and with it the weights that the view brought to the GPU.
        forward: Callable[..., Any] = partial(_call, weakref.ref(block))
        if type(block).__name__ in IN_PLACE:
            forward = partial(_on_copies, forward)
        # No random draws inside: nothing of a generator's state has to be kept.
        block.forward = partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)  # type: ignore[method-assign]
    return len(blocks)


def _call(block: Callable[[], Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
    own = block()
    return type(own).forward(own, *args, **kwargs)


def _on_copies(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
    """Call with copies of the tensors."""
    copies = {name: value.clone() if isinstance(value, Tensor) else value for name, value in kwargs.items()}
    return forward(*(value.clone() if isinstance(value, Tensor) else value for value in args), **copies)
