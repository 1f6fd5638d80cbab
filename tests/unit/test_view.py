"""A private view shares the weights of a model and never changes it."""

import pytest
import torch
from torch import nn

from tests.shell import Shell, shell
from tests.toy import ToyUNet
from trainer.adapters.lora import LoraAdapter
from trainer.bases.view import shared_view


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight  # tied
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("transposed", torch.arange(6.0).view(2, 3).T)


def test_parameters_and_buffers_lie_on_the_same_storage():
    model = Model()
    view = shared_view(model)
    for kind in ("named_parameters", "named_buffers"):
        originals, aliases = dict(getattr(model, kind)()), dict(getattr(view, kind)())
        assert set(originals) == set(aliases)
        for name, original in originals.items():
            assert aliases[name].data_ptr() == original.data_ptr() and aliases[name] is not original
            assert aliases[name].stride() == original.stride() and torch.equal(aliases[name], original)
    model.first.weight.data[0, 0] = 42.0
    assert view.first.weight[0, 0] == 42.0


def test_the_view_needs_no_gradient_and_the_original_keeps_its_own():
    model = Model()
    view = shared_view(model)
    assert not any(p.requires_grad for p in view.parameters()) and all(p.requires_grad for p in model.parameters())
    assert view.second.weight is view.first.weight  # still tied


def test_replacing_layers_leaves_the_original():
    model = Model()
    layer, view = model.first, shared_view(model)
    view.first = nn.Identity()
    view.extra = nn.Linear(1, 1)
    view.register_forward_pre_hook(lambda *_: None)
    assert model.first is layer and not hasattr(model, "extra") and not model._forward_pre_hooks


@pytest.mark.parametrize("inside", [False, True])
def test_a_model_loaded_in_inference_mode_can_be_trained_through(inside):
    with torch.inference_mode():
        model = ToyUNet()
        view = shared_view(model) if inside else None
    view = view or shared_view(model)
    assert model.middle_block[1].attn2.to_k.weight.is_inference()
    assert not any(tensor.is_inference() for tensor in view.parameters())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapter = LoraAdapter(view, 2, 2.0, torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(adapter.parameters.values(), lr=0.1)
    for _ in range(2):  # up starts at zero, so down moves only at the second step
        optimizer.zero_grad()
        view(torch.ones(1, 1, 1, 2), torch.tensor([0]), torch.ones(1, 2, 3)).square().sum().backward()
        optimizer.step()
    assert all(parameter.grad.abs().max() > 0 for parameter in adapter.parameters.values())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Packed(torch.Tensor):
    """Bytes that call themselves a matrix, as weights of quantized files do."""

    @property
    def shape(self):
        return self.logical


def test_a_packed_weight_keeps_what_is_on_it():
    with torch.inference_mode():
        model = nn.Module()
        weight = torch.arange(12, dtype=torch.uint8).view(3, 4).as_subclass(Packed)
        weight.logical, weight.patches = torch.Size((3, 2)), ["a LoRA"]
        model.weight = nn.Parameter(weight, requires_grad=False)
        model.weight.logical, model.weight.patches = weight.logical, weight.patches
    view = shared_view(model)
    assert type(view.weight) is Packed and isinstance(view.weight, nn.Parameter) and view.weight is not model.weight
    assert view.weight.shape == (3, 2) and view.weight.patches is model.weight.patches
    assert view.weight.data_ptr() == model.weight.data_ptr() and not view.weight.is_inference()


def test_a_shell_is_made_anew_around_the_same_numbers():
    with torch.inference_mode():
        model = nn.Module()
        model.weight = nn.Parameter(shell(3, 2), requires_grad=False)
        model.register_buffer("table", shell(4, 2))
    view = shared_view(model)
    assert dict(view.named_parameters()).keys() == {"weight"} and dict(view.named_buffers()).keys() == {"table"}
    assert isinstance(view.weight, nn.Parameter) and not isinstance(view.table, nn.Parameter)
    for own, theirs in ((view.weight, model.weight), (view.table, model.table)):
        assert type(own) is Shell and own is not theirs and torch.equal(own.dequantize(), theirs.dequantize())
        for name in ("numbers", "scales"):
            assert getattr(own, name).data_ptr() == getattr(theirs, name).data_ptr()
            assert getattr(theirs, name).is_inference() and not getattr(own, name).is_inference()
    x = torch.ones(1, 2, requires_grad=True)
    nn.functional.linear(x, view.weight).sum().backward()
    assert torch.allclose(x.grad, model.weight.dequantize().sum(0))


def test_what_hangs_on_it_is_not_copied():
    model, function = Model(), lambda weight: weight
    other = [torch.ones(3)]
    model.first.weight_function, model.first.books = [function], other
    view = shared_view(model, [function, other])
    assert view.first.weight_function == [function] and view.first.weight_function is not model.first.weight_function
    assert view.first.books is other
