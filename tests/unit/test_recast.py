"""Layers whose weight is made for every call: the same gradients, and nothing of the weight is kept."""

import pytest
import torch
from torch import nn

from trainer.bases.recast import make_weights_twice


class Cast(nn.Linear):
    """Keeps its weight in another number format than it computes in, as a host's layers do."""

    def forward(self, x):
        return nn.functional.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


def is_cast(layer, x):
    return layer.weight.dtype != x.dtype


def network(dtype):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Sequential(Cast(5, 7), nn.SiLU(), Cast(7, 9), nn.SiLU(), nn.Flatten(1), nn.Unflatten(1, (1, 3, 3)))
        layers.append(nn.Conv2d(1, 2, 2))
    for layer in layers:
        if isinstance(layer, Cast):
            layer.to(dtype)
    return layers.requires_grad_(False)


def passed(layers, autocast=False):
    """Output, gradient of the input, and the bytes kept that are as large as a weight in fp32."""
    x = torch.linspace(-1, 1, 10).view(2, 5).requires_grad_()
    kept = []

    def keep(tensor):
        kept.append(tuple(sorted(tensor.shape)))
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        output = layers(x)
    output.float().square().sum().backward()
    return output.detach(), x.grad, kept


@pytest.mark.parametrize(
    ("dtype", "autocast"), [(torch.float16, False), (torch.bfloat16, False), (torch.float16, True)]
)
def test_gradients_are_those_of_autograd_to_the_bit_and_no_weight_is_kept(dtype, autocast):
    plain, changed = network(dtype), network(dtype)
    make_weights_twice(changed, is_cast)
    expected, found = passed(plain, autocast), passed(changed, autocast)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    assert (5, 7) in expected[2] and (7, 9) in expected[2]
    assert (5, 7) not in found[2] and (7, 9) not in found[2]


def test_a_layer_with_its_weight_at_hand_is_computed_as_ever():
    layers = network(torch.float32)
    make_weights_twice(layers, is_cast)
    assert (7, 9) in passed(layers)[2]


def test_without_a_gradient_to_come_there_is_no_graph():
    layers = network(torch.float16)
    make_weights_twice(layers, is_cast)
    assert not layers(torch.ones(1, 5)).requires_grad


def test_layers_do_not_hold_themselves_alive():
    import gc
    import weakref

    layers = network(torch.float16)
    make_weights_twice(layers, is_cast)
    layer = weakref.ref(layers[0])
    gc.disable()
    try:
        del layers
        assert layer() is None
    finally:
        gc.enable()
