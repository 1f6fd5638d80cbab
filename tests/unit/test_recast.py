"""Layers whose weight is made for every call: the same gradients, and nothing of the weight is kept."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.bases import recast
from trainer.bases.recast import make_weights_twice


class CastConv(nn.Conv2d):
    """The same."""

    def forward(self, x):
        return self._conv_forward(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class Cast(nn.Linear):
    """Keeps its weight in another number format than it computes in, as a host's layers do."""

    def forward(self, x):
        return nn.functional.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


def is_cast(layer, x):
    return layer.weight.dtype != x.dtype


def never(layer, x):
    """The weight is made in a way that the layer alone knows."""
    return False


def always(layer, x):
    """It is merely cast."""
    return True


either = pytest.mark.parametrize("cast", [never, always])


def network(dtype):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Sequential(Cast(5, 7), nn.SiLU(), Cast(7, 9), nn.SiLU(), nn.Flatten(1), nn.Unflatten(1, (1, 3, 3)))
        layers.append(CastConv(1, 4, 2, stride=2, padding=1))
        layers.append(CastConv(4, 2, (1, 3), padding="same", groups=2))
    for layer in layers:
        if isinstance(layer, Cast | CastConv):
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
    ("dtype", "autocast"),
    [(torch.float16, False), (torch.bfloat16, False), (torch.float16, True), (torch.float32, True)],
)
@either
def test_gradients_are_those_of_autograd_to_the_bit_and_no_weight_is_kept(dtype, autocast, cast):
    plain, changed = network(dtype), network(dtype)
    make_weights_twice(changed, is_cast, cast)
    expected, found = passed(plain, autocast), passed(changed, autocast)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    assert (5, 7) in expected[2] and (7, 9) in expected[2]
    assert (5, 7) not in found[2] and (7, 9) not in found[2]


@either
def test_what_a_layer_answers_can_be_added_onto_in_place(cast):
    """As Flux does with its two streams, [B, N, C]."""

    def passed(layer):
        x = torch.linspace(-1, 1, 30).view(2, 3, 5).requires_grad_()
        output = layer(x)
        output += x.sum(-1, keepdim=True)
        output.float().square().sum().backward()
        return output.detach(), x.grad

    plain, changed = network(torch.bfloat16)[0], nn.Sequential(network(torch.bfloat16)[0])
    make_weights_twice(changed, is_cast, cast)
    assert all(map(torch.equal, passed(changed), passed(plain)))


def test_a_made_weight_is_kept_until_its_gradient_is_computed(monkeypatch):
    """On a GPU it lies in memory of another stream, which would be given to the next weight before."""
    order = []

    def computed(name, product):
        return lambda *args: order.append(name) or product(*args)

    own = {function: computed("product", product) for function, product in recast.PRODUCTS.items()}
    monkeypatch.setattr(recast, "PRODUCTS", own)
    monkeypatch.setattr(recast, "_keep_until_done", lambda weight: order.append(tuple(weight.shape)))
    layers = network(torch.float16)[:3]
    make_weights_twice(layers, is_cast, never)
    passed(layers)
    assert order == ["product", (9, 7), "product", (7, 5)]


class Products(TorchDispatchMode):
    """Counts the products that are computed, by name; shapes alone (meta) are not."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, _, args=(), kwargs=None):
        name, tensors = function.overloadpacket.__name__, [arg for arg in args if isinstance(arg, torch.Tensor)]
        if name in ("mm", "addmm", "convolution", "convolution_backward") and tensors[0].device.type != "meta":
            self.counts[name] += 1
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("autocast", [False, True])
@either
def test_no_product_is_computed_a_second_time(autocast, cast):
    layers = network(torch.float16)
    with Products() as plain:
        passed(layers, autocast)
    make_weights_twice(layers, is_cast, cast)
    with Products() as changed:
        passed(layers, autocast)
    # One of the convolutions pads in words, which is left to autograd: it is computed again.
    assert changed.counts == plain.counts + Counter(convolution=1)
    assert plain.counts == {"addmm": 2, "mm": 2, "convolution": 2, "convolution_backward": 2}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@either
def test_under_autocast_a_weight_is_cast_once_a_pass_to_its_format(dtype, cast):
    class Casts(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.formats = []

        def __torch_dispatch__(self, function, _, args=(), kwargs=None):
            made = function(*args, **kwargs or {})
            if function.overloadpacket.__name__ == "_to_copy" and made.shape == (7, 5) and not made.is_meta:
                self.formats.append(made.dtype)
            return made

    layers = network(dtype)
    make_weights_twice(layers, is_cast, cast)
    with Casts() as casts:
        passed(layers, autocast=True)
    between = [torch.float32] if cast is always and dtype == torch.float16 else []  # on a CPU that is faster
    there_and_back = 0 if dtype == torch.bfloat16 else 2
    assert casts.formats == [*between, torch.bfloat16] * there_and_back


def test_a_layer_that_multiplies_in_its_own_way_keeps_its_gradient():
    class Own(Cast):
        def forward(self, x):
            weight = self.weight.to(x.dtype)
            return 2 * x @ weight.T + nn.functional.linear(input=x, weight=weight)

    layers = [nn.Sequential(Own(5, 7, dtype=torch.float16)).requires_grad_(False) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    make_weights_twice(layers[1], is_cast, never)
    assert torch.equal(passed(layers[0])[1], passed(layers[1])[1])


@either
def test_a_layer_with_its_weight_at_hand_is_computed_as_ever(cast):
    layers = network(torch.float32)
    make_weights_twice(layers, is_cast, cast)
    assert (7, 9) in passed(layers)[2]


@either
def test_without_a_gradient_to_come_there_is_no_graph(cast):
    layers = network(torch.float16)
    make_weights_twice(layers, is_cast, cast)
    assert not layers(torch.ones(1, 5)).requires_grad


def test_layers_do_not_hold_themselves_alive():
    import gc
    import weakref

    layers = network(torch.float16)
    make_weights_twice(layers, is_cast, never)
    layer = weakref.ref(layers[0])
    gc.disable()
    try:
        del layers
        assert layer() is None
    finally:
        gc.enable()
