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
    trace = sum(float(f.double().sum()) for f in fisher.values())
    return {name: f / trace if trace > 0 else f.clone() for name, f in fisher.items()}, trace


@contextmanager
def per_sample_gradients(layers: Mapping[str, nn.Module], batch: int) -> Iterator[dict[str, Tensor]]:
    """Collect the gradient of every sample from ordinary batched backward passes.

    For a linear layer y = x W^T the gradient of sample b is sum over positions n of g_bn x_bn^T, so the inputs and the
    output gradients of one backward pass hold all of them (Goodfellow, arXiv 1510.01799). A pass whose leading
    dimension is K * batch, prompt-major, adds its K parts up per sample; so do several passes, which is what a loss
    over several prompts needs before anything is squared.

    Args:
        layers: parameter name -> the linear layer, without bias, that it is the weight of.
        batch: B, the number of samples.

    Yields:
        Parameter name -> [B, out_features, in_features], filled by the backward passes inside the block.
    """
    gradients: dict[str, Tensor] = {}

    def watch(name: str, inputs: Tensor, output: Tensor) -> None:
        def collect(grad: Tensor) -> None:
            shape = (-1, batch, grad.shape[1:-1].numel())
            part = torch.einsum(
                "kbno,kbni->boi",
                grad.detach().reshape(*shape, grad.shape[-1]).float(),
                inputs.detach().reshape(*shape, inputs.shape[-1]).float(),
            )
            gradients[name] = gradients[name] + part if name in gradients else part

        if output.requires_grad:
            output.register_hook(collect)

    handles = [
        layer.register_forward_hook(lambda _, args, output, name=name: watch(name, args[0], output))
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
