"""The diagonal of the empirical Fisher information, from exact per-sample gradients."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def normalized(fisher: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], float]:
    """Scale a Fisher to trace 1, so that a penalty weight means the same for every objective, rank and model.

    The quadratic penalty is then the weight times a weighted mean of the squared moves of the parameters.

    Returns:
        The scaled Fisher, and the trace before.
    """
    trace = sum(float(f.cpu().double().sum()) for f in fisher.values())  # not every device has fp64
    return {name: f / trace if trace > 0 else f.clone() for name, f in fisher.items()}, trace


@contextmanager
def per_sample_gradients(layers: Mapping[str, nn.Module], batch: int) -> Iterator[dict[str, Tensor]]:
    """Collect the gradient of every sample from ordinary batched backward passes.

    For a linear layer y = x W^T the gradient of sample b is sum over positions n of g_bn x_bn^T, so the inputs and the
    output gradients of one backward pass hold all of them (Goodfellow, arXiv 1510.01799); for an elementwise factor
    y = x * w it is the sum of g_bn * x_bn. A layer around a linear one gives the gradient of its weight's update. A
    pass whose leading dimension is K * batch, prompt-major, adds its K parts up per sample; so do several passes,
    which is what a loss over several prompts needs before anything is squared.

    Args:
        layers: name -> a layer, linear and without bias, or an elementwise factor (its `weight` has one dimension).
        batch: B, the number of samples.

    Yields:
        Name -> [B, out_features, in_features], or [B, n] of a factor, filled by the backward passes inside the block.
    """
    gradients: dict[str, Tensor] = {}

    def watch(name: str, layer: nn.Module, inputs: Tensor, output: Tensor) -> None:
        elementwise = getattr(layer, "weight", inputs).dim() == 1
        indices = "kbni,kbni->bi" if elementwise else "kbno,kbni->boi"

        def collect(grad: Tensor) -> None:
            shape = (-1, batch, grad.shape[1:-1].numel())
            part = torch.einsum(
                indices,
                grad.detach().reshape(*shape, grad.shape[-1]).float(),
                inputs.detach().reshape(*shape, inputs.shape[-1]).float(),
            )
            gradients[name] = gradients[name] + part if name in gradients else part

        if output.requires_grad:
            output.register_hook(collect)

    handles = [
        layer.register_forward_hook(lambda layer, args, output, name=name: watch(name, layer, args[0], output))
        for name, layer in layers.items()
    ]
    try:
        yield gradients
    finally:
        for handle in handles:
            handle.remove()


def sum_of_squares(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sum over samples b of g_b^2: squared per sample, never the square of a sum, in which opposites cancel."""
    return {name: gradient.square().sum(0) for name, gradient in gradients.items()}
