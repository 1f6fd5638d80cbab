"""A view of a model that the host brings to its device layer by layer (dynamic VRAM): what it leaves, what it brings.

The other device is torch's "meta", which has shapes and number formats, but no numbers.
"""

import ctypes

import pytest
import torch
from torch import nn

from tests.shell import OwnLinear, Shell
from trainer.bases.comfyui.private import DYNAMIC, private_view

CPU, OTHER = torch.device("cpu"), torch.device("meta")
BYTES, ALWAYS = 4 * 4 * 4, 2 * 4 * 4 + 2 * 4 * 4  # of the weight of a layer; of the norm and the words


class Model(nn.Module):
    """Three linear layers of which the host keeps a copy on the device, and a norm."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.adapted = (nn.Linear(4, 4, bias=False) for _ in range(3))
        self.norm, self.words = nn.LayerNorm(4), nn.Embedding(2, 4)
        for layer in (self, self.first, self.second, self.adapted):
            for name in DYNAMIC:
                setattr(layer, name, ctypes.pointer(ctypes.c_int(1)))  # cannot be copied, as the host's own cannot

    def forward(self, x):
        return self.norm(self.adapted(self.second(self.first(x))))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model().requires_grad_(False)


def devices(view):
    return {name: parameter.device.type for name, parameter in view.named_parameters()}


def test_the_hosts_copies_are_left_to_it(model):
    view = private_view(model, CPU)
    x = torch.randn(2, 4)
    assert view(x).equal(model(x))
    for own, theirs in zip(view.modules(), model.modules(), strict=True):
        assert not vars(own).keys() & set(DYNAMIC)
        assert isinstance(theirs, nn.LayerNorm | nn.Embedding) or set(DYNAMIC) <= vars(theirs).keys()


def test_a_lora_that_the_host_puts_on_a_copy_is_put_on_in_the_call(model):
    model.second.weight_lowvram_function, model.second.weight_function = (lambda weight: 2 * weight), []
    calls = []
    forward = nn.Linear.forward

    def made(layer, x):  # as the host's layers do
        calls.append(layer)
        weight = layer.weight
        for function in getattr(layer, "weight_function", []):
            weight = function(weight)
        return nn.functional.linear(x, weight)

    nn.Linear.forward = made
    try:
        view = private_view(model, CPU)
        assert torch.allclose(view.second(torch.ones(1, 4)), 2 * model.second.weight.sum(1))
    finally:
        nn.Linear.forward = forward
    assert calls == [view.second]
    assert model.second.weight_function == [] and model.second.weight_lowvram_function is not None


@pytest.mark.parametrize(
    ("dtype", "room", "calls", "functions"),
    [
        (torch.float32, 1e9, 1, 0),  # onto what was brought, for good
        (torch.float32, 0, 0, 1),  # in every call
        (torch.float8_e4m3fn, 1e9, 0, 1),  # it would be rounded to 8 bits
    ],
)
def test_a_lora_is_put_on_once_where_the_weight_is_brought(model, dtype, room, calls, functions):
    seen = []
    model.second.to(dtype)
    model.second.weight_lowvram_function = lambda weight: seen.append(weight.device.type) or weight.float() * 2
    model.second.weight_function = []
    view = private_view(model, OTHER, room=room)
    assert seen == ["meta"] * calls and len(view.second.weight_function) == functions
    assert not hasattr(view.second, "weight_lowvram_function") and model.second.weight_function == []
    assert model.second.weight.dtype == dtype and model.second.weight.device == CPU


@pytest.mark.parametrize(
    ("room", "brought"), [(0, set()), (BYTES, set()), (2 * BYTES + ALWAYS, {"first"}), (1e9, {"first", "second"})]
)
def test_it_brings_what_fits_and_always_what_is_small_or_adapted(model, room, brought):
    view = private_view(model, OTHER, {"adapted"}, room)
    expected = {f"{name}.weight": "meta" if name in brought else "cpu" for name in ("first", "second")}
    always = dict.fromkeys(("adapted.weight", "norm.weight", "norm.bias", "words.weight"), "meta")
    assert devices(view) == expected | always
    assert set(devices(model).values()) == {"cpu"}


def test_it_comes_in_the_hosts_number_format(model):
    model.first.weight_comfy_model_dtype = torch.float16  # the file has more bits
    view = private_view(model, OTHER, room=ALWAYS + BYTES)
    assert view.first.weight.dtype == torch.float16 and view.first.weight.device == OTHER
    assert view.second.weight.dtype == torch.float32 and view.second.weight.device == CPU


def test_nothing_is_brought_that_is_there(model):
    view = private_view(model, CPU, {"adapted"}, 1e9)
    assert view.first.weight.data_ptr() == model.first.weight.data_ptr()
    assert view.adapted.weight.data_ptr() == model.adapted.weight.data_ptr()


class Own(nn.Linear):
    """Of another pack: it may do more than a cast."""


@pytest.mark.parametrize(
    ("kind", "dtype", "device", "asked"),
    [
        (nn.Linear, torch.bfloat16, CPU, 0),
        (nn.Linear, torch.float16, CPU, 0),
        (nn.Linear, torch.float8_e4m3fn, CPU, 1),
        (Own, torch.bfloat16, CPU, 1),
        (nn.Linear, torch.float32, OTHER, 1),
    ],
)
def test_a_layer_is_asked_for_its_weight_but_where_that_is_a_cast(kind, dtype, device, asked, monkeypatch):
    calls = []
    monkeypatch.setattr(kind, "forward", lambda layer, x: calls.append(layer) or x)
    view = private_view(nn.Sequential(kind(4, 4, dtype=torch.float32)).to(device, dtype), CPU)
    view(torch.ones(2, 4))
    assert len(calls) == asked


SHELL = 4 * 4 + 4 * 4  # bytes of its numbers and of its scales


class Network(nn.Module):
    """Layers that are none of torch's, the middle one with keys of a prompt."""

    def __init__(self):
        super().__init__()
        self.first, self.second = OwnLinear(4, 4, 1), OwnLinear(4, 4, 2)
        self.attn2 = nn.Module()
        self.attn2.to_k = OwnLinear(4, 4, 3)

    def forward(self, x):
        return self.second(self.attn2.to_k(self.first(x)).sigmoid())


@pytest.mark.parametrize(
    ("room", "brought"),
    [(SHELL - 1, []), (SHELL, ["first"]), (2 * SHELL - 1, ["first"]), (2 * SHELL, ["first", "second"])],
)
def test_of_weights_with_scales_it_brings_what_fits_by_its_real_size(room, brought):
    model = Network()
    view = private_view(model, OTHER, {"attn2.to_k"}, room + SHELL)
    assert [name for name in ("first", "second") if view.get_submodule(name).weight.device == OTHER] == brought
    assert view.attn2.to_k.weight.device == OTHER
    assert all(type(layer.weight) is Shell for layer in (view.first, view.second, view.attn2.to_k))
    assert set(devices(model).values()) == {"cpu"}


def test_layers_that_are_not_torchs_are_trained_through_in_exact_numbers_and_keep_no_weights():
    with torch.inference_mode():
        model = Network()
    view = private_view(model, CPU, {"attn2.to_k"})
    x = torch.linspace(-1, 1, 12).view(3, 4).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        output = view(x)
    output.square().sum().backward()
    first, k, second = (layer.weight.dequantize().clone() for layer in (model.first, model.attn2.to_k, model.second))
    plain = torch.linspace(-1, 1, 12).view(3, 4).requires_grad_()
    expected = (plain @ first.T @ k.T).sigmoid() @ second.T
    expected.square().sum().backward()
    assert torch.allclose(output, expected) and torch.allclose(x.grad, plain.grad)
    assert [tuple(tensor.shape) for tensor in kept] == [(3, 4)]  # of the sigmoid


def test_what_makes_them_torchs_stays_in_the_view():
    model = Network()
    model.first.weight_function = [torch.Tensor.neg]
    view = private_view(model, CPU)
    for own, theirs in zip((view.first, view.second), (model.first, model.second), strict=True):
        assert isinstance(own, nn.Linear) and isinstance(own, OwnLinear) and type(theirs) is OwnLinear
        assert len(own.weight_function) == len(theirs.weight_function) + 1
        assert type(own).__name__ == "OwnLinear"
    x = torch.ones(1, 4)
    assert torch.allclose(view.first(x), -x @ model.first.weight.dequantize().T)


def test_peft_takes_them():
    from peft import LoraConfig, inject_adapter_in_model

    view = private_view(Network(), CPU)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=r".*attn2\.to_k"), view, "one")
    view.attn2.to_k.lora_B["one"].weight.data.fill_(1.0)
    view(torch.ones(1, 4)).sum().backward()
    assert view.attn2.to_k.lora_A["one"].weight.grad.abs().max() > 0
