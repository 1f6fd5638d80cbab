"""Layers whose weight is made anew for every call: brought from the CPU, unpacked, cast, patched.

Autograd would keep the made weight of every layer until its gradient is wanted: all of the model, in the number format
of the computation. Here it is made a second time instead.
"""

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

AFFINE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class _MadeTwice(torch.autograd.Function):
    """y = W x + b; the gradient g W does not depend on x, so nothing of the call is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, call: Callable[[Tensor], Tensor]) -> Tensor:  # noqa: ANN401
        ctx.call, ctx.shape, ctx.dtype = call, x.shape, x.dtype
        ctx.autocast = torch.is_autocast_enabled(x.device.type), torch.get_autocast_dtype(x.device.type)
        return call(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        (gradient,), (enabled, dtype) = gradients, ctx.autocast
        anywhere = torch.zeros(ctx.shape, dtype=ctx.dtype, device=gradient.device, requires_grad=True)
        with torch.enable_grad(), torch.autocast(gradient.device.type, dtype, enabled=enabled):
            output = ctx.call(anywhere)
        (found,) = torch.autograd.grad(output, anywhere, gradient)
        return found, None


def make_weights_twice(view: nn.Module, made: Callable[[nn.Module, Tensor], bool]) -> None:
    """Let the linear and convolutional layers of a private view keep no made weights; gradients are the same.

    Args:
        view: changed in place; the layers keep their types.
        made: (layer, its input) -> whether the layer's weight is not used as it lies there.
    """
    for layer in view.modules():
        if isinstance(layer, AFFINE):
            # Weakly, so that no layer holds itself alive.
            layer.forward = partial(_forward, weakref.ref(layer), made)  # type: ignore[method-assign]


def _forward(layer: Callable[[], Any], made: Callable[[nn.Module, Tensor], bool], x: Tensor) -> Tensor:
    own = layer()
    call = partial(type(own).forward, own)
    output: Tensor = _MadeTwice.apply(x, call) if made(own, x) else call(x)  # type: ignore[no-untyped-call]
    return output
